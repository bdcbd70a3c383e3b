"""How a process finds the others; that they work together is tested with real ones in training/test_multiprocess.py."""

import os
import subprocess
import sys

import jax
import pytest
from support.recipes import ROOT

from vlvm_jax.config import MeshConfig
from vlvm_jax.errors import InputError
from vlvm_jax.parallel import processes
from vlvm_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4}, {"data": 1, "tensor": 8}])
def test_a_process_alone_loads_whole_batches(sizes):
    assert processes.batch_share(make_mesh(MeshConfig(**sizes), jax.devices())) == (0, 1)


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        # By process: the rows that its devices hold. Processes that hold the same ones load the same.
        ({0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}, {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
        ({0: (2, 3), 1: (0, 1)}, {0: (1, 2), 1: (0, 2)}),
        ({0: (0,), 1: (1,), 2: (2,), 3: (3,)}, {number: (number, 4) for number in range(4)}),
    ],
)
def test_a_process_loads_the_rows_of_its_devices(rows, share, monkeypatch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2), jax.devices())
    monkeypatch.setattr(processes, "process_rows", lambda _: rows)
    for number, expected in share.items():
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        assert processes.batch_share(mesh) == expected


def test_rows_that_overlap_in_part_are_refused(monkeypatch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2), jax.devices())
    for rows in ({0: (0, 1, 2), 1: (2, 3)}, {0: (0, 1, 2), 1: (3,)}):
        monkeypatch.setattr(processes, "process_rows", lambda _, rows=rows: rows)
        with pytest.raises(InputError, match="the 2 processes rows that overlap in part"):
            processes.batch_share(mesh)


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


FAIL_TOGETHER = """
import threading, time
from vlvm_jax.errors import InputError
from vlvm_jax.parallel import processes

class Client:
    failed = None
    def key_value_set(self, key, value):
        if self.failed is None:
            self.failed = value
            time.sleep(1)  # the others fail meanwhile
        elif key == processes._FAILED:
            raise processes.jax.errors.JaxRuntimeError("exists")
    def key_value_try_get(self, key):
        return self.failed
    def key_value_dir_get(self, key):
        return []

processes.distributed.global_state.process_id = 1
client = Client()
fail = lambda: processes._fail(client, InputError("the disk is full"))
for _ in range(3):
    threading.Thread(target=fail).start()
processes._watch(client, threading.Event())
"""


def test_of_threads_that_fail_together_one_says_why():
    ended = subprocess.run([sys.executable, "-c", FAIL_TOGETHER], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, "error: the disk is full\n")
