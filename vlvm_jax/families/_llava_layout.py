"""Reads the `config.json` of the original LLaVA repositories, for which transformers has no class.

It is the language model's config with `mm_*` keys. They name the tower by hub id or directory, and its own processor
prepares the images. The meaning of each key is taken from haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT:
`llava/mm_utils.py`, `llava/model/llava_arch.py` and the builders below `llava/model`.
"""

import ast
import itertools
import re
from pathlib import Path
from typing import Any, Literal

from vlvm_jax import families
from vlvm_jax.data.files import read_json
from vlvm_jax.data.images import anyres
from vlvm_jax.errors import InputError, brief
from vlvm_jax.families._tower import STATISTICS, TowerFamily, square_processor
from vlvm_jax.families.base import NAMED_TOWER_FOLDER

# Sizes of the towers that published checkpoints name, from their own config.json files on the hub.
_CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
}
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14": {**_CLIP_L, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_CLIP_L, "image_size": 336},
    "google/siglip-so400m-patch14-384": _SIGLIP_SO400M,
}

# Every key that changes what is computed, with the values that this library computes; `COMPUTED` where they are checked
# below, `NO_EFFECT` for what only training, or a component that other keys turn on, reads.
COMPUTED, NO_EFFECT = "computed", "no effect"
KEYS: dict[str, Literal["computed", "no effect"] | tuple[Any, ...]] = {
    "mm_vision_tower": COMPUTED,
    "mm_hidden_size": COMPUTED,
    "mm_vision_select_layer": COMPUTED,
    "mm_vision_select_feature": ("patch",),
    "mm_projector_type": ("linear", "mlp2x_gelu"),
    "mm_patch_merge_type": ("flat", "spatial", "spatial_unpad"),
    "mm_use_im_start_end": COMPUTED,
    "mm_spatial_pool_mode": ("average", "max", "bilinear"),
    "mm_spatial_pool_stride": COMPUTED,
    "mm_newline_position": ("one_token", "no_token", "frame", "grid"),
    "mm_resampler_type": (),
    "mm_tunable_parts": COMPUTED,  # whether the tower's weights must be among the tensors
    "unfreeze_mm_vision_tower": COMPUTED,
    "image_aspect_ratio": COMPUTED,
    "image_grid_pinpoints": COMPUTED,
    "add_faster_video": (False,),
    "s2": (False,),
    "add_time_instruction": (False, True),
    "force_sample": (False, True),
    "mm_use_im_patch_token": NO_EFFECT,  # rows of the vocabulary, which no prompt uses
    "mm_projector_lr": NO_EFFECT,
    "mm_vision_tower_lr": NO_EFFECT,
    "mm_vision_tower_pretrained": NO_EFFECT,
    "mm_spatial_pool_out_channels": NO_EFFECT,  # of a resampler, as all that follow
    "mm_mask_drop_mode": NO_EFFECT,
    "mm_mask_drop_skip_percentage": NO_EFFECT,
    "mm_mask_drop_ratio": NO_EFFECT,
    "mm_mask_drop_ratio_upper": NO_EFFECT,
    "mm_mask_drop_ratio_lower": NO_EFFECT,
    "mm_perceiver_depth": NO_EFFECT,
    "mm_perceiver_latents": NO_EFFECT,
    "mm_perceiver_ff_mult": NO_EFFECT,
    "mm_perceiver_pretrained": NO_EFFECT,
    "mm_qformer_depth": NO_EFFECT,
    "mm_qformer_latents": NO_EFFECT,
    "mm_qformer_pretrained": NO_EFFECT,
}
_TYPES: dict[str, tuple[type, str]] = {
    "mm_vision_tower": (str, "a text, the tower's hub id or directory"),
    "mm_vision_select_layer": (int, "a whole number, such as -2"),
    "mm_hidden_size": (int, "a whole number"),
    "mm_spatial_pool_stride": (int, "a whole number from 1 on"),
    "mm_use_im_start_end": (bool, "true or false"),
    "image_aspect_ratio": (str, "a text"),
}
_TILES = re.compile(r"\(\s*(\d{1,6})\s*x\s*(\d{1,6})\s*\)")
_TILE_RANGE = re.compile(rf"\s*{_TILES.pattern}(?:\s*,\s*(?:\.\.\.\s*,\s*)?{_TILES.pattern})*\s*")
_MOST_CANVASES = 1024  # an image is compared with each of them
_CLIP_KEYS = ("mm_spatial_pool_mode", "mm_spatial_pool_stride", "mm_newline_position")
_ARCHITECTURE = re.compile(r"^Llava(Llama|Qwen|Mistral)ForCausalLM$")


