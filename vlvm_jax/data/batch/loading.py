"""Samples as they are loaded, in order: by threads of this process, or by worker processes.

Grain's own worker processes are not used: one that is killed takes the run with it, or leaves it waiting for ever at a
lock or for the rest of a message, and its shared memory outlives a run that is killed. Here each worker has a socket of
its own, which tells at once that it died, and another continues at the same sample. Samples cross in files without
names, which go with the last process that holds them.
"""

import collections
import contextlib
import itertools
import mmap
import os
import pickle
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import util
from multiprocessing.pool import ExceptionWithTraceback  # pyright: ignore[reportAttributeAccessIssue]
from multiprocessing.process import BaseProcess
from typing import IO, Any

import grain
from absl import logging

from vlvm_jax.data.batch.tuning import Loading
from vlvm_jax.errors import InputError, Interrupted
from vlvm_jax.workers import SPAWN, Aside, follow_parent, shielded

DEATHS = 3  # of workers in a row at the same sample, after which no other is started
_IDLE = -1  # in place of a sample's number
_IN_FLIGHT = 4  # blocks of a worker; each holds a file open, of which a user may have so many
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def loaded(
    samples: grain.MapDataset, loading: Loading, rows: int, named: Callable[[int], str] = "sample {}".format
) -> grain.IterDataset:
    """The samples, whatever they are, as many ahead as `loading` says.

    A sample at which worker processes keep dying raises `InputError`.

    Args:
      rows: of a batch; no more than two batches wait to be read by threads.
      named: what messages call the sample of a number.
    """
    waiting = min(loading.samples, 2 * rows)
    if not loading.workers:
        return samples.to_iter_dataset(_read(loading.threads, waiting))
    return _FromWorkers(samples, loading, named)


def _read(threads: int, waiting: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, threads, waiting))


