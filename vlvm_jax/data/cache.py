"""Decoded media that a loading process keeps for the next epoch: for data sets that fit into memory."""

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

ValueT = TypeVar("ValueT")


class MediaCache:
    """Keeps what was decoded first, up to a size. Nothing goes for something else: all are asked for equally often.

    Args:
      size: bytes; 0 keeps nothing.
    """

    def __init__(self, size: int):
        self.size, self.held = size, 0
        self._kept: dict[Hashable, object] = {}
        self._lock = threading.Lock()  # several threads of a process load samples

    def get(self, key: Hashable, decode: Callable[[], ValueT], count_bytes: Callable[[ValueT], int]) -> ValueT:
        """What `decode` gives, or gave. Nobody may change it."""
        if key in self._kept:
            return self._kept[key]  # pyright: ignore[reportReturnType]
        value = decode()
        taken = count_bytes(value)
        with self._lock:
            if key not in self._kept and self.held + taken <= self.size:
                self._kept[key] = value
                self.held += taken
        return value
