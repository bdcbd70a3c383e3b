"""How a process finds the others; that they work together is tested with real ones in training/test_multiprocess.py."""

import os
import subprocess
import sys

import jax
import pytest
from recipes import ROOT

from vlvm_jax.config import MeshConfig
from vlvm_jax.parallel import processes
from vlvm_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4}, {"data": 1, "tensor": 8}])
def test_a_process_alone_loads_whole_batches(sizes):
    assert processes.batch_share(make_mesh(MeshConfig(**sizes), jax.devices())) == (0, 1)


def test_without_others_nothing_is_joined(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "nobody.invalid:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    with processes.connected():
        assert not jax.distributed.is_initialized()
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    with processes.connected():
        assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "error: JAX_NUM_PROCESSES=two: expected a whole number"),
        ({"JAX_NUM_PROCESSES": "2"}, "coordinator_address should be defined.; set all three"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "Number of processes must be defined.; set all three"),
        (
            {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID=2: process_id and num_processes must be nonnegative, with process_id < num_processes",
        ),
    ],
)
def test_an_environment_that_makes_no_sense(tmp_path, variables, message):
    done = subprocess.run(
        [sys.executable, "-m", "vlvm_jax.train", "--config=configs/ftfv.py", f"--workdir={tmp_path}/run"],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0
