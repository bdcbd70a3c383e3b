"""The loop without a model: how far it runs ahead of the device, and what a signal waits for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlvm_jax.config import MeshConfig, StageConfig
from vlvm_jax.errors import Interrupted
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.training import loop
from vlvm_jax.training.profiling import Profiler
from vlvm_jax.training.step import TrainState
from vlvm_jax.training.throughput import Timeline, Watch

STAGE = StageConfig(
    name="s", data=(), steps=30, batch_size=1, frames=1, length=8, trainable=(("x", 1.0),), log_every=10
)


class Device:
    """Does steps in order, each only when somebody waits for it: the slowest device there is."""

    def __init__(self):
        self.dispatched = self.done = self.most = 0

    def train(self, state, frozen, batch):
        self.dispatched += 1
        self.most = max(self.most, self.dispatched - self.done)
        names = ("loss", "samples", "tokens", "learned_tokens")
        return state, {name: Value(self, self.dispatched) for name in names}


class Value:
    """A metric of a step."""

    def __init__(self, device: Device, step: int):
        self.device, self.step = device, step

    def block_until_ready(self):
        self.device.done = max(self.device.done, self.step)
        return self

    def __array__(self, *args, **kwargs):
        self.block_until_ready()
        return np.asarray(1.0)


class Checkpoints:
    """Notes how many steps the device had done when a save began."""

    def __init__(self, device: Device):
        self.device, self.saved = device, []

    def save(self, step, **_):
        assert self.device.done == step  # the snapshot is of this step
        self.saved.append(step)

    def wait(self):
        pass


class Stop:
    """A signal that arrives while a step is dispatched."""

    def __init__(self, device: Device, step: int | None):
        self.device, self.step, self.done = device, step, None

    def reached(self) -> bool:
        return self.step is not None and self.device.dispatched >= self.step


@pytest.fixture
def run(tmp_path, monkeypatch):
    device = Device()
    state = TrainState(jnp.zeros((), jnp.int32), {"x": jnp.zeros(2)}, (), jnp.zeros(2, jnp.uint32))
    monkeypatch.setattr(loop, "to_device", lambda batch, mesh: batch)

    class Writer:
        def write(self, *_):
            pass

        flush = write

    class Logs:
        folder = tmp_path

        def check(self):
            pass

        flush = check

    functions = type("Functions", (), {"train": staticmethod(device.train)})
    stage_run = loop.StageRun(
        stage=STAGE, num_steps=30, functions=functions, state=state, frozen={}, data=iter([{}] * 99),
        checkpoints=Checkpoints(device), save_every=100, config={},
    )  # fmt: skip
    watch = Watch(Logs(), Writer(), Timeline(tmp_path), Profiler(tmp_path, None))
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    return device, stage_run, lambda stop: loop.run_stage(stage_run, mesh, watch, stop)


def test_few_steps_are_queued(run):
    device, _, train = run
    train(Stop(device, None))
    assert device.dispatched == device.done == 30
    assert device.most == loop.IN_FLIGHT == 2


@pytest.mark.parametrize("step", [5, 9, 10, 29])
def test_a_signal_waits_for_two_steps_at_most(run, step):
    """For those that are queued when it arrives; none is dispatched after it."""
    device, stage_run, train = run
    stop = Stop(device, step)
    before = []
    reached = stop.reached
    stop.reached = lambda: reached() and (before.append(device.done) or True)
    with pytest.raises(Interrupted, match=f"saved stage 's' at step {step} of 30"):
        train(stop)
    assert stage_run.checkpoints.saved == [step] == [device.dispatched]
    assert step - before[0] <= loop.IN_FLIGHT


def test_the_newest_step_is_not_waited_for(run):
    """Else the device would have nothing to do while the next batch is fetched."""
    device, stage_run, train = run
    ahead = []

    def batches():
        while True:
            ahead.append(device.dispatched - device.done)
            yield {}

    stage_run.data = batches()
    train(Stop(device, None))
    assert min(ahead[1:]) == 1
    assert isinstance(stage_run.state.step, jax.Array)
