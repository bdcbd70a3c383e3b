"""The loop of one stage: save -> next batch -> step, and nothing in it waits for the device."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlvm_jax.config import StageConfig
from vlvm_jax.errors import Interrupted
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Params
from vlvm_jax.models.video_llm import Batch
from vlvm_jax.parallel import rules
from vlvm_jax.training.checkpoint import StageCheckpoints
from vlvm_jax.training.interrupt import StopSignal
from vlvm_jax.training.metrics import MetricsWriter
from vlvm_jax.training.progress import Meter
from vlvm_jax.training.step import StepFunctions, TrainState


@dataclasses.dataclass
class StageRun:
    """What the loop works with and leaves behind.

    Attributes:
      config: as JSON, saved in every checkpoint.
      seconds: spent so far in this process, compilation included.
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
    seconds: float = 0.0


def to_device(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """This process's rows of a batch as global arrays; fields that the data does not have stay None."""
    sharding = rules.batch_sharding(mesh)
    fields = [field.name for field in dataclasses.fields(Batch) if field.name in batch]
    return Batch(**{name: jax.make_array_from_process_local_data(sharding, batch[name]) for name in fields})


def run_stage(run: StageRun, mesh: Mesh, writer: MetricsWriter, stop: StopSignal) -> None:
    """Trains until `num_steps`; the last checkpoint is the stage's result.

    Raises:
      Interrupted: a signal came; the state is saved.
    """
    stage, name = run.stage, run.stage.name
    start = time.monotonic()
    step = first = int(run.state.step)
    log = _Log(stage, writer, run.num_steps, first)
    with jax.set_mesh(mesh), log.meter:
        while step < run.num_steps:
            if stop.reached():
                log.flush()
                save(run, step)
                run.checkpoints.wait()
                raise Interrupted(f"saved stage {name!r} at step {step} of {run.num_steps}")
            if step > first and step % run.save_every == 0:
                log.flush()
                save(run, step)
            batch = to_device(next(run.data), mesh)
            run.state, metrics = run.functions.train(run.state, run.frozen, batch)
            step += 1
            log.add(step, metrics)
        log.flush()
        run.seconds += time.monotonic() - start
        save(run, step)
        run.checkpoints.wait()


@jax.jit
def _snapshot(state: TrainState, frozen: Params) -> tuple[Params, Any, jax.Array]:
    """Fresh buffers to save from: the next step donates the old ones."""
    copy = jax.tree.map(lambda x: x + 0 if jax.numpy.issubdtype(x.dtype, jax.numpy.number) else x, state)
    return params_lib.join({**frozen, **copy.params}), copy.opt_state, copy.rng


def save(run: StageRun, step: int) -> None:
    params, opt_state, rng = _snapshot(run.state, run.frozen)
    jax.block_until_ready(params)
    run.checkpoints.save(step, params=params, opt_state=opt_state, rng=rng, data=run.data, config=run.config)


class _Log:
    """Collects device metrics and reads them once every `log_every` steps, one step late, so that no step waits."""

    def __init__(self, stage: StageConfig, writer: MetricsWriter, num_steps: int, first: int):
        self.stage, self.writer = stage, writer
        self.meter = Meter(stage.name, num_steps, done=first)
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._rate = _Rate()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self._pending.append((step, metrics))
        if step % self.stage.log_every == 0 and len(self._pending) > 1:
            self._read(self._pending[:-1])
            self._pending = self._pending[-1:]

    def flush(self) -> None:
        if self._pending:
            self._read(self._pending)
            self._pending = []

    def _read(self, entries: list[tuple[int, dict[str, jax.Array]]]) -> None:
        values = jax.device_get([metrics for _, metrics in entries])
        rates = self._rate(sum(float(v["samples"]) for v in values), sum(float(v["tokens"]) for v in values))
        for (step, _), metrics in zip(entries, values, strict=True):
            self.writer.write(self.stage.name, step, {key: _plain(value) for key, value in metrics.items()})
        self.writer.flush()
        self.meter.update(entries[-1][0], f"loss {float(values[-1]['loss']):.4f}  {rates}")


class _Rate:
    """Samples and tokens per second since the last reading; the first reading holds the compilation and is left out."""

    def __init__(self):
        self._last: float | None = None

    def __call__(self, samples: float, tokens: float) -> str:
        now = time.monotonic()
        last, self._last = self._last, now
        if last is None or now <= last:
            return ""
        return f"{samples / (now - last):,.0f} samples/s  {tokens / (now - last):,.0f} tokens/s"


def _plain(value: np.ndarray) -> float | int:
    value = np.asarray(value)
    return int(value) if np.issubdtype(value.dtype, np.integer) else float(value)
