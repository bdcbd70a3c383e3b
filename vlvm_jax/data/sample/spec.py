"""How a record becomes a sample."""

import dataclasses
from typing import Literal

from vlvm_jax.data.images.squares import Fit
from vlvm_jax.data.media.frame_rules import FrameRule, ShortVideo
from vlvm_jax.data.prompt.guidance import ClipText
from vlvm_jax.data.sample.processor import ImageLayout
from vlvm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """How a record becomes a sample; everything is plain data, so that it travels to workers.

    Attributes:
      length: L, tokens per row.
      frames: T, frames per row.
      frames_per_video: frames taken from one clip.
      image_tokens: visual tokens of an image.
      video_tokens: `video_tokens[n]` visual tokens of a clip of n frames.
      control: None, or what evaluation does to clips, `blank_video`, `shuffled_frames`, or to what guides the look at
        them, `shuffled_prompt`.
      processor: directory whose image settings, tokenizer class and, for the `chat_template` "checkpoint", template are
        used as transformers uses them; None for this library's own.
      image_layout: `anyres` cuts images into tiles as the processor's family does.
      frame_sampling, fps, folder_fps, short_video: which frames of a clip, see `video.decode_frames`.
      seed: with which frames are drawn from segments; None for their midpoints.
      time_instruction: a sentence with its times follows every clip, see `markers.time_instruction`.
      cache_bytes: of decoded media that each loading process keeps.
      frame_fit: how frames, and images shown as one square, become squares, see `squares.to_square`; `auto` as the
        processor says, cropped without one.
      image_mean: the tower's; the colour around padded pictures where there is no processor.
      clips: `grid` shows a clip as one image of `frames_per_video` tiles, see `images.grid`.
      prompt_tokenizer: of the CLIP text tower that reads a sample's first question: samples have `prompt_ids`.
      prompt_length: P of `prompt_ids`.
      clip_text: whether that tower reads a question's options too.
      prompt_template: in which questions are put, see `answers.render_question`; `prompt_ids` are those of the question
        alone.
      max_clips: of a sample; None for any number.
    """

    length: int
    frames: int
    frames_per_video: int
    image_size: int
    image_tokens: int
    video_tokens: tuple[int, ...]
    tokenizer: str
    chat_template: str
    frame_sampling: FrameRule = "uniform"
    fps: float = 1.0
    folder_fps: float = 1.0
    seed: int | None = None
    loss_on: str = "answer"
    control: str | None = None
    processor: str | None = None
    image_layout: ImageLayout = "single"
    time_instruction: bool = False
    cache_bytes: int = 0
    short_video: ShortVideo = "formula"
    frame_fit: Fit = "auto"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    clips: Literal["frames", "grid"] = "frames"
    prompt_tokenizer: str | None = None
    prompt_length: int = 77
    clip_text: ClipText = "question"
    prompt_template: str = "question"
    max_clips: int | None = None

    def check(self, where: str, has_video: bool) -> None:
        """Raises `InputError` when a clip's visual tokens alone overflow the row."""
        if not has_video or self.clips == "grid":
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
