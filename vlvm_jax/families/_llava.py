"""What LLaVA and the classes after it have alike: a CLIP or SigLIP tower, a two-layer MLP, one newline embedding."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vlvm_jax.config import ConnectorConfig, FrameTokens, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families._tower import tower
from vlvm_jax.families._vlm import VLM, Media
from vlvm_jax.families.base import Exported, Layout, pixel_statistics

_NEW: dict[Any, str] = {
    "decoder": "model.language_model.",
    "head": "",
    "connector": "model.multi_modal_projector.",
    "newline": "model.",
}
_LEGACY: dict[Any, str] = {
    "decoder": "language_model.model.",
    "head": "language_model.",
    "connector": "multi_modal_projector.",
    "newline": "",
}
LAYOUTS = (
    Layout("legacy", {"tower": "vision_tower.vision_model.", **_LEGACY}),
    # What transformers 5 writes by default: the tower's inner prefix is gone.
    Layout("legacy-flat-tower", {"tower": "vision_tower.", **_LEGACY}),
    Layout("transformers-5", {"tower": "model.vision_tower.", **_NEW}),
    Layout("transformers-5-nested-tower", {"tower": "model.vision_tower.vision_model.", **_NEW}),
)
POOLING_HEAD = re.compile(r"(^|\.)vision_tower\.(vision_tower\.)?(vision_model\.)?head\..*$")  # SigLIP's


class LlavaLike(VLM):
    """A VLM with LLaVA's parts.

    Attributes:
    pinpoints: canvases of the class's default tiling, in rows and columns of tiles; empty for a class without tiles.
    """

    layouts = LAYOUTS
    carried = POOLING_HEAD
    peft_prefixes: ClassVar[Mapping[str, str]] = {
        "decoder": "model.language_model",
        "encoder": "model.vision_tower.encoder",
    }
    pinpoints: ClassVar[tuple[tuple[int, int], ...]] = ()

    def read_tower(self, config: Any, directory: Path, where: str) -> VisionConfig:
        statistics = pixel_statistics(directory)
        vision = tower(config.vision_config, where, feature_layer=config.vision_feature_layer, statistics=statistics)
        wanted = "default" if vision.has_class_token else "full"
        if config.vision_feature_select_strategy != wanted:
            raise InputError(
                f"{where}: vision_feature_select_strategy {config.vision_feature_select_strategy!r} with a "
                f"{vision.kind} tower: only {wanted!r} (all patches, no class token) can be run exactly"
            )
        return vision

    def read_connector(self, config: Any, vision: VisionConfig, where: str) -> ConnectorConfig:
        del vision
        if config.projector_hidden_act != "gelu":
            raise InputError(
                f"{where}: projector_hidden_act {config.projector_hidden_act!r}: only 'gelu' can be run exactly"
            )
        return ConnectorConfig(kind="mlp2x_gelu", bias=config.multimodal_projector_bias)

    def inexact(
        self, vision: VisionConfig, connector: ConnectorConfig, frames: FrameTokens, media: Media
    ) -> str | None:
        if connector.kind != "mlp2x_gelu":
            return f"it has a two-layer connector, this model a {connector.kind} one"
        if vision.kind not in ("clip", "siglip"):
            return f"it has no {vision.kind} tower"
        if vision.post_norm:
            return "it reads the tower before its last layer norm"
        if media != "image" and (fault := self.inexact_clips(vision, frames)):
            return fault
        return self._inexact_newline(frames, media)

    def inexact_clips(self, vision: VisionConfig, frames: FrameTokens) -> str | None:
        """Why the class would not compute the same with clips."""
        del vision
        want = self.like(frames)
        if frames.pool != want.pool:
            return f"it pools frames by {want.pool!r}, this model by {frames.pool!r}"
        if frames.pool == "none":
            return None
        if frames.pool_stride != want.pool_stride:
            return f"its processor counts a stride of {want.pool_stride}, this model has {frames.pool_stride}"
        if frames.pool_place != want.pool_place:
            theirs, mine = (place.replace("_", " the ") for place in (want.pool_place, frames.pool_place))
            return f"it pools {theirs}, this model {mine}"
        return None

    def like(self, frames: FrameTokens) -> FrameTokens:
        """What the class does with frames, set up as much like `frames` as its config allows."""
        del frames
        return self.frame_tokens

    def _inexact_newline(self, frames: FrameTokens, media: Media) -> str | None:
        want = self.like(frames)
        for kind in ("image", "video") if media == "all" else (media,):
            mine, theirs = (tokens.newline in (kind, "all") for tokens in (frames, want))
            if mine != theirs:
                which = "adds" if theirs else "adds no"
                only = " (with --media=video, images do not count)" if kind == "image" and media == "all" else ""
                return f"it {which} newline embedding after {kind}s, this model does{'' if mine else ' not'}{only}"
            if kind == "video" and mine and frames.newline_place != want.newline_place:
                return (
                    f"it adds one newline embedding at a clip's end, this model one after every {frames.newline_place}"
                )
        return None

    def own_fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        vision, connector, tokens = exported.vision, exported.connector, exported.tokens
        assert vision is not None and connector is not None and tokens is not None
        fields: dict[str, Any] = {
            "image_token_index": tokens.image,
            "vision_feature_layer": _feature_layer(vision, base),
            "vision_feature_select_strategy": "default" if vision.has_class_token else "full",
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": connector.bias,
        }
        if self.has_video:
            fields["video_token_index"] = tokens.video
        return fields


def _feature_layer(vision: VisionConfig, base: dict[str, Any] | None) -> int:
    """Counted from the first or from the last hidden state, as the base does."""
    spelled = (base or {}).get("vision_feature_layer")
    if isinstance(spelled, int) and spelled - vision.num_hidden_layers - 1 == vision.feature_layer:
        return spelled
    return vision.feature_layer
