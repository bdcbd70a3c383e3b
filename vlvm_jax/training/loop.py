"""The loop of one stage: save -> next batch -> step.

Nothing in it waits for the newest step, so the device always has one to go on with; but no more than `IN_FLIGHT` are
queued, or a signal would be answered only after all of them.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlvm_jax.config import StageConfig
from vlvm_jax.console import Meter, Waiting, say
from vlvm_jax.errors import Interrupted
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.batch import to_device
from vlvm_jax.models.params import Params
from vlvm_jax.stop import StopSignal
from vlvm_jax.training.checkpoint import StageCheckpoints
from vlvm_jax.training.flops import StepFlops
from vlvm_jax.training.step import StepFunctions, TrainState
from vlvm_jax.training.throughput import Throughput, Watch, brief
from vlvm_jax.training.validation import Entry, Validation

IN_FLIGHT = 2  # steps that are dispatched and not done, at most


@dataclasses.dataclass
class StageRun:
    """What the loop works with and leaves behind.

    Attributes:
      flops: of a step, or None (see `throughput.Throughput`).
      config: as JSON, saved in every checkpoint.
      load_first: waits until the first batch is there, which stays the next one, also for a checkpoint.
      seconds: spent so far in this process, compilation included.
      validation: of a stage that is validated.
    """

    stage: StageConfig
    num_steps: int
    functions: StepFunctions
    state: TrainState
    frozen: Params
    data: Iterator[Mapping[str, np.ndarray]]
    checkpoints: StageCheckpoints
    save_every: int
    config: Mapping[str, Any]
    flops: StepFlops | None = None
    seconds: float = 0.0
    load_first: Callable[[], None] = lambda: None
    validation: Validation | None = None

    def due(self, step: int) -> bool:
        """Whether questions are to be put after this step."""
        return self.validation is not None and self.validation.due(step)

    def goes_on(self, step: int) -> bool:
        """Whether anything is left to do after this step."""
        ended = step >= self.num_steps or (self.validation is not None and self.validation.exhausted)
        return self.due(step) or not ended


def run_stage(run: StageRun, mesh: Mesh, watch: Watch, stop: StopSignal) -> None:
    """Trains until `num_steps`, or until validation gets no better; the last or the best checkpoint is the result.

    Raises:
      Interrupted: a signal came; the state is saved.
    """
    name = run.stage.name
    start = time.monotonic()
    step = first = int(run.state.step)
    log = _Log(run, watch, first)
    in_flight: collections.deque[Any] = collections.deque()
    with jax.set_mesh(mesh), log.meter, log.waits:
        while run.goes_on(step):
            while len(in_flight) >= IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            # Compiling cannot be stopped: look before it.
            if step == first and not run.due(step) and not stop.reached():
                log.waits.now(f"{name}: loading the first batch")
                with log.waiting():
                    run.load_first()
            if stop.reached() or (run.due(step) and not validate(run, step, log, stop)):
                log.flush()
                save(run, step)
                run.checkpoints.wait()
                raise Interrupted(f"saved stage {name!r} at step {step} of {run.num_steps}")
            if not run.goes_on(step):
                break
            if step > first and step % run.save_every == 0:
                log.flush()
                save(run, step)
                log.resume()
            watch.logs.check()
            watch.profiler.before(name, step, run.state)
            with log.waiting():
                batch = to_device(next(run.data), mesh)
            if step == first:
                log.waits.now(f"{name}: compiling the train step")
            run.state, metrics = run.functions.train(run.state, run.frozen, batch)
            in_flight.append(metrics)
            if step == first:
                log.waits.now(f"{name}: running the first steps (the loss is shown every {run.stage.log_every})")
            step += 1
            log.add(step, metrics)
        watch.profiler.stop(run.state)
        log.flush()
        run.seconds += time.monotonic() - start
        save(run, step)
        run.checkpoints.wait()


def validate(run: StageRun, step: int, log: "_Log", stop: StopSignal) -> bool:
    """Puts the stage's questions, and saves the step if it is the best so far; whether no signal came meanwhile."""
    assert run.validation is not None
    log.flush()
    with log.meter.paused():
        entry = run.validation.run(step, run.state.params, run.frozen, stop)
    if entry is not None:
        best = run.validation.best == step
        log.validated(entry, best)
        if best:
            save(run, step)
    log.resume()
    return entry is not None


