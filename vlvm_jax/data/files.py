"""Reading a checkpoint's small files, with one-line faults."""

from pathlib import Path
from typing import Any

from etils import epath

from vlvm_jax import json_text
from vlvm_jax.errors import InputError, brief


def read_json(file: Path | epath.Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file.

    Raises:
      InputError: the file is not JSON, holds no object, or is nested too deep.
    """
    if not file.is_file():
        return {}
    try:
        found = json_text.loads(file.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({brief(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(found).__name__}")
    return found


def read_text(file: Path) -> str | None:
    """What is in a text file, None if there is no such file.

    Raises:
      InputError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except ValueError as error:
        raise InputError(f"{file}: not UTF-8 text ({brief(error)})") from None