def language(raw: dict[str, Any]) -> str | None:
    """The decoder's name in the class of an original checkpoint (Llama, Qwen or Mistral); None for other configs."""
    match = _ARCHITECTURE.match((raw.get("architectures") or [""])[0])
    if match:
        return match[1]
    if "mm_vision_tower" not in raw or "vision_config" in raw:
        return None
    return {"llava_qwen": "Qwen", "llava_mistral": "Mistral"}.get(raw.get("model_type", ""), "Llama")


def check(raw: dict[str, Any], where: str) -> None:
    """Raises `InputError` for the first key whose value asks for what this library does not compute."""
    if "vision_config" in raw:
        raise InputError(
            f"{where}: holds mm_vision_tower of the original LLaVA layout and vision_config of transformers' class; "
            "keep the file of one of the two"
        )
    if not raw.get("mm_vision_tower"):
        raise InputError(f"{where}: mm_vision_tower is missing; expected the tower's hub id or directory")
    for key, (kind, expected) in _TYPES.items():
        value = raw.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise InputError(f"{where}: {key} {value!r:.200}: expected {expected}")
    for key, value in raw.items():
        allowed = KEYS.get(key, () if key.startswith("mm_") else NO_EFFECT)
        if value is None or isinstance(allowed, str) or value in allowed:
            continue
        if key not in KEYS:
            raise InputError(
                f"{where}: {key} {value!r}: a key that this library does not know; remove it if it is idle"
            )
        expected = f"only {', '.join(map(repr, allowed))} can be run exactly" if allowed else "only null can be run"
        raise InputError(f"{where}: {key} {value!r}: {expected}")
    _check_together(raw, where)


def _check_together(raw: dict[str, Any], where: str) -> None:
    ratio, merge = raw.get("image_aspect_ratio") or "square", _merge_type(raw)
    tiled = ratio == "anyres" or anyres.max_tiles(ratio) is not None
    if not tiled and ratio not in ("square", "pad"):
        raise InputError(
            f"{where}: image_aspect_ratio {ratio!r}: only 'square', 'pad', 'anyres' and 'anyres_max_<number>', a "
            "number from 1 on, can be run exactly"
        )
    if tiled != (merge == "spatial_unpad"):
        raise InputError(
            f"{where}: mm_patch_merge_type {merge!r} with image_aspect_ratio {ratio!r}: only 'spatial_unpad' with "
            "'anyres...', and 'flat' or 'spatial' with 'pad' or 'square', can be run exactly"
        )
    if tiled and not raw.get("image_grid_pinpoints"):
        raise InputError(f"{where}: image_grid_pinpoints are missing, which image_aspect_ratio {ratio!r} needs")
    if tiled and _canvases(raw["image_grid_pinpoints"], 1) is None:
        raise InputError(
            f"{where}: image_grid_pinpoints {raw['image_grid_pinpoints']!r:.200}: expected 1 to {_MOST_CANVASES} "
            "pairs of width and height in pixels, such as [[336, 672], [672, 336]], or numbers of tiles such as "
            "'(1x1),...,(6x6)'"
        )
    stride = raw.get("mm_spatial_pool_stride")
    if stride is not None and (not isinstance(stride, int) or stride < 1):
        raise InputError(f"{where}: mm_spatial_pool_stride {stride!r}: expected a whole number from 1 on")


def hf_family(raw: dict[str, Any]) -> str:
    """The transformers class that treats images as this checkpoint does."""
    if anyres.max_tiles(raw.get("image_aspect_ratio")) is not None:
        return "llava_onevision"
    return "llava_next" if "unpad" in _merge_type(raw) else "llava"


def clip_options(raw: dict[str, Any]) -> dict[str, Any] | None:
    """Options of the `frames` adapter for what the config says about clips; None if it says nothing.

    LLaVA-NeXT pools frames after the projector. A newline follows the clip, every frame, or every row of a frame.
    """
    if all(raw.get(key) is None for key in _CLIP_KEYS):
        return None
    stride = raw.get("mm_spatial_pool_stride") or 2
    options = {"pool": "none"}
    if stride > 1:
        mode = raw.get("mm_spatial_pool_mode") or "bilinear"
        options = {"pool": mode, "pool_stride": stride, "pool_place": "after_connector"}
    if "unpad" not in _merge_type(raw):
        return options
    position = raw.get("mm_newline_position") or "one_token"
    if position == "no_token":
        return {**options, "newline": "image"}
    place = {"one_token": {}, "frame": {"newline_place": "frame"}, "grid": {"newline_place": "row"}}[position]
    return {**options, "newline": "all", **place}


