"""Predictions as JSON lines that outlive their process: written as they come, and continued where they end."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vlvm_jax import json_text, jsonl
from vlvm_jax.errors import InputError

_EVERY = 2.0  # seconds between two syncs: what a machine that loses power may have to ask again


class Predictions:
    """One file of predictions, open to be continued. A process that is killed loses at most the line it was writing.

    A line has an `id`, and `pred`: the reply, or None where the question could not be asked. Of several lines with an
    id the last counts.

    Args:
      path: local; a last line that was cut off is removed from the file.

    Raises:
      InputError: a line before the last is no prediction.
    """

    def __init__(self, path: Path):
        self.path = path
        self.by_id: dict[str, Mapping[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        jsonl.repair(self._file)
        self._read()
        self._synced = time.monotonic()

    def _read(self) -> None:
        self._file.flush()
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                prediction = json_text.loads(line)
                self.by_id[prediction["id"]] = prediction
                _ = prediction["pred"]
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"{self.path}: line {number} is no prediction; remove that line, or give another --output"
                ) from None

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()

    def answered(self, name: str) -> bool:
        """Whether there is a reply to the question of this id."""
        return name in self.by_id and self.by_id[name]["pred"] is not None

    def add(self, line: Mapping[str, Any]) -> None:
        """Appends a prediction; one that could not be asked, and still cannot for the same cause, stands there already.

        Every line reaches the operating system at once, and the disk every few seconds.
        """
        known = self.by_id.get(line["id"])
        self.by_id[line["id"]] = line
        if known is not None and line["pred"] is None and known == line:
            return
        self._file.write(json_text.readable(line).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced >= _EVERY:
            self.sync()

    def sync(self) -> None:
        """Returns when all lines are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()
