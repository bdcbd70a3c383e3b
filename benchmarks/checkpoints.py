"""What manifests cost a save, what checking costs a restore, and what the bound on queued steps costs training.

usage: python -m benchmarks.checkpoints [--gib=2] [--rounds=5] [--part=tiny|large|loop|all] [--folder=DIR]

  tiny   the tiny recipe's parameters, its optimizer's state and config
  large  parameters and moments of `--gib` together, random
  loop   steps of the tiny recipe's last stage, 10 with two queued at most and 10 without a bound, in turn

Three kinds of saves take turns: with a manifest, with the calls that make one but nothing done in them (`hooks`), and
as Orbax does them alone (`plain`). `check` is the time to compare the saved step with its manifest, its files in the
page cache.
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
    """Adds up the CPU time of the threads that make manifests. Large states are read by more threads, whose CPU time is
    not in it."""

    def __init__(self):
        self.busy = 0.0
        self._lock = threading.Lock()  # items are measured in threads of their own
        for name in ("_add", "_commit"):
            setattr(checksums.StepManifest, name, self._timed(getattr(checksums.StepManifest, name)))

    def _timed(self, method: Any) -> Any:
        def timed(*args: Any) -> None:
            busy = time.thread_time()
            method(*args)
            with self._lock:
                self.busy += time.thread_time() - busy

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
    watch = Stopwatch()
    arms = {"manifest": {}, "hooks": dict.fromkeys(("_add", "_commit"), _nothing), "plain": {"context": _as_it_is}}
    own = {attribute: getattr(checksums.StepManifest, attribute) for attribute in ("context", "_add", "_commit")}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    busy: dict[str, list[float]] = {arm: [] for arm in arms}
    shares, checks = [], []
    checkpoints = StageCheckpoints(folder / name, keep=1)
    for step in range(len(arms) * (rounds + 1)):
        arm = list(arms)[step % len(arms)]
        for attribute, method in {**own, **arms[arm]}.items():
            setattr(checksums.StepManifest, attribute, method)
        watch.busy = 0.0
        start, cpu = time.perf_counter(), time.process_time()
        checkpoints.save(
            step, params=params, opt_state=moments, rng=jnp.zeros(2, jnp.uint32), data=Position(), config=config
        )
        checkpoints.wait()
        taken, cpu = time.perf_counter() - start, time.process_time() - cpu
        if step < len(arms):  # the first round warms up
            continue
        times[arm].append(taken)
        busy[arm].append(cpu)
        if arm == "manifest":
            shares.append(watch.busy / cpu)
            start = time.perf_counter()
            assert manifest.check(str(folder / name / str(step)), unlisted=checksums.UNLISTED) == []
            checks.append(time.perf_counter() - start)
    size = sum(file.stat().st_size for file in (folder / name / str(step)).rglob("*") if file.is_file())
    checkpoints.close()
    print(f"{name}: {size / 2**20:,.1f} MiB, {rounds} saves of each kind in turn; medians (range)")
    for arm in arms:
        ratios = [
            statistics.median(one / other for one, other in zip(taken[arm], taken["plain"], strict=True))
            for taken in (times, busy)
        ]
        print(
            f"  {arm:9}{statistics.median(times[arm]):.3f} s ({_range(times[arm])}); over plain, save by save: "
            f"{ratios[0]:.3f}, of CPU time {ratios[1]:.3f}"
        )
    print(
        f"  making the manifest: {statistics.median(shares):.1%} of a save's CPU time ({_range(shares)}); "
        f"check {statistics.median(checks):.3f} s",
        flush=True,
    )


def _nothing(*_: Any) -> None:
    pass


def _as_it_is(_: Any, context: Any) -> Any:
    return context


def _range(values: list[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}"


def measure_loop(rounds: int, folder: Path) -> None:
    """One run whose bound changes every `_BLOCK` steps; the device is idle at every change."""
    values = ftfv.get_config("tiny")
    stage = values.stages[-1]
    stage.update(steps=2 * _BLOCK * (rounds + 1), log_every=10, batch_size=16)
    values.update(tensorboard=False, evals=[], stages=[stage])
    values.data.embedded = {"train_arrangements": 60, "train_clips": 48, "heldout_arrangements": 4, "heldout_clips": 8}
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
