"""What every worker process of the data path does first, and how a command over such workers is stopped."""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vlvm_jax import memory
from vlvm_jax.errors import Interrupted

SPAWN = multiprocessing.get_context("spawn")  # forking a process in which jax runs threads can deadlock
MadeT = TypeVar("MadeT")
_CLIPS = itertools.count(1)


def release_memory(every: int = 16) -> None:
    """To be called after each clip; every so often gives back what the C library keeps of the memory of those before.

    FFmpeg's buffers come in many sizes: a worker would grow for as long as it lives.
    """
    if next(_CLIPS) % every == 0:
        memory.give_back()


@contextlib.contextmanager
def pool(
    workers: int, begin: Callable[..., None] | None = None, arguments: tuple = ()
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Processes that follow this one. Whoever leaves early drops the work that has not begun.

    Args:
      begin, arguments: called in each first.

    Raises:
      Interrupted: one of them died.
    """
    with concurrent.futures.ProcessPoolExecutor(workers, SPAWN, _begin, (begin, arguments)) as executor:
        try:
            yield executor
        except BrokenProcessPool:
            raise Interrupted("a worker process died, perhaps for lack of memory (fewer workers take less)") from None
        finally:
            executor.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None] | None, arguments: tuple) -> None:
    follow_parent()
    if begin is not None:
        begin(*arguments)


def made(
    make: Callable[[int, Callable[[], None]], MadeT],
    todo: Sequence[int],
    workers: int,
    progress: Callable[[int], None],
) -> Generator[MadeT, None, None]:
    """The parts of a piece of work as they are finished, whichever is first.

    Args:
      make: makes the part of this number, and calls its second argument after each record. Travels to workers.
      workers: processes; 0 works in this one.
      progress: called with the records that are done, a few times a second; what it raises ends the work.

    Raises:
      Interrupted: a worker process died.
    """
    if not workers or not todo:
        ticks = itertools.count(1)
        for index in todo:
            yield make(index, lambda: progress(next(ticks)))
        return
    count, stop = SPAWN.Value("q", 0), SPAWN.Event()
    with pool(min(workers, len(todo)), _share, (count, stop)) as processes:
        try:
            left = {processes.submit(_work, make, index) for index in todo}
            while left:
                finished, left = concurrent.futures.wait(left, 0.2, concurrent.futures.FIRST_COMPLETED)
                progress(count.value)
                for future in finished:
                    yield future.result()
        finally:
            stop.set()


_shared: tuple[Any, Any] | None = None  # in a worker: how many records are done, and whether to stop


def _share(count: Any, stop: Any) -> None:
    global _shared
    _shared = count, stop


def _work(make: Callable[[int, Callable[[], None]], MadeT], index: int) -> MadeT:
    assert _shared is not None
    count, stop = _shared

    def tick() -> None:
        with count.get_lock():
            count.value += 1
        if stop.is_set():
            raise Interrupted("stopped")

    return make(index, tick)


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
