"""Checkpoints in the layout of the original LLaVA repositories (haotian-liu/LLaVA, LLaVA-VL/LLaVA-NeXT by lmms-lab).

Their `config.json` is the language model's with `mm_*` keys; the tower is named by a hub id and its weights may or may
not be in the files. The keys' meaning is read from those repositories' `llava/model` (builder, llava_arch).
"""

import itertools
import re
from pathlib import Path
from typing import Any

from vlvm_jax.config import ConnectorConfig
from vlvm_jax.data.files import read_json
from vlvm_jax.errors import InputError
from vlvm_jax.weights import hf_config
from vlvm_jax.weights.hf_config import HFModel
from vlvm_jax.weights.safetensors_files import SafetensorsReader

# Sizes of the towers that published checkpoints name, from their own config.json files on the hub.
_CLIP_L = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14,
}  # fmt: skip
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14, "image_size": 384,
}  # fmt: skip
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14": {**_CLIP_L, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_CLIP_L, "image_size": 336},
    "google/siglip-so400m-patch14-384": _SIGLIP_SO400M,
}
_DECODERS = {"Llama": "llama", "Qwen": "qwen2", "Mistral": "mistral"}
_TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."


def read(directory: Path, raw: dict[str, Any], language: str) -> HFModel:
    """See `hf_config.read`; `language` is the class name's middle: Llama, Qwen or Mistral."""
    from transformers import AutoConfig

    where = str(directory / "config.json")
    text = {key: value for key, value in raw.items() if key not in ("model_type", "architectures")}
    config = AutoConfig.for_model(_DECODERS[language], **text)
    name = raw.get("mm_vision_tower")
    if not name:
        raise InputError(f"{where}: mm_vision_tower is missing; expected the tower's hub id or directory")
    reader = SafetensorsReader(directory)
    layers = {tensor.split(".")[6] for tensor in reader.tensors if tensor.startswith(f"{_TOWER_PREFIX}encoder.layers.")}
    sizes = _tower_sizes(name, where)
    select = raw.get("mm_vision_select_layer", -2)
    used = sizes["num_hidden_layers"] + select + 1
    stored = len(layers) or sizes["num_hidden_layers"]  # LLaVA-NeXT drops SigLIP's last layer, which it never runs
    tower_config = AutoConfig.for_model(**{**sizes, "num_hidden_layers": stored})
    vision = hf_config.tower(
        tower_config, where, feature_layer=used - stored - 1, statistics=hf_config.pixel_statistics(directory)
    )
    if raw.get("mm_vision_select_feature", "patch") != "patch":
        raise InputError(f"{where}: mm_vision_select_feature: only 'patch' can be run exactly")
    kind = raw.get("mm_projector_type", "linear")
    if kind not in ("linear", "mlp2x_gelu"):
        raise InputError(f"{where}: mm_projector_type {kind!r}: this library has linear and mlp2x_gelu of this layout")
    family = hf_family(raw, language)
    return HFModel(
        directory=directory,
        family="original",
        hf_family=family,
        vision=vision,
        decoder=hf_config.decoder(config, where, config.tie_word_embeddings),
        connector=ConnectorConfig(kind=kind),
        frames_options=hf_config.frames_options(family),
        has_newline=family != "llava",
        tower_source=None if layers else name,
        raw=raw,
    )


def hf_family(raw: dict[str, Any], language: str) -> str:
    """The transformers class of the same computation."""
    if language == "Qwen" and "anyres_max" in str(raw.get("image_aspect_ratio", "")):
        return "llava_onevision"
    return "llava_next" if "unpad" in raw.get("mm_patch_merge_type", "flat") else "llava"


def tiling(raw: dict[str, Any], size: int) -> dict[str, Any]:
    """What the config says of images in tiles, in the keys of transformers' classes.

    Canvases are width first here, height first there; lmms-lab may write them as `(1x1),...,(6x6)`, in tiles.

    Args:
      size: pixels of a tile's side.
    """
    keys = {}
    canvases = raw.get("image_grid_pinpoints")
    if isinstance(canvases, str):
        tiles = [(int(wide), int(tall)) for wide, tall in re.findall(r"(\d+)x(\d+)", canvases)]
        if "..." in canvases:
            (first, top), (last, bottom) = tiles[0], tiles[-1]
            tiles = list(itertools.product(range(first, last + 1), range(top, bottom + 1)))
        canvases = [[size * wide, size * tall] for wide, tall in tiles]
    if canvases:
        keys["image_grid_pinpoints"] = [[tall, wide] for wide, tall in canvases]
    if str(raw.get("image_aspect_ratio")).startswith("anyres_max_"):
        keys["vision_aspect_ratio"] = raw["image_aspect_ratio"]
    return keys


def _tower_sizes(name: str, where: str) -> dict[str, Any]:
    if name in KNOWN_TOWERS:
        return KNOWN_TOWERS[name]
    if sizes := read_json(Path(name) / "config.json"):
        return sizes.get("vision_config", sizes)
    raise InputError(
        f"{where}: mm_vision_tower {name!r} is neither a directory nor one of {', '.join(KNOWN_TOWERS)}; put the "
        "tower's directory there"
    )
