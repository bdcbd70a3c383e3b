"""Rates against a clock that the test turns, and goodput from what a folder's processes left."""

import json
import math
import signal

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from vlvm_jax.errors import InputError
from vlvm_jax.parallel.topology import CHIPS, peak_flops
from vlvm_jax.training import throughput
from vlvm_jax.training.flops import StepFlops
from vlvm_jax.training.profiling import STEPS, Profiler, parse
from vlvm_jax.training.throughput import Throughput, Timeline, brief


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(throughput.time, "time", lambda: now[0])
    return now


def test_rates_are_of_the_steps_since_the_last_reading(clock):
    rates = Throughput(flops=None, positions=1)
    assert rates.read(1, 4, 100, 0) == {}  # compilation
    clock[0] += 10
    rates.waited += 1
    found = rates.read(20, 80, 4000, 0)
    assert found["step_seconds"] == 0.5
    assert found["samples_per_second"] == 8
    assert found["tokens_per_second_per_chip"] == 400 / jax.device_count()
    assert found["data_wait"] == 0.1
    assert "mfu" not in found
    assert rates.productive == 9
    clock[0] += 1
    assert rates.read(1, 1, 1, 1)["data_wait"] == 0
    clock[0] += 50  # a save
    rates.resume()
    clock[0] += 2
    assert rates.read(1, 1, 1, 1)["step_seconds"] == 2
    assert rates.productive == 9 + 1 + 2
    assert "data wait 10%" in brief(found)
    assert brief({}) == ""


def test_mfu_is_of_the_chips_published_peak_and_of_learned_tokens(clock, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: 2e12)
    tera = jax.device_count() * 1e12
    flops = StepFlops(tower=0, adapter=0, decoder=tera / 2, backward=tera, recomputed=9 * tera, head=tera)
    rates = Throughput(flops, positions=100)
    rates.read(1, 0, 0, 0)
    clock[0] += 4
    found = rates.read(4, 0, 0, 4 * 50)  # half of the positions: half of the head
    assert math.isclose(found["mfu"], 0.5) and math.isclose(found["tflops_per_chip"], 1)
    assert "MFU 50.0%" in brief(found)


@pytest.mark.parametrize(
    ("kind", "chip"), [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e")]
)
def test_peaks_by_the_name_a_device_gives_itself(kind, chip):
    assert peak_flops(kind) == CHIPS[chip].flops
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None


def test_goodput_counts_steps_once_and_no_time_between_processes(clock, tmp_path):
    workdir = epath.Path(tmp_path)
    first = Timeline(workdir)
    clock[0] += 20  # compiling
    first.add("steps", stage="a", first=0, last=10, productive=10.0)
    clock[0] += 10
    first.add("steps", stage="a", first=10, last=20, productive=10.0)  # lost: the process dies, step 10 was saved
    with first.path.open("a") as file:
        file.write('{"event": "ste')
    clock[0] += 1000
    second = Timeline(workdir)
    clock[0] += 30
    second.add("steps", stage="a", first=10, last=25, productive=8.0)  # logged at another step than before
    second.add("steps", stage="b", first=0, last=5, productive=2.0)
    clock[0] += 10
    second.add("end")
    assert second.goodput() == {"productive": 20.0, "wall": 70.0, "goodput": 20 / 70}


def test_a_process_that_does_not_write_leaves_no_timeline(tmp_path):
    Timeline(epath.Path(tmp_path), write=False).add("end")
    assert not list(tmp_path.iterdir())


def traces(folder):
    return list((folder / "profile").rglob("*.xplane.pb"))


def test_a_trace_of_the_steps_asked_for(tmp_path):
    x = jnp.ones(3)
    with Profiler(epath.Path(tmp_path), parse("two:1-2", ("one", "two"))) as profiler:
        for stage in ("one", "two"):
            for step in range(4):
                profiler.before(stage, step, x)
                assert (profiler._until is not None) == (stage == "two" and step in (1, 2))
            profiler.stop(x)
    assert len(traces(tmp_path)) == 1


def test_a_trace_on_a_signal(tmp_path):
    with Profiler(epath.Path(tmp_path), None) as profiler:
        profiler.before("one", 0, None)
        signal.raise_signal(signal.SIGUSR1)
        open_at = []
        for step in range(1, STEPS + 3):
            profiler.before("one", step, None)
            open_at += [step] * (profiler._until is not None)
    assert open_at == list(range(1, STEPS + 1))
    assert len(traces(tmp_path)) == 1


@pytest.mark.parametrize("asked", ["one", "three:1-2", "one:5-4", "one:a-b"])
def test_a_trace_of_nothing_is_refused(tmp_path, asked):
    with pytest.raises(InputError, match="--profile="):
        parse(asked, ("one", "two"))


def test_the_timeline_is_json_lines(tmp_path):
    for _ in range(2):
        Timeline(epath.Path(tmp_path)).add("end", reason="done")
    *lines, last = (tmp_path / "timeline.jsonl").read_text().split("\n")
    assert [json.loads(line)["event"] for line in lines] == ["start", "end"] * 2 and not last
