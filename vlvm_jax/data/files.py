"""Reading a checkpoint's small files, with one-line faults and without running what they name.

A checkpoint may bring code, and its JSON files may name some, of its own or of another repository. None of it ever
runs, and nobody is asked whether it may (docs/security.md).
"""

from pathlib import Path
from typing import Any

from etils import epath

from vlvm_jax import json_text
from vlvm_jax.errors import InputError, brief

# Keys by which transformers finds code to run or to download: classes, pipelines, decoding loops, attention kernels.
CODE_KEYS = frozenset(
    (
        "auto_map",
        "custom_pipelines",
        "custom_generate",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "kernel_config",
        "use_kernels",
        "trust_remote_code",
    )
)


def read_json(file: Path | epath.Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file.

    Raises:
      InputError: the file is not JSON, holds no object, or is nested too deep.
    """
    if not file.is_file():
        return {}
    try:
        content = json_text.loads(file.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({brief(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def read_text(file: Path) -> str | None:
    """What is in a text file, None if there is no such file.

    Raises:
      InputError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except ValueError as error:
        raise InputError(f"{file}: not UTF-8 text ({brief(error)})") from None


def without_code(value: Any) -> Any:
    """A JSON value without the keys that name code, at any depth."""
    if isinstance(value, dict):
        return {key: without_code(item) for key, item in value.items() if key not in CODE_KEYS}
    return [without_code(item) for item in value] if isinstance(value, list) else value


def transformers_config(directory: Path, stands_for: str | None = None) -> Any:
    """The class config that transformers makes of a directory's `config.json`.

    Raises:
      ImportError: transformers is not installed.
      InputError: transformers cannot read it, or only code of the checkpoint's own could.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    file = directory / "config.json"
    raw = read_json(file)
    family = raw.get("model_type")
    if not isinstance(family, str):
        raise InputError(f"{file}: model_type must be the name of a class of transformers, found {family!r}")
    if family not in CONFIG_MAPPING and stands_for is None and CODE_KEYS & raw.keys():
        raise InputError(
            f"{file}: model_type {family!r} is read by code of the checkpoint's own ({min(CODE_KEYS & raw.keys())}), "
            "which is never run here; use a checkpoint of a class that transformers has"
        )
    try:
        if family not in CONFIG_MAPPING and stands_for is not None:
            return AutoConfig.for_model(**{**without_code(raw), "model_type": stands_for})
        return AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything from KeyError to StrictDataclassError here
        verb = "refuses" if "Strict" in type(error).__name__ else "cannot read"
        raise InputError(f"{file}: transformers {verb} it: {brief(error)}") from None
