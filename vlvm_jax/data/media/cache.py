"""Decoded media that a loading process keeps for the next epoch: for data sets that fit into memory."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar


class Decoded(Protocol):
    @property
    def nbytes(self) -> int: ...


DecodedT = TypeVar("DecodedT", bound=Decoded)


class MediaCache:
    """Keeps what was decoded first, up to a size. Nothing goes for something else: all are asked for equally often.

    Args:
      size: bytes; 0 keeps nothing.
    """

    def __init__(self, size: int):
        self.size, self.held = size, 0
        self._kept: dict[Hashable, Any] = {}
        self._lock = threading.Lock()  # several threads of a process load samples

    def get(self, key: Hashable, decode: Callable[[], DecodedT]) -> DecodedT:
        """What `decode` gives, or gave. Nobody may change it."""
        if key in self._kept:
            return self._kept[key]
        value = decode()
        with self._lock:
            if key not in self._kept and self.held + value.nbytes <= self.size:
                self._kept[key] = value
                self.held += value.nbytes
        return value
