"""JSON Lines files that processes append to. A crash may leave a partial line, which is removed before the next one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vlvm_jax import json_text


def append(path: Path, *entries: Mapping[str, Any]) -> None:
    """Appends a line for each entry, after removing a partial last line."""
    with Path(path).open("a+b") as file:
        repair(file)
        file.write("".join(f"{json_text.readable(entry)}\n" for entry in entries).encode())


def repair(file: BinaryIO) -> None:
    """Removes a partial last line.

    Args:
      file: open for reading and appending.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, without empty and partial lines; [] if there is no file."""
    entries = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entries.append(json_text.loads(line))
        except ValueError:
            continue
    return entries
