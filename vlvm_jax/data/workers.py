"""What every worker process of the data path does first, and how a command over such workers is stopped."""

import contextlib
import ctypes
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from vlvm_jax.errors import Interrupted

_C: Any = ctypes.CDLL(None) if os.name == "posix" else None
_CLIPS = itertools.count(1)


def release_memory(every: int = 16) -> None:
    """To be called after each clip; every so often gives back what the C library keeps of the memory of those before.

    FFmpeg's buffers come in many sizes. glibc holds on to the pieces: a worker grows by some MB each hundred clips, for
    as long as it lives. Elsewhere than on glibc it does nothing.
    """
    if next(_CLIPS) % every == 0 and hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)


def follow_parent() -> None:
    """Leaves signals to the parent, and ends when it does, also when it was killed.

    A signal to the whole process group must not take workers away from under a parent that is about to save.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def stoppable(message: str) -> Iterator[None]:
    """SIGTERM and SIGINT end the work within as `Interrupted`, at once."""

    def stop(_number: int, _frame: object) -> None:
        raise Interrupted(message)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
