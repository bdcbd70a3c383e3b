"""What manifests cost a save, what checking costs a restore, and what the bound on queued steps costs training.

usage: python -m benchmarks.checkpoints [--gib=2] [--rounds=5] [--part=tiny|large|loop|all] [--folder=DIR]

  tiny   the tiny recipe's parameters, its optimizer's state and config
  large  parameters and moments of `--gib` together, random
  loop   steps of the tiny recipe's last stage, 10 with two queued at most and 10 without a bound, in turn

Saves with and without a manifest take turns. `manifest` is what making it takes over what the save takes, also where it
overlaps with writing; `check` is the time to compare the saved step with its manifest, its files in the page cache.
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from configs import ftfv
from vlvm_jax import config as config_lib
from vlvm_jax import manifest
from vlvm_jax.config import Config, build
from vlvm_jax.evaluation import final
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import loop, stages
from vlvm_jax.training.checkpoint import StageCheckpoints
from vlvm_jax.weights import checksums

_BLOCK, _UNBOUND = 10, 10**9


class Position:
    """Stands for the data's."""

    async def save(self, directory: Any):
        async def write() -> None:
            folder = await directory.await_creation()
            (folder / "reader_0-of-1.json").write_text("{}")

        return write()

    async def load(self, directory: Any):
        raise AssertionError("only saves are timed")


class Stopwatch:
    """Adds up what making manifests takes: CPU time of the threads that ask for it, and time by the clock.

    Large states are read by more threads, whose CPU time is not in it. What is measured while other items are still
    being written counts as well, so that a save waits for less than `passed`.
    """

    def __init__(self):
        self.busy = self.passed = 0.0
        self._lock = threading.Lock()  # items are measured in threads of their own
        for name in ("_add", "_commit"):
            setattr(checksums.StepManifest, name, self._timed(getattr(checksums.StepManifest, name)))

    def _timed(self, method: Any) -> Any:
        def timed(*args: Any) -> None:
            busy, passed = time.thread_time(), time.perf_counter()
            method(*args)
            with self._lock:
                self.busy += time.thread_time() - busy
                self.passed += time.perf_counter() - passed

        return timed


def tiny_state() -> tuple[dict[str, jax.Array], Any, dict]:
    config = build(Config, ftfv.get_config("tiny"))
    shapes = jax.eval_shape(params_lib.join, Model(config.model).abstract())
    drawn = np.random.default_rng(0)
    params = {path: jnp.asarray(drawn.normal(size=a.shape), jnp.float32) for path, a in shapes.items()}
    return params, {"mu": params, "nu": params}, {"stage": "tiny", "config": config_lib.to_json(config)}


def large_state(gib: float) -> tuple[dict[str, jax.Array], Any, dict]:
    """Twelve arrays a third of which are parameters, two thirds moments."""
    drawn, size = np.random.default_rng(0), int(gib * 2**30 / 12 / 4)
    params = {f"decoder/{number}/kernel": jnp.asarray(drawn.random(size, np.float32)) for number in range(4)}
    return params, {"mu": params, "nu": params}, {"stage": "large"}


def measure(name: str, state: tuple, rounds: int, folder: Path) -> None:
    params, moments, config = state
    watch, without = Stopwatch(), checksums.StepManifest.context
    times: dict[bool, list[float]] = {True: [], False: []}
    busy: dict[bool, list[float]] = {True: [], False: []}
    shares, clock, checks = [], [], []
    checkpoints = StageCheckpoints(folder / name, keep=1)
    for step in range(2 * rounds + 1):
        noted = step % 2 == 0
        setattr(checksums.StepManifest, "context", without if noted else lambda _self, context: context)  # noqa: B010
        watch.busy = watch.passed = 0.0
        start, cpu = time.perf_counter(), time.process_time()
        checkpoints.save(
            step, params=params, opt_state=moments, rng=jnp.zeros(2, jnp.uint32), data=Position(), config=config
        )
        checkpoints.wait()
        taken, cpu = time.perf_counter() - start, time.process_time() - cpu
        if step:  # the first one warms up
            times[noted].append(taken)
            busy[noted].append(cpu)
        if step and noted:
            shares.append(watch.busy / cpu)
            clock.append(watch.passed / taken)
            start = time.perf_counter()
            assert manifest.check(str(folder / name / str(step)), unlisted=checksums.UNLISTED) == []
            checks.append(time.perf_counter() - start)
    size = sum(file.stat().st_size for file in (folder / name / str(step)).rglob("*") if file.is_file())
    checkpoints.close()
    with_it, plain = statistics.median(times[True]), statistics.median(times[False])
    cpu_ratio = statistics.median(busy[True]) / statistics.median(busy[False])
    print(
        f"{name}: {size / 2**20:,.1f} MiB; save {with_it:.3f} s with a manifest ({_range(times[True])}), {plain:.3f} s "
        f"without ({_range(times[False])}): {with_it / plain:.3f}, of CPU time {cpu_ratio:.3f}; "
        f"manifest {statistics.median(shares):.1%} of a save's CPU time ({_range(shares)}), "
        f"{statistics.median(clock):.1%} of its time by the clock; check {statistics.median(checks):.3f} s",
        flush=True,
    )


def _range(values: list[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}"


def measure_loop(rounds: int, folder: Path) -> None:
    """One run whose bound changes every `_BLOCK` steps; the device is idle at every change."""
    values = ftfv.get_config("tiny")
    stage = values.stages[-1]
    stage.update(steps=2 * _BLOCK * (rounds + 1), log_every=10, batch_size=16)
    values.update(tensorboard=False, evals=[], stages=[stage])
    values.data.embedded = {"train_images": 60, "train_videos": 48, "heldout_images": 4, "heldout_videos": 8}
    bound, add, start = loop.IN_FLIGHT, loop._Log.add, 0.0
    times: dict[int, list[float]] = {bound: [], _UNBOUND: []}

    def timed(log: Any, step: int, metrics: dict[str, jax.Array]) -> None:
        nonlocal start
        add(log, step, metrics)
        if step % _BLOCK == 0:
            jax.block_until_ready(metrics)
            times[loop.IN_FLIGHT].append((time.perf_counter() - start) / _BLOCK)
            loop.IN_FLIGHT = _UNBOUND if bound == loop.IN_FLIGHT else bound
            start = time.perf_counter()

    loop._Log.add = timed
    with StopSignal() as stop:
        stages.run(build(Config, values), epath.Path(folder / "loop"), stop, final.evaluate)
    few, many = times[bound][1:], times[_UNBOUND][1:]
    ratios = [one / other for one, other in zip(few, many, strict=True)]
    print(
        f"loop: a step takes {statistics.median(few):.4f} s with {bound} queued, {statistics.median(many):.4f} s "
        f"without a bound; ratio of neighbours {statistics.median(ratios):.3f} ({_range(ratios)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=["tiny", "large", "loop", "all"], default="all")
    parser.add_argument("--folder", type=Path, default=None, help="where to save; needs room for three states")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.part in ("tiny", "all"):
            measure("tiny", tiny_state(), args.rounds, Path(folder))
        if args.part in ("large", "all"):
            measure("large", large_state(args.gib), args.rounds, Path(folder))
        if args.part in ("loop", "all"):
            measure_loop(args.rounds, Path(folder))


if __name__ == "__main__":
    main()
