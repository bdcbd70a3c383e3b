"""LLaVA-OneVision: images in up to nine tiles' worth of tokens; clips are resized after the connector, with a newline
embedding at their end."""

from typing import Any

from vlvm_jax.config import FrameTokens, VisionConfig
from vlvm_jax.data.images.image_rules import Settings, SquareRule, TileRule, max_tiles, video_settings
from vlvm_jax.families import llava_next

_VIDEO = {"size": {"height": 384, "width": 384}, "do_center_crop": False}


class Family(llava_next.Family):
    name = "llava_onevision"
    model_types = ("llava_onevision",)
    architecture = "LlavaOnevisionForConditionalGeneration"
    only_tiles = False
    has_video = True
    writes_clips = True
    video_processor = "LlavaOnevisionVideoProcessor"
    rung = 3
    taps = 4
    frame_tokens = FrameTokens(pool="bilinear", pool_stride=2, pool_place="after_connector", newline="all")
    pinpoints = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))

    def inexact_clips(self, vision: VisionConfig, frames: FrameTokens) -> str | None:
        return super(llava_next.Family, self).inexact_clips(vision, frames)

    def image_rule(self, settings: Settings) -> SquareRule:
        limit = max_tiles(settings.config.vision_aspect_ratio, settings.directory)
        video = {**_VIDEO, **video_settings(settings)}
        return TileRule(
            settings, "LlavaOnevisionImageProcessor", taps=self.taps, most=limit, pads_several=True, video=video
        )

    def clip_tokens(self, config: Any, side: int, own: int) -> tuple[int, int]:
        return (-(-side // 2)) ** 2, 1

    def own_tiling(self, tiling: dict[str, Any]) -> dict[str, Any]:
        return tiling

    def image_processor(
        self, tower: dict[str, Any], size: int, pinpoints: list[list[int]] | None, padded: bool
    ) -> dict[str, Any]:
        return {
            **tower,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": size, "width": size},
            "image_grid_pinpoints": pinpoints,
        }
