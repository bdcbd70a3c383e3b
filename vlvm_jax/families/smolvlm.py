"""SmolVLM and SmolVLM2: Idefics3 with a video processor, which writes the time of each frame into the prompt."""

import datetime
from collections.abc import Sequence
from typing import Any

from vlvm_jax.data.images.image_rules import Settings, SplitRule, SquareRule
from vlvm_jax.data.numerals import in_words
from vlvm_jax.families import idefics3
from vlvm_jax.families.base import Pieces


class Family(idefics3.Family):
    name = "smolvlm"
    model_types = ("smolvlm",)
    architecture = "SmolVLMForConditionalGeneration"
    rung = 1
    writes_clips = True
    stamps_frames = True
    tower_type = "smolvlm_vision"
    note = (
        "Give clips to the processor as videos: it writes the time of each frame into the prompt and passes the "
        "frames as images (`pixel_values`). It needs the packages torchvision and num2words, even for images."
    )

    def image_rule(self, settings: Settings) -> SquareRule:
        video = settings.video
        scale = video.get("video_sampling", {}).get("video_size") or video.get("size")
        sizes = {"size": scale, "max_image_size": video.get("max_image_size"), "resample": video.get("resample")}
        given = {key: value for key, value in sizes.items() if value is not None}
        return SplitRule(settings, "SmolVLMImageProcessor", video=given)

    def clip_pieces(self, tokenizer: Any, times: Sequence[float], duration: float | None, count: int) -> Pieces:
        """A sentence, then every frame after its time; the last frame's time stands in for no duration."""
        from transformers.models.smolvlm import processing_smolvlm as smolvlm

        seconds = int(duration if duration is not None else times[-1])
        length = str(datetime.timedelta(seconds=seconds))
        intro = smolvlm.DEFAULT_VIDEO_INTRO.format(frame_count=in_words(len(times)), video_duration=length)
        pieces: list[str | int] = [intro]
        for time in times:
            stamp = f"{int(time // 60):02d}:{int(time % 60):02d}"
            pieces.append(smolvlm.FRAME_TIMESTAMP_MESSAGE.format(timestamp=stamp))
            pieces += self.image_pieces(tokenizer, (0, 0), count)
        return (*pieces, smolvlm.DEFAULT_MEDIA_OUTTRO)

    @property
    def clip_template(self) -> str | None:
        from transformers.models.smolvlm import processing_smolvlm

        return processing_smolvlm.DEFAULT_CHAT_TEMPLATE
