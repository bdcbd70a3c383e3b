"""How many workers load samples and how many samples may wait, by the machine's cores and memory and a measurement.

None of it changes which samples come when. Grain's `pick_performance_config` weighs the size of samples alone; what
decides here is how long they take.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from vlvm_jax.data.record import evenly
from vlvm_jax.data.sample.assemble import Sample

BATCHES_PER_SECOND = 10  # more than the models here use up
PROBES = 8
PROBE_SECONDS = 2.0
MAX_THREADS = 8
MAX_TOGETHER = 8
BLOCK_BYTES = 1 << 20  # of samples that cross together at most, unless one alone has more
WORKER_BYTES = 300 << 20  # of a worker before it loads anything: Python, Grain, PyAV, a tokenizer

_CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Loading:
    """How samples are loaded.

    Attributes:
      workers: processes; 0 for threads of this one.
      threads: that load at the same time in each of them, where samples wait for storage.
      samples: that may wait, of each worker or of this process.
      batches: that may wait.
      together: samples that cross from a worker at once.
    """

    workers: int
    threads: int
    samples: int
    batches: int
    together: int = 1


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one sample on the average: seconds until it is there, seconds of a core, and the share of a row it fills."""

    wall: float
    core: float
    row: float


def plan(
    workers: int | Cost,
    *,
    sample_bytes: int,
    rows: int,
    pack: bool,
    cache_bytes: int = 0,
    cores: int | None = None,
    memory: int | None = None,
) -> Loading:
    """Chooses the workers where what a sample costs is given for their number, and bounds what waits: all of it
    together takes no more than half of the free memory.

    Args:
      sample_bytes: of the largest sample.
      rows: of a batch.
      cache_bytes: that each worker may keep.
      cores, memory: of this machine, in bytes; default: what this process may use.
    """
    cores = usable_cores() if cores is None else cores
    memory = (free_memory() if memory is None else memory) // 2
    if isinstance(workers, Cost):
        cost = workers
        rate = BATCHES_PER_SECOND * rows * (1 / cost.row if pack else 1)
        if rate * cost.core < 0.2:  # a fifth of a core is not worth a process
            workers, threads = 0, _between(2, math.ceil(rate * cost.wall), MAX_THREADS)
        else:
            affordable = memory // (WORKER_BYTES + cache_bytes + 4 * sample_bytes)
            workers = _between(1, math.ceil(rate * cost.core), min(cores - 1, affordable))
            threads = _between(1, round(cost.wall / cost.core), MAX_THREADS)
    else:
        threads = 1 if workers else 2
    samples = _between(1, memory // (4 * sample_bytes * max(workers, 1)), (4 if workers else 2) * rows)
    return Loading(
        workers,
        threads,
        samples=samples,
        batches=_between(1, memory // (4 * sample_bytes * rows), 2),
        together=_between(1, BLOCK_BYTES // sample_bytes, min(MAX_TOGETHER, samples)) if workers else 1,
    )


def _between(low: int, value: int, high: int) -> int:
    """At most `high`, but never less than `low`."""
    return max(low, min(value, high))


def measure(load: Callable[[int], Sample], records: int, length: int, frames: int) -> Cost:
    """Loads a spread of the records, for two seconds at most. The first one does not count: it opens the tokenizer."""
    chosen = evenly(records, PROBES)
    load(chosen[0])
    wall = core = row = 0.0
    loaded = 0
    for index in chosen:
        started = time.perf_counter(), time.thread_time()
        sample = load(index)
        wall += time.perf_counter() - started[0]
        core += time.thread_time() - started[1]
        row += max(len(sample["token_ids"]) / length, len(sample["frames"]) / frames)
        loaded += 1
        if wall > PROBE_SECONDS:
            break
    return Cost(wall / loaded, core / loaded, max(row / loaded, 1 / length))


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, and the quota of its container."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    return max(1, min(bound, int(quota) // int(period))) if quota.isdigit() else bound


def free_memory() -> int:
    """Bytes that this process and its workers may still take."""
    places = []
    fields = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines())
    if "MemAvailable" in fields:
        places.append(int(fields["MemAvailable"].split()[0]) << 10)
    limit = _read(_CGROUP / "memory.max")
    if limit.isdigit():
        places.append(int(limit))
    return min(places, default=4 << 30)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
