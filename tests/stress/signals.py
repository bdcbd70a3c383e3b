"""Attacks on training runs at random moments within three seconds of a stage's start.

    python tests/stress/signals.py [--rounds=50] [--seed=0] [--limit=30] [--folder=DIR]

Each round starts the same command on the same workdir and sends SIGINT, SIGTERM or SIGKILL to the process group, the
run or a loader worker. The run has to end within `limit` seconds (on a busy machine one that takes up to four times as
long does not end the script), after SIGINT and SIGTERM with exit code 75. Where a worker was killed the run has to go
on to the next checkpoint; SIGTERM ends it a little later. No process may be left alive. When a run is done, its losses
have to be those of a run that nobody disturbed.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.recipes import command, environment  # noqa: E402
from support.small import DATA  # noqa: E402

ARG = "tiny,scale=0.03"
EXTRA = (
    "--config.checkpoint.save_every=5", "--config.data.workers=2", "--config.stages[0].steps=12",
    "--config.stages[3].steps=24",
    *(f"--config.stages[{stage}].batch_size={rows}" for stage, rows in enumerate((8, 8, 8, 4))),
)  # fmt: skip
SECONDS = 3.0  # within a stage's start
ATTACKS = ("SIGINT to the group", "SIGKILL to a worker", "SIGKILL to all", "SIGTERM to the group", "SIGTERM to the run")


class Failed(Exception):
    """What a run did that it must not."""


class Run:
    """A run in a process group of its own; its output is collected."""

    def __init__(self, workdir: Path, data: Path):
        self.process = subprocess.Popen(
            command(workdir, *EXTRA, arg=ARG), cwd=ROOT, env=environment(data), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def workers(self) -> list[int]:
        found = []
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in file.read_text().split() if b"spawn_main" in _command_line(child)]
            except OSError:
                continue
        return found

    def wait(self, seconds: float) -> int:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            workers = self.workers()
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Failed(f"still alive after {seconds:.0f} s, with workers {workers}:\n{self.text}") from None
        self.reader.join(5)
        if self.reader.is_alive():  # a worker holds the output open
            raise Failed("a process of the run is left alive")
        return code

    def wait_for(self, condition: Callable[[], bool], otherwise: str, seconds: float = 300) -> None:
        """Waits until it holds or the run is done."""
        deadline = time.monotonic() + seconds
        while not condition() and self.process.poll() is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                raise Failed(f"{otherwise} within {seconds:.0f} s:\n{self.text}")
            time.sleep(0.02)
        if self.process.poll() not in (None, 0):
            raise Failed(f"{otherwise}; ended with {self.process.returncode}:\n{self.text}")

    def send(self, number: int, pid: int | None = None) -> None:
        with contextlib.suppress(ProcessLookupError):
            if pid is None:
                os.killpg(self.process.pid, number)
            else:
                os.kill(pid, number)


def _command_line(pid: int | str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def losses(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    if not (workdir / "metrics.jsonl").exists():
        return curves
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        curves.setdefault(entry["stage"], []).append((entry["step"], entry["loss"]))
    return curves


def saved(workdir: Path) -> set[str]:
    """Checkpoints that are whole, of any stage."""
    return {str(path) for path in workdir.glob("*/checkpoints/*") if path.name.isdigit()}


def begun(run: Run, workdir: Path, before: set[str]) -> bool:
    """Whether a stage has started in this run."""
    started = {path.parent.name for path in workdir.glob("*/checkpoints")} - before
    return bool(started) or "continuing from step" in run.text


def attack(kind: str, workdir: Path, data: Path, rng: random.Random, limit: float) -> tuple[float, bool]:
    """One round.

    Returns:
      Seconds that the run took to end, and whether it was done before the attack.

    Raises:
      Failed: it ended otherwise than it must.
    """
    before = {path.parent.name for path in workdir.glob("*/checkpoints")}
    run = Run(workdir, data)
    run.wait_for(lambda: begun(run, workdir, before), "no stage began")
    if run.process.poll() == 0:
        return 0.0, True
    known = saved(workdir)
    time.sleep(rng.uniform(0, SECONDS))
    number = getattr(signal, kind.split()[0])
    if kind == "SIGKILL to a worker":
        while not (workers := run.workers()) and run.process.poll() is None:
            time.sleep(0.01)
        if workers:
            run.send(signal.SIGKILL, rng.choice(workers))
        run.wait_for(lambda: len(saved(workdir) - known) > 0, "no checkpoint as a worker was killed")
        time.sleep(rng.uniform(0, SECONDS))
        number = signal.SIGTERM
    attacked = time.monotonic()
    run.send(number, None if kind.endswith(("group", "all")) else run.process.pid)
    code = run.wait(4 * limit)
    took = time.monotonic() - attacked
    expected = {-signal.SIGKILL} if kind == "SIGKILL to all" else {75}
    if code == 0:  # it was about to end
        return took, True
    if code not in expected:
        raise Failed(f"exit code {code} in place of {expected}:\n{run.text}")
    if "Traceback" in run.text:
        raise Failed(f"a traceback:\n{run.text}")
    if code == 75 and "interrupted: " not in run.text:
        raise Failed(f"75 without a word:\n{run.text}")
    return took, False


def finish(workdir: Path, data: Path, expected: dict[str, list[tuple[int, float]]]) -> None:
    run = Run(workdir, data)
    if run.wait(600) != 0:
        raise Failed(f"the last start ended with {run.process.returncode}:\n{run.text}")
    if losses(workdir) != expected:
        raise Failed("other losses than those of a run that nobody disturbed")


def stress(folder: Path, data: Path, rounds: int, seed: int, limit: float) -> Counter:
    """All rounds, by turns of the attacks; counts them.

    Raises:
      Failed: names the round.
    """
    rng = random.Random(seed)
    undisturbed = folder / "undisturbed"
    run = Run(undisturbed, data)
    if run.wait(600) != 0:
        raise Failed(f"undisturbed:\n{run.text}")
    expected = losses(undisturbed)
    kinds, workdir, runs, times = Counter(), folder / "run-0", 1, []
    for number in range(rounds):
        kind = ATTACKS[number % len(ATTACKS)]
        try:
            took, done = attack(kind, workdir, data, rng, limit)
            if done and losses(workdir) != expected:
                raise Failed("other losses than those of a run that nobody disturbed")
        except Failed as failure:
            raise Failed(f"round {number}, {kind}: {failure}") from None
        kinds[f"{kind}{' (done before)' if done else ''}"] += 1
        times.append(took)
        stand = {stage: len(curve) for stage, curve in losses(workdir).items()}
        _say(f"{number:3}  {kind:22} {took:5.1f} s  load {os.getloadavg()[0]:.1f}  {stand}{' done' if done else ''}")
        if done:
            workdir, runs = folder / f"run-{runs}", runs + 1
    finish(workdir, data, expected)
    slow = sum(took > limit for took in times)
    _say(f"{rounds} rounds over {runs} runs to equal losses: {dict(kinds)}")
    _say(f"the slowest took {max(times):.1f} s to end")
    if slow:
        raise Failed(f"{slow} took more than {limit:.0f} s")
    return kinds


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds in which a run has to end")
    parser.add_argument("--folder", type=Path, help="where the runs go and stay (default: a temporary folder)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="vlvm_jax-stress-"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    from vlvm_jax.data.embedded import shapes

    shapes.ensure(shapes.ShapesOptions.model_validate(DATA), folder / "data")
    try:
        stress(folder, folder / "data", options.rounds, options.seed, options.limit)
    except Failed as failure:
        sys.exit(f"{failure}\nthe runs are in {folder}")
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
