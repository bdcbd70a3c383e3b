"""InternVL3 and InternVL3.5: InternViT-300M, a pixel shuffle into an MLP, Qwen2 or Qwen3; images in tiles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlvm_jax.config import ConnectorConfig, FrameTokens, VisionConfig
from vlvm_jax.data.images.image_rules import CanvasRule, Settings, SquareRule, video_settings
from vlvm_jax.errors import InputError
from vlvm_jax.families._llava import LAYOUTS
from vlvm_jax.families._tower import squared, tower
from vlvm_jax.families._vlm import VLM, Media
from vlvm_jax.families.base import Exported, Pieces, pixel_statistics


class Family(VLM):
    name = "internvl"
    model_types = ("internvl",)
    architecture = "InternVLForConditionalGeneration"
    layouts = tuple(layout for layout in LAYOUTS if layout.name in ("legacy-flat-tower", "transformers-5"))
    peft_prefixes = {"decoder": "model.language_model"}  # noqa: RUF012  # the tower's modules have names of their own
    connector = "pixel_shuffle_mlp"
    rung = 1
    writes_clips = True
    clips_are_images = True
    note = (
        "Give clips to the processor as videos: it writes `Frame1: ` and so on into the prompt and passes the frames "
        "as images (`pixel_values`). It needs the package torchvision for clips."
    )

    def read_tower(self, config: Any, directory: Path, where: str) -> VisionConfig:
        vision = config.vision_config
        if vision.use_qk_norm or vision.norm_type != "layer_norm":
            raise InputError(
                f"{where}: vision_config: norm_type {vision.norm_type!r}, use_qk_norm {vision.use_qk_norm}: this is "
                "the tower of 6 billion parameters, which is not supported; InternViT-300M is"
            )
        for key, wanted in (
            ("use_mean_pooling", True),
            ("use_mask_token", False),
            ("use_absolute_position_embeddings", True),
        ):
            if getattr(vision, key) is not wanted:
                raise InputError(
                    f"{where}: vision_config.{key} {getattr(vision, key)!r}: only {wanted} can be run exactly"
                )
        if config.vision_feature_select_strategy != "default":
            raise InputError(
                f"{where}: vision_feature_select_strategy {config.vision_feature_select_strategy!r}: only 'default' "
                "(all patches, no class token) can be run exactly"
            )
        squared(vision, where)
        statistics = pixel_statistics(directory)
        return tower(vision, where, feature_layer=config.vision_feature_layer, statistics=statistics)

    def read_connector(self, config: Any, vision: VisionConfig, where: str) -> ConnectorConfig:
        if config.projector_hidden_act != "gelu":
            raise InputError(
                f"{where}: projector_hidden_act {config.projector_hidden_act!r}: only 'gelu' can be run exactly"
            )
        scale = _scale(config, where)
        if vision.grid % scale:
            raise InputError(
                f"{where}: downsample_ratio 1/{scale} does not divide the tower's grid of {vision.grid} x "
                f"{vision.grid} patches"
            )
        return ConnectorConfig(kind="pixel_shuffle_mlp", scale_factor=scale)

    def settings(self, directory: Path, raw: dict[str, Any]) -> Settings:
        settings = super().settings(directory, raw)
        squared(settings.config.vision_config, f"{directory}/config.json")
        return settings

    def image_rule(self, settings: Settings) -> SquareRule:
        return CanvasRule(settings, "GotOcr2ImageProcessor", video={**settings.image, **video_settings(settings)})

    def token(self, tokenizer: Any, kind: str) -> str | None:
        return getattr(tokenizer, {"image": "context_image_token"}.get(kind, "video_token"), None)

    def joined_patches(self, config: Any) -> int:
        return _scale(config, "config.json")

    def image_pieces(self, tokenizer: Any, grid: tuple[int, int], count: int) -> Pieces:
        rows, columns = grid
        return tokenizer.start_image_token, count * (rows * columns + 1), tokenizer.end_image_token

    def clip_pieces(self, tokenizer: Any, times: Sequence[float], duration: float | None, count: int) -> Pieces:
        """Every frame after its number, on a line of its own."""
        del duration
        pieces: list[str | int] = []
        for number in range(1, len(times) + 1):
            before, *rest = self.image_pieces(tokenizer, (0, 0), count)
            pieces += [f"{chr(10) if pieces else ''}Frame{number}: {before}", *rest]
        return tuple(pieces)

    def inexact(
        self, vision: VisionConfig, connector: ConnectorConfig, frames: FrameTokens, media: Media
    ) -> str | None:
        del media
        if connector.kind != self.connector:
            return f"it has a pixel shuffle and an MLP, this model a {connector.kind} connector"
        if vision.kind != "internvl":
            return f"it has no {vision.kind} tower"
        if frames.pool != "none" or frames.newline != "none":
            return "it neither pools frames nor adds newlines"
        return None

    def own_fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        vision, connector, tokens = exported.vision, exported.connector, exported.tokens
        assert vision is not None and connector is not None and tokens is not None
        return {
            "image_token_id": tokens.image,
            "image_seq_length": (vision.grid // connector.scale_factor) ** 2,
            "downsample_ratio": 1 / connector.scale_factor,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": vision.feature_layer,
            "vision_feature_select_strategy": "default",
        }


def _scale(config: Any, where: str) -> int:
    """How many patches along a side become one token."""
    ratio = config.downsample_ratio
    scale = round(1 / ratio) if 0 < ratio <= 1 else 0
    if scale * ratio != 1:
        raise InputError(f"{where}: downsample_ratio {ratio} is not 1 over a whole number")
    return scale
