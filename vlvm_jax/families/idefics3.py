"""Idefics3: images are split into tiles around which the prompt counts rows and columns; a pixel shuffle before the
decoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vlvm_jax.config import ConnectorConfig, FrameTokens, VisionConfig
from vlvm_jax.data.images.image_rules import Settings, SplitRule, SquareRule
from vlvm_jax.errors import InputError
from vlvm_jax.families._tower import tower, tower_fields
from vlvm_jax.families._vlm import VLM, Media
from vlvm_jax.families.base import Exported, Layout, Pieces, pixel_statistics


class Family(VLM):
    name = "idefics3"
    model_types = ("idefics3",)
    architecture = "Idefics3ForConditionalGeneration"
    layouts = (
        Layout(
            "legacy",
            {
                "tower": "model.vision_model.",
                "decoder": "model.text_model.",
                "head": "",
                "connector": "model.connector.",
            },
        ),
    )
    peft_prefixes: ClassVar[Mapping[str, str]] = {
        "decoder": "model.text_model",
        "encoder": "model.vision_model.encoder",
    }
    connector = "pixel_shuffle"
    batched_images = True
    clips_are_images = True
    tower_type: ClassVar[str] = "idefics3_vision"

    def read_tower(self, config: Any, directory: Path, where: str) -> VisionConfig:
        statistics = pixel_statistics(directory)
        vision = tower(config.vision_config, where, feature_layer=-1, post_norm=True, statistics=statistics)
        if vision.grid % config.scale_factor:
            raise InputError(
                f"{where}: scale_factor {config.scale_factor} does not divide the tower's grid of {vision.grid} x "
                f"{vision.grid} patches"
            )
        return vision

    def read_connector(self, config: Any, vision: VisionConfig, where: str) -> ConnectorConfig:
        del vision, where
        return ConnectorConfig(kind="pixel_shuffle", bias=False, scale_factor=config.scale_factor)

    def image_rule(self, settings: Settings) -> SquareRule:
        return SplitRule(settings, "Idefics3ImageProcessor")

    def joined_patches(self, config: Any) -> int:
        return config.scale_factor

    def image_pieces(self, tokenizer: Any, grid: tuple[int, int], count: int) -> Pieces:
        around = getattr(tokenizer, "fake_image_token", None) or "<fake_token_around_image>"
        whole = getattr(tokenizer, "global_image_token", None) or "<global-img>"
        rows, columns = grid
        pieces: list[str | int] = []
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                pieces += [f"{around}<row_{row}_col_{column}>", count]
            pieces.append("\n")
        return (*pieces, ("\n" if rows else "") + around + whole, count, around)

    def inexact(
        self, vision: VisionConfig, connector: ConnectorConfig, frames: FrameTokens, media: Media
    ) -> str | None:
        del media
        if connector.kind != "pixel_shuffle":
            return f"it has a pixel-shuffle connector, this model a {connector.kind} one"
        if vision.kind != "idefics3" or not vision.post_norm or vision.feature_layer != -1:
            return "it reads an Idefics3 tower after its last layer norm"
        if frames.pool != "none" or frames.newline != "none":
            return "it neither pools frames nor adds newlines"
        return None

    def tower_fields(self, vision: VisionConfig, has_head: bool) -> dict[str, Any]:
        return tower_fields(vision, has_head, self.tower_type)

    def own_fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        assert exported.connector is not None and exported.tokens is not None
        return {"scale_factor": exported.connector.scale_factor, "image_token_id": exported.tokens.image}
