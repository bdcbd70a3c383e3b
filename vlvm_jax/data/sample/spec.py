"""How a record becomes a sample."""

import dataclasses

from vlvm_jax.config import DataConfig
from vlvm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """How a record becomes a sample. Everything is plain data, so that it travels to workers.

    Attributes:
      data: how media are read and prompts are written. Without its `prompt_tokenizer`, samples have no `prompt_ids`.
      length: L, tokens per row.
      frames: T, frames per row.
      frames_per_video: frames taken from one clip.
      image_size: side of the tower's squares.
      image_tokens: visual tokens of an image.
      video_tokens: `video_tokens[n]` visual tokens of a clip of n frames.
      image_mean: the tower's; the colour around padded pictures where there is no processor.
      max_clips: of a sample; None for any number.
      seed: with which frames are drawn from segments; None for their midpoints.
      loss_on: what is learned, see `StageConfig`.
      control: None, or what evaluation does to clips, `blank_video`, `shuffled_frames`, or to what guides the look at
        them, `shuffled_prompt`.
      prompt_template: in which questions are put, see `answers.render_question`; `prompt_ids` are those of the question
        alone.
      cache_bytes: of decoded media that each loading process keeps.
    """

    data: DataConfig
    length: int
    frames: int
    frames_per_video: int
    image_size: int
    image_tokens: int
    video_tokens: tuple[int, ...]
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    max_clips: int | None = None
    seed: int | None = None
    loss_on: str = "answer"
    control: str | None = None
    prompt_template: str = "question"
    cache_bytes: int = 0

    def check(self, where: str, has_video: bool) -> None:
        """Raises `InputError` when a clip's visual tokens alone overflow the row."""
        if not has_video or self.data.clips == "grid":
            return
        tokens = self.video_tokens[self.frames_per_video]
        if tokens >= self.length:
            raise InputError(
                f"{where}.length: a clip of {self.frames_per_video} frames takes {tokens} visual tokens "
                f"({tokens / self.frames_per_video:g} a frame), which leaves no room for text in a length of "
                f"{self.length}; raise length, or take fewer frames or tokens per frame"
            )


def check_guided(prompt_tokenizer: str | None, pack: bool, where: str) -> None:
    """Raises `InputError` when clips that are looked at by their question would share rows."""
    if pack and prompt_tokenizer is not None:
        raise InputError(
            f"{where}.pack: with config.data.prompt_tokenizer a question guides what is seen of its clip, and a row "
            "holds one question; set pack to False"
        )
