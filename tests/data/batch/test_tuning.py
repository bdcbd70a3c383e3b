"""Workers and what waits: as many as the samples' cost asks for, and never more than cores and memory allow."""

import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from vlvm_jax import config as config_lib
from vlvm_jax.config import Config, DataConfig
from vlvm_jax.data.batch import tuning
from vlvm_jax.data.batch.tuning import WORKER_BYTES, Cost, Loading, plan
from vlvm_jax.errors import InputError

MIB = 1 << 20


@pytest.mark.parametrize(
    ("cost", "options", "workers", "threads"),
    [
        (Cost(0.0001, 0.0001, 0.1), {}, 0, 2),  # text: 160 samples a second take a sixtieth of a core
        (Cost(0.010, 0.010, 0.1), {}, 2, 1),
        (Cost(0.050, 0.050, 0.1), {}, 8, 1),
        (Cost(0.050, 0.050, 0.1), {"rows": 32}, 16, 1),
        (Cost(0.050, 0.050, 0.25), {"pack": True}, 32, 1),  # four samples to a row
        (Cost(0.200, 0.050, 0.1), {}, 8, 4),  # three quarters of the time it waits for storage
        (Cost(9.000, 0.050, 0.1), {}, 8, 8),
        (Cost(0.030, 0.0001, 0.1), {}, 0, 5),
        (Cost(1.0, 1.0, 0.1), {}, 63, 1),
        (Cost(1.0, 1.0, 0.1), {"cores": 2}, 1, 1),
        (Cost(1.0, 1.0, 0.1), {"cores": 1}, 1, 1),
        (Cost(1.0, 1.0, 0.1), {"memory": 2 * 5 * (WORKER_BYTES + 4 * MIB)}, 5, 1),
        (Cost(1.0, 1.0, 0.1), {"memory": 0}, 1, 1),
        (7, {"cores": 1, "memory": 0}, 7, 1),  # what is given is taken
        (0, {}, 0, 2),
    ],
)
def test_workers_and_threads(cost, options, workers, threads):
    """Of samples of a cost, on a machine with plenty of everything."""
    plenty = {"sample_bytes": MIB, "rows": 16, "pack": False, "cores": 64, "memory": 1 << 40}
    chosen = plan(cost, **{**plenty, **options})
    assert (chosen.workers, chosen.threads) == (workers, threads)


@settings(deadline=None)
@given(
    workers=st.integers(0, 200),
    rows=st.integers(1, 512),
    sample_bytes=st.integers(1, 500 * MIB),
    memory=st.integers(0, 1 << 38),
)
def test_what_waits_fits_half_of_the_memory(workers, rows, sample_bytes, memory):
    chosen = plan(workers, sample_bytes=sample_bytes, rows=rows, pack=True, cores=8, memory=memory)
    waiting = 2 * chosen.samples * max(workers, 1) * sample_bytes + chosen.batches * rows * sample_bytes
    least = (2 * max(workers, 1) + rows) * sample_bytes  # one sample of each worker, and a batch
    assert waiting <= max(memory / 2, least) + least
    assert 1 <= chosen.samples <= 4 * rows and 1 <= chosen.batches <= 2
    assert 1 <= chosen.together <= chosen.samples


def test_usual_samples_wait_as_long_as_ever():
    usual = {"sample_bytes": 100_000, "rows": 32, "pack": True, "cores": 8, "memory": 8 << 30}
    assert plan(2, **usual) == Loading(2, 1, 128, 2, together=8)
    assert plan(0, **usual) == Loading(0, 2, 64, 2)
    assert plan(2, **{**usual, "sample_bytes": 300_000}).together == 3
    assert plan(2, **{**usual, "sample_bytes": 2_700_000}).together == 1


def sample(tokens, frames):
    return {"token_ids": np.zeros(tokens, np.int32), "frames": np.zeros((frames, 2, 2, 3), np.uint8)}


def test_a_measurement_is_spread_over_the_records_and_leaves_out_the_start():
    calls = []

    def load(index):
        calls.append(index)
        if len(calls) == 1:
            time.sleep(0.5)  # opens the tokenizer
        time.sleep(0.02)
        return sample(10, 4)

    cost = tuning.measure(load, 1000, length=100, frames=8)
    assert calls[0] == 0 and calls[1:] == [0, 142, 285, 428, 570, 713, 856, 999]
    assert cost.row == pytest.approx(0.5)  # the frames fill more of a row than the tokens
    assert cost.wall >= 0.02 and cost.core < cost.wall


def test_a_measurement_of_slow_samples_ends_early(monkeypatch):
    monkeypatch.setattr(tuning, "PROBE_SECONDS", 0.05)
    calls = []

    def load(index):
        calls.append(index)
        time.sleep(0.06)
        return sample(10, 0)

    tuning.measure(load, 1000, length=100, frames=8)
    assert len(calls) == 2


def test_samples_that_cannot_be_used_cost_nothing_to_keep():
    cost = tuning.measure(lambda index: sample(0, 0), 2, length=100, frames=8)
    assert 0 < cost.row <= 0.01


# --- the machine -------------------------------------------------------------------------------------------------


def test_this_machine():
    assert tuning.usable_cores() >= 1 and tuning.free_memory() > 64 * MIB


@pytest.mark.parametrize(("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_a_containers_quota(tmp_path, monkeypatch, quota, cores):
    everything = tuning.usable_cores()
    monkeypatch.setattr(tuning, "_CGROUP", Path(tmp_path))
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert tuning.usable_cores() == (cores or everything)


def test_a_containers_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_CGROUP", Path(tmp_path))
    (tmp_path / "memory.max").write_text(f"{10 * MIB}\n")
    assert tuning.free_memory() == 10 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert tuning.free_memory() > 10 * MIB


# --- the setting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "found"), [("auto", "auto"), (3, 3), ("3", 3), (0, 0)])
def test_the_setting(given, found):
    assert config_lib.build(DataConfig, {"tokenizer": "t", "workers": given}).workers == found


@pytest.mark.parametrize("given", ["many", -1, 1.5])
def test_no_setting(given):
    with pytest.raises(InputError) as caught:
        config_lib.build(DataConfig, {"tokenizer": "t", "workers": given})
    assert str(caught.value) == (f"config.workers: give a number of processes, 0 or more, or 'auto' (found {given!r})")


@pytest.mark.parametrize(("given", "found"), [("auto", "auto"), ("4", 4)])
def test_the_setting_on_the_command_line(given, found):
    """A ConfigDict takes only values of the type that it began with, and a recipe begins with "auto"."""
    arguments = ["train", "--config=configs/ftfv.py", f"--config.data.workers={given}"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    assert config_lib.build(Config, values.config).data.workers == found