def clip_tokens(options: dict[str, Any], side: int) -> tuple[int, int]:
    """Visual tokens of a frame of a clip, and at the clip's end, under such options; `side`: of the tower's grid."""
    if options["pool"] != "none":
        stride = options["pool_stride"]
        side = -(-side // stride) if options["pool"] == "bilinear" else side // stride
    if options.get("newline") != "all":
        return side**2, 0
    place = options.get("newline_place", "end")
    return side**2 + {"end": 0, "frame": 1, "row": side}[place], int(place == "end")


def tuned_tower(raw: dict[str, Any]) -> str | None:
    """The key that says the tower was trained, so that its weights must be in the checkpoint; None without one."""
    if raw.get("unfreeze_mm_vision_tower"):
        return "unfreeze_mm_vision_tower"
    return "mm_tunable_parts" if "mm_vision_tower" in str(raw.get("mm_tunable_parts") or "").split(",") else None


def tiling(raw: dict[str, Any], size: int) -> dict[str, Any]:
    """What the config says about images in tiles, in the keys of transformers' classes.

    Canvases are width first here, height first there.

    Args:
      raw: a config that `check` accepts.
      size: pixels of a tile's side.
    """
    keys = {}
    if "unpad" in _merge_type(raw) and (canvases := _canvases(raw.get("image_grid_pinpoints"), size)) is not None:
        keys["image_grid_pinpoints"] = [[tall, wide] for wide, tall in canvases]
    if anyres.max_tiles(raw.get("image_aspect_ratio")) is not None:
        keys["vision_aspect_ratio"] = raw["image_aspect_ratio"]
    return keys


def _canvases(value: Any, size: int) -> list[tuple[int, int]] | None:
    """Widths and heights that `image_grid_pinpoints` lists, in pixels; None if it lists none, or anything else.

    They may be text: a list, or lmms-lab's `(1x1),...,(6x6)`, which counts tiles and means all from the first to the
    last.

    Args:
      size: pixels of a tile's side.
    """
    if isinstance(value, str) and _TILE_RANGE.fullmatch(value):
        tiles = [(int(wide), int(tall)) for wide, tall in _TILES.findall(value)]
        (first, top), (last, bottom) = tiles[0], tiles[-1]
        if max(last - first, bottom - top) >= _MOST_CANVASES:
            return None
        tiles = itertools.product(range(first, last + 1), range(top, bottom + 1))
        value = [(size * wide, size * tall) for wide, tall in tiles]
    elif isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MOST_CANVASES:
        return None
    pairs = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
    if not pairs or not all(type(side) is int and side > 0 for pair in value for side in pair):
        return None
    return [(wide, tall) for wide, tall in value]


def tower_directory(directory: Path, name: str) -> Path | None:
    """Where the tower's `config.json` is: kept by an import, a directory (also relative to the checkpoint), or the
    hub's cache; None if in none of them."""
    for place in (directory / NAMED_TOWER_FOLDER, Path(name).expanduser(), directory / name):
        if (place / "config.json").is_file():
            return place
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def tower_sizes(directory: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """The vision config of the tower, with the values that its file leaves to transformers' class.

    Raises:
      InputError: it is not known, cannot be read, or is no CLIP or SigLIP.
    """
    name = raw["mm_vision_tower"]
    place = tower_directory(directory, name)
    if place is not None:
        return _read_tower(place / "config.json")
    if name in KNOWN_TOWERS:
        return KNOWN_TOWERS[name]
    raise InputError(
        f"{directory / 'config.json'}: mm_vision_tower {name!r} is neither a directory, nor in the hub's cache, nor "
        f"one of {', '.join(KNOWN_TOWERS)}; put the tower's directory there"
    )


def _read_tower(file: Path) -> dict[str, Any]:
    """Reads the config of a tower, or of a complete CLIP or SigLIP, whose `vision_config` is the tower's."""
    from transformers import AutoConfig

    stated = read_json(file)
    family = families.of_config(stated)
    if not isinstance(family, TowerFamily):
        raise InputError(
            f"{file}: model_type {stated.get('model_type')!r}: mm_vision_tower must name a CLIP or a SigLIP, whole or "
            "its tower alone"
        )
    sizes = {**stated.get("vision_config", stated), "model_type": f"{family.name}_vision_model"}
    try:
        return AutoConfig.for_model(**sizes).to_dict()
    except Exception as error:  # transformers raises anything from KeyError to StrictDataclassError here
        raise InputError(f"{file}: transformers cannot read it ({brief(error)})") from None


def tower_processor(directory: Path, raw: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Settings of the tower's own image processor: the checkpoint's file, the tower's, or what LLaVA's code has."""
    place = tower_directory(directory, raw["mm_vision_tower"])
    for folder in (directory, place):
        if folder is not None and (processor := read_json(folder / "preprocessor_config.json")):
            return processor
    kind = "siglip" if sizes["model_type"].startswith("siglip") else "clip"
    return square_processor(sizes["image_size"], *STATISTICS[kind], "squash" if kind == "siglip" else "crop")


def _merge_type(raw: dict[str, Any]) -> str:
    return raw.get("mm_patch_merge_type") or "flat"
