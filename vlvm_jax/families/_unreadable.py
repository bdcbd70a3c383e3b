"""Refuses Hugging Face directories that hold weights in a form that is not read, or settings that contradict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlvm_jax.errors import InputError

_PARTS = ("text_config", "vision_config")
_LORA = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")
_PROJECTORS = ("mm_projector.bin", "mm_projector.safetensors")


def check_files(directory: Path) -> None:
    """Raises `InputError` if some of a model's weights are in a LoRA adapter or in a projector's own file."""
    check_no_lora(directory)
    for name in _PROJECTORS:
        if (directory / name).is_file():
            raise InputError(
                f"{directory / name}: a projector in a file of its own is not read; remove the file if the model's "
                "safetensors files hold the projector, else save the whole model again"
            )


def check_no_lora(directory: Any) -> None:
    """Raises `InputError` for a directory with the files of a LoRA adapter.

    Args:
      directory: a `Path` or `epath.Path`.
    """
    for name in _LORA:
        if (directory / name).exists():
            raise InputError(
                f"{directory / name}: belongs to a LoRA adapter, which is not read; merge it into its base model first "
                "(PEFT's merge_and_unload, or LLaVA's scripts/merge_lora_weights.py) and give the merged model's "
                "directory"
            )


def check_config(raw: Mapping[str, Any], where: str) -> None:
    """Raises `InputError` for quantised weights and for two different rope settings.

    Args:
      raw: what `config.json` holds.
      where: its path.
    """
    for part in (None, *_PARTS):
        settings = raw if part is None else raw.get(part)
        if not isinstance(settings, Mapping):
            continue
        place = where if part is None else f"{where}: {part}"
        if settings.get("quantization_config") is not None:
            raise InputError(
                f"{place}: quantization_config says that the weights are quantised, and only fp32, bf16 and fp16 are "
                "read; use the checkpoint it was made from, or remove the key if the weights are not quantised"
            )
        _check_rope(settings, place)


def _check_rope(settings: Mapping[str, Any], where: str) -> None:
    tables = {key: settings[key] for key in ("rope_parameters", "rope_scaling") if isinstance(settings.get(key), dict)}
    thetas = {f"{key}.rope_theta": table["rope_theta"] for key, table in tables.items() if "rope_theta" in table}
    if settings.get("rope_theta") is not None:
        thetas = {"rope_theta": settings["rope_theta"], **thetas}
    _check_same(thetas, where)
    _check_same({key: _scaling(table) for key, table in tables.items() if table}, where)


def _scaling(table: Mapping[str, Any]) -> dict[str, Any]:
    """A rope table in the keys of transformers 5, without its theta."""
    values = {key: value for key, value in table.items() if key not in ("type", "rope_theta")}
    return {"rope_type": table.get("type", "default"), **values}


def _check_same(values: Mapping[str, Any], where: str) -> None:
    (first, one), *others = [*values.items()] or [("", None)]
    for key, other in others:
        if other != one:
            raise InputError(
                f"{where}: {first} {one!r:.100} contradicts {key} {other!r:.100}; keep the one that the weights were "
                "trained with"
            )
