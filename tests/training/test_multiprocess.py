"""Several real processes train one model: the same losses as one, every sample once, and they end together."""

import contextlib
import functools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import xla
from support.recipes import ROOT

from vlvm_jax import manifest

STEPS, ROWS = 40, 4  # of tests/support/one_stage.py
STAGE = "instruct"


class Processes:
    """The same command in several processes with a device each.

    Args:
      data: root of the embedded data set, of each process where they differ.
    """

    def __init__(self, workdir: Path, count: int, *extra: str, data: list[Path], cache: Path):
        self.workdir = workdir
        with contextlib.closing(socket.socket()) as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "vlvm_jax.train",
            "--config=tests/support/one_stage.py",
            f"--workdir={workdir}",
            *extra,
        ]
        self.logs = [Path(f"{workdir}.{place}.log") for place in range(count)]
        self.processes = []
        for place, log in enumerate(self.logs):
            shared = {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(place),
            }  # fmt: skip
            environment = {
                **os.environ,
                **(shared if count > 1 else {}),
                "PYTHONPATH": str(ROOT / "tests"),
                "VLVM_JAX_DATA": str(data[place % len(data)]),
                "XLA_FLAGS": xla.flags(1),
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "NO_COLOR": "1",
            }
            with log.open("w") as file:
                started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
            self.processes.append(started)

    def wait_for_checkpoint(self, step: int) -> None:
        """Returns when the run has saved this step."""
        self._until(lambda: (self.workdir / STAGE / "checkpoints" / str(step)).exists())

    def end(self) -> list[int]:
        """Waits for all; their exit codes."""
        self._until(lambda: all(process.poll() is not None for process in self.processes))
        return [process.returncode for process in self.processes]

    def text(self, place: int) -> str:
        return self.logs[place].read_text()

    def _until(self, ready) -> None:
        deadline = time.monotonic() + 300
        try:
            while not ready():
                ended = [process.poll() for process in self.processes]
                assert None in ended or ready(), f"ended early, {ended}: {self.text(0)}"
                assert time.monotonic() < deadline, "\n".join(self.text(place) for place in range(len(self.logs)))
                time.sleep(0.05)
        except AssertionError:
            for process in self.processes:
                process.kill()
            raise


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def start(data_root, cache):
    return functools.partial(Processes, data=[data_root], cache=cache)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, start):
    """A finished run of one process."""
    run = start(tmp_path_factory.mktemp("alone") / "run", 1)
    assert run.end() == [0], run.text(0)
    return run.workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, start):
    """A run of two processes of which one was killed; both started again on another mesh, and one got SIGTERM.

    The second mesh splits parameters over the processes, and both hold the same rows: they are one reader of the data.
    """
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    run = start(workdir, 2)
    run.wait_for_checkpoint(5)
    run.processes[1].kill()
    codes = run.end()  # the other does not wait for ever
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2, 75), run.text(0)
    saved = max(steps(workdir))
    assert [state["taken"] for state in states(workdir, saved)] == [saved * ROWS // 2] * 2
    run = start(workdir, 2, "--config.mesh.tensor=2")
    run.wait_for_checkpoint(saved + 5)
    run.processes[0].send_signal(signal.SIGSTOP)  # or both could be done before JAX looks for the signal
    run.processes[1].terminate()
    time.sleep(2)
    run.processes[0].send_signal(signal.SIGCONT)
    assert run.end() == [75, 75], run.text(0) + run.text(1)
    assert f"{STAGE}: continuing from step {saved}" in run.text(0)
    assert "continuing with another config.mesh.tensor: 1 there, 2 here" in run.text(0)
    (state,) = states(workdir, max(steps(workdir)))
    assert state["remaining"] == {"start": saved * ROWS, "ahead": []}
    said = [f"interrupted: saved stage {STAGE!r} at step" in run.text(place) for place in range(2)]
    assert said == [True, False]
    return workdir


def steps(workdir: Path) -> list[int]:
    return [int(path.name) for path in (workdir / STAGE / "checkpoints").iterdir() if path.name.isdigit()]


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def states(workdir: Path, step: int) -> list[dict]:
    files = (workdir / STAGE / "checkpoints" / str(step) / "data").glob("reader_*.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda state: state["reader"])


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_processes_continues_to_the_losses_of_one(start, alone, stopped, tmp_path, count):
    """After two meshes of two processes: every step once, with the losses of a run of one process.

    Without packing, and with no sample unusable, a batch is the next `ROWS` samples of the stream for any number of
    processes; only which of its rows is where differs, and with it the order of sums.
    """
    workdir = shutil.copytree(stopped, tmp_path / "run")
    run = start(workdir, count)
    assert run.end() == [0] * count, "".join(map(run.text, range(count)))
    mine, theirs = metrics(workdir), metrics(alone)
    assert [entry["step"] for entry in mine] == list(range(1, STEPS + 1))
    for key in ("tokens", "learned_tokens", "samples"):
        assert [entry[key] for entry in mine] == [entry[key] for entry in theirs]
    assert [entry["loss"] for entry in mine] == pytest.approx([entry["loss"] for entry in theirs], abs=1e-4)
    found = states(workdir, STEPS)
    assert len(found) == count
    assert all(state["remaining"]["ahead"] == [] for state in found)
    assert found[0]["remaining"]["start"] + sum(state["taken"] for state in found) == STEPS * ROWS
    assert all(f"{STAGE}: continuing" not in run.text(place) for place in range(1, count))  # said once


def test_two_processes_answer_every_question_once_as_one_does(start, alone, tmp_path):
    workdir = shutil.copytree(alone, tmp_path / "run")
    (workdir / "summary.json").unlink()
    run = start(workdir, 2)
    assert run.end() == [0, 0], run.text(0) + run.text(1)
    assert f"{STAGE}: done before" in run.text(0)
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (workdir, alone))
    assert mine["eval"] == theirs["eval"]
    assert mine["eval"]["videos"]["questions"] == 11
    assert json.loads((workdir / "run_card.json").read_text())["processes"] == 2


def test_all_agree_on_the_step_before_a_damaged_one(start, tmp_path):
    """Each has noted its own files, and checks a share of all of them."""
    run = start(tmp_path / "run", 2, "--config.stages[0].steps=10")
    assert run.end() == [0, 0], run.text(0) + run.text(1)
    before = metrics(run.workdir)
    step = run.workdir / STAGE / "checkpoints" / "10"
    known = manifest.load((step / manifest.FILE).read_bytes())
    there = {str(file.relative_to(step)) for file in step.rglob("*") if file.is_file()}
    assert known.keys() == there - {manifest.FILE, "commit_success.txt"}
    theirs = [name for name in known if "ocdbt.process_1/d/" in name and known[name].arrays]
    assert theirs
    largest = step / max(theirs, key=lambda name: known[name].size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    run = start(run.workdir, 2, "--config.stages[0].steps=10")
    assert run.end() == [0, 0], run.text(0) + run.text(1)
    everything = run.text(0) + run.text(1)
    assert everything.count("DAMAGED: ") == 1 and largest.name in run.text(0) and "Traceback" not in everything
    assert f"{STAGE}: continuing from step 5" in run.text(0)
    assert sorted(steps(run.workdir)) == [5, 10] and (step.parent / "10.damaged").exists()
    mine = metrics(run.workdir)
    assert [(entry["step"], entry["loss"]) for entry in mine] == [(entry["step"], entry["loss"]) for entry in before]
    for number in (5, 10):
        file = step.parent / str(number) / "data" / "reader_1-of-2.json"
        file.write_text("")
    run = start(run.workdir, 2, "--config.stages[0].steps=10")
    assert run.end() == [2, 2], run.text(0) + run.text(1)
    everything = run.text(0) + run.text(1)
    assert everything.count("error: ") == 1 and "every step is damaged" in everything and "Traceback" not in everything


def test_a_fault_of_one_processs_input_ends_both_with_one_line(start, data_root, tmp_path):
    """Clips that only one process cannot read: the other is waiting for its part of the first step by then."""
    spoilt = shutil.copytree(data_root, tmp_path / "data")
    for clip in spoilt.glob("shapes-*/media/train_clips/*.mp4"):
        clip.write_bytes(b"")
    run = start(tmp_path / "run", 2, data=[data_root, spoilt])
    assert run.end() == [2, 2], run.text(0) + run.text(1)
    everything = run.text(0) + run.text(1)
    assert everything.count("error: ") == 1 and "Traceback" not in everything
    assert "samples of stage 'instruct' cannot be used" in run.text(1)


def test_a_process_that_cannot_write_its_part_of_a_checkpoint_ends_both(start, tmp_path):
    """At once: neither waits for the other at the end of the save."""
    run = start(tmp_path / "run", 2)
    run.wait_for_checkpoint(5)
    resource.prlimit(run.processes[1].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    began = time.monotonic()
    codes = run.end()
    assert time.monotonic() - began < 60 and codes[0] == codes[1] != 0, run.text(0) + run.text(1)
    assert "File too large" in run.text(1) and "Traceback" not in run.text(0)
    assert max(steps(run.workdir)) < STEPS


def test_a_fault_before_training_ends_both(start, data_root, tmp_path):
    spoilt = shutil.copytree(data_root, tmp_path / "data")
    for file in spoilt.glob("shapes-*/train_clips.json"):
        file.unlink()
    run = start(tmp_path / "run", 2, data=[data_root, spoilt])
    assert run.end() == [2, 2], run.text(0) + run.text(1)
    assert "train_clips.json: no such annotation file" in run.text(1)
    assert not (tmp_path / "run").exists()
