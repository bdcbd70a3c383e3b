"""The recipe of the packaged image model: its training begins with the losses that it began with."""

import json
import signal
import subprocess
import sys
import time

import pytest
from support.recipes import ROOT, environment

pytestmark = pytest.mark.slow

# Of the first run of `base:tower` and the packaged `embedded` (Python 3.11, jax 0.10.2, CPU).
LOSSES = {1: 5.40304, 10: 4.38221, 20: 2.89168, 30: 1.94741, 40: 1.45840, 50: 1.00890}
PATIENCE = 480.0  # seconds, most of them for the data set's 50,000 files


def losses(metrics) -> dict[int, float]:
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record["loss"] for record in records}


def test_the_towers_training_begins_as_it_did(tmp_path):
    command = [sys.executable, "-m", "vlvm_jax.train", "--config=base:tower", f"--workdir={tmp_path}/run"]
    command += ["--config.tensorboard=False"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path / "data"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while max(seen := losses(tmp_path / "run/metrics.jsonl"), default=0) < max(LOSSES):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 75  # interrupted and saved
    assert {step: seen[step] for step in LOSSES} == pytest.approx(LOSSES, abs=1e-3)