@jax.jit
def _snapshot(state: TrainState, frozen: Params) -> tuple[Params, Any, jax.Array]:
    """Fresh buffers to save from: the next step donates the old ones."""
    copy = jax.tree.map(lambda x: x + 0 if jax.numpy.issubdtype(x.dtype, jax.numpy.number) else x, state)
    return params_lib.join({**frozen, **copy.params}), copy.opt_state, copy.rng


def save(run: StageRun, step: int) -> None:
    params, opt_state, rng = _snapshot(run.state, run.frozen)
    jax.block_until_ready(params)
    validation = run.validation
    entries, best = ([], None) if validation is None else (list(validation.entries), validation.best)
    config = {**run.config, "validation": entries}
    run.checkpoints.save(step, params=params, opt_state=opt_state, rng=rng, data=run.data, config=config, best=best)


class _Log:
    """Collects device metrics and reads them once every `log_every` steps, one step late, so that no step waits."""

    def __init__(self, run: StageRun, watch: Watch, first: int):
        self.stage, self.watch = run.stage, watch
        self.meter = Meter(run.stage.name, run.num_steps, done=first)
        self.waits = Waiting()
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._throughput = Throughput(run.flops, run.stage.batch_size * run.stage.length)
        self._told = first, 0.0  # step and productive seconds that the timeline knows of

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what is the data's fault."""
        start = time.monotonic()
        yield
        self._throughput.waited += time.monotonic() - start

    def resume(self) -> None:
        """After what was no training."""
        self._throughput.resume()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._pending.append((step, metrics))
        if step % self.stage.log_every == 0 and len(self._pending) > 1:
            self._read(self._pending[:-1])
            self._pending = self._pending[-1:]

    def validated(self, entry: Entry, best: bool) -> None:
        """After the stage's questions were put."""
        values = {f"validation_{name}": entry[name] for name in ("loss", "accuracy")}
        self.watch.metrics.write(self.stage.name, entry["step"], values)
        self.watch.metrics.flush()
        told = f"validation loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.3f}"
        say(f"{self.stage.name}: step {entry['step']}: {told}{', the best so far' if best else ''}")

    def flush(self) -> None:
        if self._pending:
            self._read(self._pending)
            step, seconds = self._pending[-1][0], self._throughput.productive
            self.watch.timeline.add(
                "steps", stage=self.stage.name, first=self._told[0], last=step, productive=seconds - self._told[1]
            )
            self._told = step, seconds
            self._pending = []
        self.watch.logs.flush()

    def _read(self, entries: list[tuple[int, dict[str, jax.Array]]]) -> None:
        values = jax.device_get([metrics for _, metrics in entries])
        read = ("samples", "tokens", "learned_tokens")
        rates = self._throughput.read(len(entries), *(sum(float(v[key]) for v in values) for key in read))
        for number, ((step, _), metrics) in enumerate(zip(entries, values, strict=True)):
            last = rates if number == len(entries) - 1 else {}
            self.watch.metrics.write(
                self.stage.name, step, {key: _plain(value) for key, value in metrics.items()} | last
            )
        self.watch.metrics.flush()
        self.waits.close()
        self.meter.update(entries[-1][0], f"loss {float(values[-1]['loss']):.4f}  {brief(rates)}")


def _plain(value: np.ndarray) -> float | int:
    value = np.asarray(value)
    return int(value) if np.issubdtype(value.dtype, np.integer) else float(value)
