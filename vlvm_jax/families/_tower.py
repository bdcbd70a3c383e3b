"""Vision towers: their settings in a `config.json`, and checkpoints that hold one alone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlvm_jax.config import FrameFit, VisionConfig
from vlvm_jax.data import files
from vlvm_jax.errors import InputError
from vlvm_jax.families import base
from vlvm_jax.families.base import Access, Exported, HFModel, Layout, pixel_statistics, settings_of

KINDS = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "idefics3_vision": "idefics3",
    "idefics3": "idefics3",  # as in files of before it had a name of its own
    "smolvlm_vision": "idefics3",
    "internvl_vision": "internvl",
}
_WRITTEN = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "idefics3": "idefics3_vision",
    "internvl": "internvl_vision",
}
_BICUBIC = 3  # as Pillow and transformers number it
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STATISTICS = {  # mean and standard deviation of pixels, where no processor's file states them
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": _HALF,
    "idefics3": _HALF,
    "internvl": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_SAME = (  # settings that have one name in transformers' configs and here
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
# The text side of a whole CLIP or SigLIP, and a pooling head.
OTHER_PARTS = re.compile(
    r"^(text_model\..*|logit_scale|logit_bias|text_projection\..*|visual_projection\..*|(vision_model\.)?head\..*)$"
)


class TowerFamily(base.StockFamily):
    """A bare tower, or a whole CLIP or SigLIP of which the tower is taken."""

    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("legacy", {"tower": "vision_model."}),
        Layout("transformers-5", {"tower": ""}),
    )

    def read(self, directory: Path, raw: dict[str, Any], access: Access) -> HFModel:
        del access
        config = files.transformers_config(directory)
        where = f"{directory / 'config.json'}"
        vision = tower(getattr(config, "vision_config", config), where, statistics=pixel_statistics(directory))
        return HFModel(directory, self.name, self.name, vision, raw=raw)

    def dropped(self, model: HFModel) -> re.Pattern | None:
        del model
        return OTHER_PARTS

    def fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        del base
        assert exported.vision is not None
        return tower_fields(exported.vision, exported.has_head)

    def kept(self, base: dict[str, Any]) -> dict[str, Any]:
        return base.get("vision_config", base)


def tower(
    config: Any, where: str, *, feature_layer: Any = None, post_norm: bool = False, statistics: tuple | None = None
) -> VisionConfig:
    """Settings of a tower. `feature_layer` None (a bare tower) takes LLaVA's: -2 for CLIP, -1 for SigLIP.

    Args:
      config: transformers' of it, its sizes as numbers.
    """
    if config.model_type not in KINDS:
        raise InputError(
            f"{where}: vision_config.model_type {config.model_type!r}: this library runs {', '.join(KINDS)}"
        )
    kind = KINDS[config.model_type]
    if feature_layer is None:
        feature_layer = -2 if kind == "clip" else -1
    if not isinstance(feature_layer, int):
        raise InputError(f"{where}: vision_feature_layer {feature_layer}: features of several layers are not supported")
    if feature_layer >= 0:  # HF counts the embeddings as hidden state 0
        feature_layer -= config.num_hidden_layers + 1
    mean, std = statistics or STATISTICS[kind]
    return settings_of(
        VisionConfig,
        f"{where}: vision_config",
        kind=kind,
        **{name: getattr(config, name) for name in _SAME},
        attention_bias=config.attention_bias if kind == "internvl" else True,
        feature_layer=feature_layer,
        post_norm=post_norm,
        image_mean=tuple(mean),
        image_std=tuple(std),
    )


def squared(vision: Any, where: str) -> None:
    """Puts one number in the place of the two sides of a tower's images and patches.

    Args:
      vision: transformers' config of it.
    """
    for key in ("image_size", "patch_size"):
        sides = getattr(vision, key, None)
        if isinstance(sides, list | tuple):
            if len(set(sides)) != 1:
                raise InputError(f"{where}: vision_config.{key} {list(sides)}: only squares can be run exactly")
            setattr(vision, key, sides[0])


def square_processor(size: int, mean: Sequence[float], std: Sequence[float], fit: FrameFit) -> dict[str, Any]:
    """Settings of the processor that makes a picture one square of the tower's size, as `data.images.squares` does.

    Args:
      fit: `squash` is SigLIP's way, `crop` (also `auto`) CLIP's; `pad` is left to the model's own class.
    """
    square = {"height": size, "width": size}
    common = {"resample": _BICUBIC, "do_normalize": True, "image_mean": list(mean), "image_std": list(std)}
    if fit == "squash":
        return {"image_processor_type": "SiglipImageProcessor", "size": square, "do_center_crop": False, **common}
    edges = {"size": {"shortest_edge": size}, "crop_size": square, "do_center_crop": True}
    return {"image_processor_type": "CLIPImageProcessor", **edges, **common}


def tower_fields(vision: VisionConfig, has_head: bool = False, model_type: str | None = None) -> dict[str, Any]:
    """The `vision_config` of a tower.

    Args:
      has_head: SigLIP's pooling head is among the tensors.
      model_type: by default that of the tower's kind.
    """
    fields = {"model_type": model_type or _WRITTEN[vision.kind], **{name: getattr(vision, name) for name in _SAME}}
    if vision.kind == "siglip":
        return fields | {"vision_use_head": has_head}
    if vision.kind == "internvl":
        sides = {name: [getattr(vision, name)] * 2 for name in ("image_size", "patch_size")}
        own = {"attention_bias": vision.attention_bias, "norm_type": "layer_norm", "use_mean_pooling": True}
        return fields | sides | own
    return fields
