"""LLaVA-NeXT-Video: LLaVA-NeXT whose clips are pooled within each frame before the connector."""

from typing import Any

from vlvm_jax.config import FrameTokens, VisionConfig
from vlvm_jax.data.images.image_rules import Settings, SquareRule, TileRule, video_settings
from vlvm_jax.errors import InputError
from vlvm_jax.families import llava_next
from vlvm_jax.families.base import Exported


class Family(llava_next.Family):
    name = "llava_next_video"
    model_types = ("llava_next_video",)
    architecture = "LlavaNextVideoForConditionalGeneration"
    only_tiles = False
    has_video = True
    writes_clips = True
    video_processor = "LlavaNextVideoVideoProcessor"
    rung = 2
    frame_tokens = FrameTokens(pool="average", pool_stride=2, pool_place="before_connector", newline="image")

    def read_frame_tokens(self, config: Any, where: str) -> FrameTokens:
        mode = config.spatial_pool_mode
        if mode not in (None, "average", "max"):
            raise InputError(f"{where}: spatial_pool_mode {mode!r}: only 'average' and 'max' can be run exactly")
        return self.frame_tokens.model_copy(
            update={"pool": mode or "average", "pool_stride": config.spatial_pool_stride}
        )

    def like(self, frames: FrameTokens) -> FrameTokens:
        return self.frame_tokens.model_copy(update={"pool": "max"}) if frames.pool == "max" else self.frame_tokens

    def inexact_clips(self, vision: VisionConfig, frames: FrameTokens) -> str | None:
        fault = super(llava_next.Family, self).inexact_clips(vision, frames)
        if fault is None and vision.grid % 2:
            return f"processors and servers miscount odd grids ({vision.grid} x {vision.grid} patches) of it"
        return fault

    def image_rule(self, settings: Settings) -> SquareRule:
        return TileRule(settings, "LlavaNextImageProcessor", video=video_settings(settings))

    def clip_tokens(self, config: Any, side: int, own: int) -> tuple[int, int]:
        return (side // config.spatial_pool_stride) ** 2, 0

    def own_fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        frames = exported.frame_tokens
        assert frames is not None
        pooling = {"spatial_pool_mode": frames.pool, "spatial_pool_stride": frames.pool_stride}
        return super().own_fields(exported, base) | pooling