class _Blocks:
    """Samples that cross as one, for what costs time for each that crosses; a source of Grain."""

    def __init__(self, samples: grain.MapDataset, together: int):
        self.samples, self.together = samples, together

    def __len__(self) -> int:
        return -(-len(self.samples) // self.together)

    def __getitem__(self, index: int) -> list[Any]:
        start = int(index) * self.together
        return [self.samples[number] for number in range(start, min(start + self.together, len(self.samples)))]


class _FromWorkers(grain.IterDataset):
    def __init__(self, samples: grain.MapDataset, loading: Loading, named: Callable[[int], str]):
        super().__init__()
        self._blocks, self._loading, self._named = _Blocks(samples, loading.together), loading, named

    def __iter__(self) -> grain.DatasetIterator:
        return _Received(self._blocks, self._loading, self._named)


class _Received(grain.DatasetIterator):
    """Starts the workers at the first sample, and another where one has died."""

    def __init__(self, blocks: _Blocks, loading: Loading, named: Callable[[int], str]):
        super().__init__()
        self._blocks, self._count, self._named = blocks, loading.workers, named
        self._read = _read(loading.threads, max(1, loading.samples // loading.together))
        self._aside: Aside[_Blocks] | None = None
        self._workers: dict[int, _Worker] = {}  # by their turn: the number of a block, modulo how many they are
        self._taken = 0
        self._block: collections.deque[Any] = collections.deque()

    def __next__(self) -> Any:
        if self._closed:
            raise ValueError("the iterator is closed")
        if not self._block:
            if self._taken >= len(self._blocks.samples):
                self._end_workers()
                raise StopIteration
            number, skip = divmod(self._taken, self._blocks.together)
            self._block.extend(self._receive(number)[skip:])
        self._taken += 1
        return self._block.popleft()

    def _receive(self, number: int) -> list[Any]:
        """The block of this number, the one after the last."""
        if not self._workers:
            for first in range(number, number + self._count):
                self._start(first, self._read)
        suspects: set[int] | None = None  # samples that were being loaded at every death
        for deaths in itertools.count(1):
            worker = self._workers[number % self._count]
            try:
                return worker.receive()
            except _DiedError as death:
                suspects = worker.busy() if suspects is None else suspects & worker.busy()
                if deaths == DEATHS:
                    raise self._hopeless(death, suspects) from None
                logging.warning("A worker process died (%s); another continues at the same sample.", death)
                # Before anything is blamed, samples are loaded one at a time: so it is known which one it was.
                self._start(number, _read(1, 1) if deaths == DEATHS - 1 else self._read)
        raise AssertionError

    def _hopeless(self, death: "_DiedError", suspects: set[int]) -> InputError | Interrupted:
        if not suspects:
            return Interrupted(
                f"{DEATHS} worker processes in a row died ({death}), not always at the same sample, perhaps for lack "
                "of memory (fewer config.data.workers take less)"
            )
        named = ", ".join(map(self._named, sorted(suspects)))
        return InputError(
            f"{named}: {DEATHS} worker processes in a row died ({death}) while they loaded it: its media crash what "
            "decodes them, or need more memory than there is; remove the record, re-encode its media, or, for lack of "
            "memory, set config.data.workers lower"
        )

    def _start(self, first: int, read: grain.ReadOptions) -> None:
        """Starts a worker at this block, in the place of the one whose turn it was."""
        turn = first % self._count
        if turn in self._workers:
            self._workers.pop(turn).end()
        if self._closed or util.is_exiting():
            raise ValueError("the iterator is closed")
        self._aside = self._aside or Aside(self._blocks)
        self._workers[turn] = _Worker(self._aside, first, self._count, read)

    def get_state(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        self._end_workers()
        self._block.clear()
        self._taken = state["taken"]

    def close(self) -> None:
        super().close()
        self._end_workers()

    def _end_workers(self) -> None:
        while self._workers:
            self._workers.popitem()[1].end()


class _DiedError(Exception):
    """A worker has ended; says how."""


class _Worker:
    """A process that makes every `step`-th block from `first` on, as many ahead as `read` says."""

    def __init__(self, blocks: Aside[_Blocks], first: int, step: int, read: grain.ReadOptions):
        self._channel, theirs = socket.socketpair()
        # What each thread is loading. Without a lock, which a worker that is killed would keep.
        assert isinstance(read.num_threads, int)
        self._loading = SPAWN.RawArray("q", [_IDLE] * max(1, read.num_threads))
        with theirs:  # once it is closed here, the channel ends with the worker
            self._process = SPAWN.Process(
                target=_work,
                args=(theirs, blocks, first, step, read, self._loading),
                daemon=True,
                name=f"samples-{first % step}",
            )
            with shielded():
                self._process.start()
        # As this process ends: before multiprocessing waits for a child that ignores its SIGTERM.
        self.end = util.Finalize(self, _end, (self._process, self._channel), exitpriority=1)

    def receive(self) -> Any:
        """The next block. Raises what making it raised.

        Raises:
          _DiedError: the process ended instead.
        """
        try:
            descriptor = _receive_descriptor(self._channel)
        except OSError:
            descriptor = None
        if descriptor is None:
            raise _DiedError(self._how())
        with contextlib.suppress(OSError):  # where it has ended, what it sent before is good
            self._channel.send(b"1")
        with os.fdopen(descriptor, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            block = pickle.loads(content)
        if isinstance(block, BaseException):
            raise block
        return block

    def busy(self) -> set[int]:
        """The samples that it is loading, or was when it died."""
        return set(self._loading) - {_IDLE}

    def _how(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _end(process: BaseProcess, channel: socket.socket) -> None:
    """Ends a worker at once: it has nothing to save."""
    process.kill()
    process.join(5)
    channel.close()


def _receive_descriptor(channel: socket.socket) -> int | None:
    """A file of the other side's, or None at the end."""
    message, descriptors, _, _ = socket.recv_fds(channel, 1, 1, _CLOSE_ON_EXEC)
    return descriptors[0] if message else None


class _Noted:
    """Samples of which those that are being loaded are noted where the parent reads it."""

    def __init__(self, samples: grain.MapDataset, loading: Any):
        self._samples, self._loading = samples, loading
        self._places, self._local = itertools.count(), threading.local()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Any:
        if not hasattr(self._local, "place"):  # of this thread
            self._local.place = next(self._places) % len(self._loading)
        self._loading[self._local.place] = number
        try:
            return self._samples[number]
        finally:
            self._loading[self._local.place] = _IDLE


def _work(channel: socket.socket, passed: Any, first: int, step: int, read: grain.ReadOptions, loading: Any) -> None:
    """What a worker does."""
    follow_parent()
    allowed = threading.Semaphore(_IN_FLIGHT)
    threading.Thread(target=_count_received, args=(channel, allowed), daemon=True).start()
    try:
        blocks = passed.load()
        blocks.samples = _Noted(blocks.samples, loading)
        for block in grain.MapDataset.source(blocks)[first::step].to_iter_dataset(read):
            allowed.acquire()
            _send(channel, block)
    except Exception as error:
        _send(channel, ExceptionWithTraceback(error, error.__traceback__))
    signal.pause()  # until the parent has what was sent, and ends this process


def _count_received(channel: socket.socket, allowed: threading.Semaphore) -> None:
    try:
        while channel.recv(1):
            allowed.release()
    finally:
        os._exit(1)  # the parent has gone


def _send(channel: socket.socket, value: Any) -> None:
    with _nameless() as file:
        pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)
        file.flush()
        try:
            socket.send_fds(channel, [b"1"], [file.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)  # the parent has gone


def _nameless() -> IO[bytes]:
    """A file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("samples"), "w+b")
    return tempfile.TemporaryFile()
