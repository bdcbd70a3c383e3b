"""LLaVA-NeXT (1.6): every image is cut into tiles, and a newline embedding follows each row of them."""

from typing import Any

from vlvm_jax import families
from vlvm_jax.config import FrameTokens, VisionConfig
from vlvm_jax.data.images.image_rules import Settings, SquareRule, TileRule
from vlvm_jax.families._llava import LlavaLike
from vlvm_jax.families.base import Exported


class Family(LlavaLike):
    name = "llava_next"
    model_types = ("llava_next",)
    architecture = "LlavaNextForConditionalGeneration"
    has_newline = True
    only_tiles = True
    frame_tokens = FrameTokens(newline="image")
    pinpoints = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))

    def image_rule(self, settings: Settings) -> SquareRule:
        return TileRule(settings, "LlavaNextImageProcessor")

    def inexact_clips(self, vision: VisionConfig, frames: FrameTokens) -> str | None:
        return "it cuts every image into tiles, so the frames of a clip, sent as images, would be cut too"

    def own_fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        assert exported.vision is not None
        size = exported.vision.image_size
        fields = super().own_fields(exported, base)
        fields["image_grid_pinpoints"] = [[size * rows, size * columns] for rows, columns in self.pinpoints]
        origin = families.of_config(base)
        tiling = {} if base is None or origin is None else origin.tiling(base, size)
        return fields | self.own_tiling(tiling)

    def own_tiling(self, tiling: dict[str, Any]) -> dict[str, Any]:
        """What of a base's tiling the class's config has a key for."""
        return {key: value for key, value in tiling.items() if key != "vision_aspect_ratio"}

    def image_processor(
        self, tower: dict[str, Any], size: int, pinpoints: list[list[int]] | None, padded: bool
    ) -> dict[str, Any]:
        return {**tower, "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints}
