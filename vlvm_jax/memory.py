"""Freed memory that goes back to the system: glibc keeps pieces for later, in each thread's pool. Elsewhere a no-op."""

import ctypes
import os
from typing import Any

_C: Any = ctypes.CDLL(None) if os.name == "posix" else None
_M_MMAP_THRESHOLD = -3


def total() -> int:
    """Bytes of this machine's memory; a great many where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 1 << 60


def give_back() -> None:
    """Returns what was freed so far."""
    if hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)


def give_back_large(size: int = 1 << 20) -> None:
    """From now on returns pieces of at least this many bytes as soon as they are freed."""
    if hasattr(_C, "mallopt"):
        _C.mallopt(_M_MMAP_THRESHOLD, size)
