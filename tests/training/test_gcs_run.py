"""A run all of which is in a bucket; requests fail, processes are killed, and for a while there is no storage."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from support import gcs
from support.recipes import ROOT, environment

from vlvm_jax import storage

pytestmark = pytest.mark.slow

STEPS = 16
KINDS = (*gcs.KINDS * 3, *gcs.QUICK * 9)  # a stall costs seconds


def start(workdir, env: dict[str, str], workers: int = 1) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "vlvm_jax.train", "--config=tests/support/one_stage.py", f"--workdir={workdir}",
        f"--config.data.workers={workers}", "--config.tensorboard=True", "--config.checkpoint.save_every=4",
        f"--config.stages[0].steps={STEPS}",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen, timeout: float = 300) -> subprocess.Popen:
    process.out, process.err = process.communicate(timeout=timeout)
    return process


def losses(metrics: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, metrics.splitlines())]


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_root, bucket):
    """Processes, in order, of one run in the bucket that nothing goes well for, and the folder of one undisturbed."""
    tmp = tmp_path_factory.mktemp("run")
    env = environment(data_root) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    local = end(start(tmp / "undisturbed", env, workers=0))
    assert local.returncode == 0, local.err

    (tmp / "cache").mkdir()
    (tmp / "cache" / "vlvm_jax").symlink_to(data_root)  # where the embedded data set is copied from
    env |= bucket.environment | {"VLVM_JAX_DATA": f"{bucket.root}/data", "XDG_CACHE_HOME": str(tmp / "cache")}
    workdir = f"{bucket.root}/runs/one"
    moments = random.Random(0)
    bucket.faults = gcs.Faults(0.1, KINDS)

    def after_a_save(process: subprocess.Popen) -> None:
        """Returns some requests after the next checkpoint is complete."""

        def come_to(ready) -> None:
            while not ready():
                assert process.poll() is None and time.monotonic() < deadline, end(process).err
                time.sleep(0.01)

        deadline, before = time.monotonic() + 300, saved()
        come_to(lambda: saved() - before)
        wanted = len(bucket.requests) + moments.randint(1, 100)
        come_to(lambda: len(bucket.requests) >= wanted)

    def saved() -> set[str]:
        return {name for name in bucket.objects if re.search(r"/checkpoints/\d+/commit_success", name)}

    processes = []
    for _ in range(2):
        processes.append(start(workdir, env))
        after_a_save(processes[-1])
        processes[-1].send_signal(signal.SIGKILL)
        end(processes[-1])
    processes.append(start(workdir, env))
    after_a_save(processes[-1])
    some, bucket.faults = bucket.faults, gcs.Faults(1.0)
    end(processes[-1], timeout=120)
    bucket.faults = gcs.Faults(0.1, KINDS, seed=1)
    processes.append(end(start(workdir, env)))
    some.done += bucket.faults.done
    bucket.faults = gcs.Faults()
    return processes, tmp / "undisturbed", workdir, some.done


def test_killed_and_hindered_it_ends_with_the_losses_of_an_undisturbed_run(run):
    processes, undisturbed, workdir, faults = run
    assert [process.returncode for process in processes[:2]] == [-signal.SIGKILL] * 2
    assert processes[-1].returncode == 0, processes[-1].err
    for process in processes[1:]:
        assert "instruct: continuing from step" in process.out
    mine = losses(storage.read_text(f"{workdir}/metrics.jsonl"))
    assert mine == losses((undisturbed / "metrics.jsonl").read_text())
    assert [step for step, _ in mine] == list(range(1, STEPS + 1))
    summary = json.loads(storage.read_text(f"{workdir}/summary.json"))
    assert summary["eval"] == json.loads((undisturbed / "summary.json").read_text())["eval"]
    assert summary["skipped"] == {}
    assert set(gcs.KINDS) <= faults.keys() and min(faults.values()) > 0


def test_without_storage_it_ends_with_one_line(run):
    """Within two minutes, or the fixture's process runs into its time limit."""
    stopped = run[0][2]
    assert stopped.returncode == 75
    assert "Traceback" not in stopped.err
    said = [line for line in stopped.err.splitlines() if not re.match(r"(WARNING:google|I\d{4} )", line)]
    assert len(said) == 2, stopped.err
    assert re.fullmatch(r"interrupted: gs://vlvm-test/\S+: storage does not work \(.*\)", said[0])
    assert said[1] == "run the same command again to continue"


def test_the_folder_holds_what_a_local_one_holds(run):
    _, undisturbed, workdir, _ = run
    assert storage.names(workdir) == sorted(os.listdir(undisturbed))  # noqa: PTH208
    steps = [name for name in storage.names(f"{workdir}/instruct/checkpoints") if name.isdigit()]
    assert steps == sorted(path.name for path in (undisturbed / "instruct" / "checkpoints").iterdir())
    assert any("tfevents" in name for name in storage.names(f"{workdir}/tensorboard"))
    assert storage.read_bytes(f"{workdir}/summary.png").startswith(b"\x89PNG")
    events = [json.loads(line)["event"] for line in storage.read_text(f"{workdir}/timeline.jsonl").split("\n") if line]
    assert events.count("start") == 4 and events[-1] == "end"
