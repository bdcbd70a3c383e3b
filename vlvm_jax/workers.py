"""What every worker process of the data path does first, and how a command over such workers is stopped."""

import concurrent.futures
import contextlib
import itertools
import mmap
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import reduction, resource_tracker
from typing import Any, Generic, TypeVar

from vlvm_jax import memory
from vlvm_jax.errors import InputError, Interrupted

SPAWN = multiprocessing.get_context("spawn")  # forking a process in which jax runs threads can deadlock
# Left to the parent. Schedulers and terminals send them to the whole process group; workers end when the parent does.
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
MadeT = TypeVar("MadeT")
ValueT = TypeVar("ValueT")
_CLIPS = itertools.count(1)


def release_memory(every: int = 16) -> None:
    """To be called after each clip; every so often gives back what the C library keeps of the memory of those before.

    FFmpeg's buffers come in many sizes: a worker would grow for as long as it lives.
    """
    if next(_CLIPS) % every == 0:
        memory.give_back()


class Aside(Generic[ValueT]):
    """A value that worker processes read from a file without a name, which is gone when its last process is.

    What a new process is started with goes through a pipe of 64 KiB whose other end the parent holds too: if the
    process dies before it has read more than that, the parent waits for ever.

    Raises:
      InputError: the folder for temporary files has no room.
    """

    def __init__(self, value: ValueT):
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as workers may start
            pickle.dump(value, self._file, pickle.HIGHEST_PROTOCOL)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"{tempfile.tempdir or 'TMPDIR'}: no room for what worker processes are to read ({error.strerror}); "
                "set TMPDIR to a folder with more, or config.data.workers to 0"
            ) from None

    def __reduce__(self):
        return _Passed, (reduction.DupFd(self._file.fileno()),)


class _Passed:
    """An `Aside` in a worker."""

    def __init__(self, descriptor: Any):
        self._descriptor = descriptor.detach()

    def load(self) -> Any:
        with os.fdopen(self._descriptor, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return pickle.loads(content)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Signals that are `LEFT_TO_PARENT` are handled after what is within; processes started within inherit that."""
    noted: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # where Python's handlers run, whatever thread is blocked
        installed = {number: signal.getsignal(number) for number in LEFT_TO_PARENT}
        handlers = {number: handler for number, handler in installed.items() if callable(handler)}
        for number in handlers:
            signal.signal(number, lambda number, _frame: noted.append(number))
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in noted:
            signal.raise_signal(number)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes that are started within get none of the signals until `follow_parent` ignores them.

    Nor does a handler raise here between a process's start and the moment its parent knows of it.
    """
    with postponed():
        resource_tracker.ensure_running()  # now: starting a process would start it and unblock SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
        yield


class _Process(multiprocessing.context.SpawnProcess):
    """A process that ends when it is told to: a pool of which one has died ends the others by a SIGTERM they ignore."""

    def terminate(self) -> None:
        self.kill()


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


class _Pool(concurrent.futures.ProcessPoolExecutor):
    """A pool whose processes, which it starts as work is submitted, are shielded."""

    def submit(self, fn, /, *args, **kwargs):
        with shielded():
            return super().submit(fn, *args, **kwargs)


@contextlib.contextmanager
def pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple = ()
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Processes that follow this one. Whoever leaves early drops the work that has not begun.

    Args:
      initializer, initargs: called in each first. What may be large, goes as `Aside`.

    Raises:
      Interrupted: one of them died.
    """
    with _Pool(workers, _Context(), _initialize, (initializer, initargs)) as executor:
        try:
            yield executor
        except BrokenProcessPool:
            raise Interrupted("a worker process died, perhaps for lack of memory (fewer workers take less)") from None
        finally:
            executor.shutdown(cancel_futures=True)


def _initialize(initializer: Callable[..., None] | None, initargs: tuple) -> None:
    follow_parent()
    if initializer is not None:
        initializer(*initargs)


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
    # Without locks, which a worker that is killed would keep: each part counts for itself.
    counts, stop = SPAWN.RawArray("q", len(todo)), SPAWN.RawValue("b", 0)
    with pool(min(workers, len(todo)), _share, (Aside(make), counts, stop)) as processes:
        try:
            left = {processes.submit(_work, slot, index) for slot, index in enumerate(todo)}
            while left:
                finished, left = concurrent.futures.wait(left, 0.2, concurrent.futures.FIRST_COMPLETED)
                progress(sum(counts))
                for future in finished:
                    yield future.result()
        finally:
            stop.value = 1


_shared: tuple[Callable[[int, Callable[[], None]], Any], Any, Any] | None = None  # in a worker


def _share(make: _Passed, counts: Any, stop: Any) -> None:
    """Keeps what makes parts, how many records of each are done, and whether to stop."""
    global _shared
    _shared = make.load(), counts, stop


def _work(slot: int, index: int) -> Any:
    assert _shared is not None
    make, counts, stop = _shared

    def tick() -> None:
        counts[slot] += 1
        if stop.value:
            raise Interrupted("stopped")

    return make(index, tick)


def follow_parent() -> None:
    """Leaves signals to the parent, and ends when it does, also when it was killed.

    A signal to the whole process group must not take workers away from under a parent that is about to save.
    """
    for number in LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
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
