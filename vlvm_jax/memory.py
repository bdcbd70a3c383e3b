"""What becomes of freed memory: glibc keeps small pieces for later, in each thread's pool, and returns large ones at
once. Elsewhere a no-op."""

import ctypes
import os
from typing import Any

_C: Any = ctypes.CDLL(None) if os.name == "posix" else None
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = (1 << 31) - 1


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


def keep_freed() -> None:
    """From now on keeps freed pieces of any size for what is allocated next.

    A train step on a CPU frees its temporaries and allocates as many at the next step. Returned and mapped again, all
    their pages are cleared each time.
    """
    if hasattr(_C, "mallopt"):
        _C.mallopt(_M_MMAP_MAX, 0)
        _C.mallopt(_M_TRIM_THRESHOLD, _NEVER)
