"""Questions that a stage does not learn, put to it between steps: their loss, and the share that is answered rightly.

An answer is right as in `evaluation.heldout`: greedy decoding would give exactly it. Validation has a compiled function
and an iterator of its own and changes neither the stage's state nor its place in the data.
"""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from vlvm_jax import passes
from vlvm_jax.config import Config, StageConfig
from vlvm_jax.console import GRACE, Meter
from vlvm_jax.data.record import Record
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.params import Model, Params
from vlvm_jax.models.video_llm import right_tokens
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.cpu_options import compiler_options
from vlvm_jax.stop import StopSignal
from vlvm_jax.training.losses import token_losses
from vlvm_jax.training.partition import Partition
from vlvm_jax.training.step import StepFunctions

TIMES = 10  # that a stage is validated, where it does not say how often
Entry = Mapping[str, Any]  # `step`, `loss` (a learned token) and `accuracy` (of questions), as JSON


@dataclasses.dataclass(frozen=True)
class Questions:
    """What a stage is validated on.

    Attributes:
      records: of one question each.
      set_aside: records, of as many questions as they have, that they come from.
    """

    records: Sequence[Record]
    spec: SampleSpec
    set_aside: int


class Validation:
    """A stage's validations, those before a restart among them.

    Attributes:
      entries: one for each validation, in order.
    """

    def __init__(self, stage: StageConfig, num_steps: int, put: "Put", entries: Sequence[Entry] = ()):
        self.stage, self.num_steps, self.entries = stage, num_steps, list(entries)
        self._put = put

    def due(self, step: int) -> bool:
        """Whether the questions are to be put after this step and have not been."""
        if not step or (self.entries and self.entries[-1]["step"] >= step):
            return False
        every = self.stage.validate_every or math.ceil(self.num_steps / TIMES)
        return step % every == 0 or step == self.num_steps

    def run(self, step: int, trainable: Params, frozen: Params, stop: StopSignal) -> Entry | None:
        """Puts all questions; None if a signal to stop came meanwhile: then they are put again after a restart."""
        found = self._put(trainable, frozen, stop)
        if found is None:
            return None
        loss, accuracy = found
        self.entries.append({"step": step, "loss": loss, "accuracy": accuracy})
        return self.entries[-1]

    @property
    def best(self) -> int | None:
        """The step whose result is the best so far, the earliest of equals; None where none is asked for."""
        best = None
        for entry in self.entries if self.stage.best is not None else ():
            if best is None or self._score(entry) > self._score(best):
                best = entry
        return None if best is None else int(best["step"])

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` validations have brought nothing better."""
        best, patience = self.best, self.stage.patience
        return best is not None and patience is not None and sum(e["step"] > best for e in self.entries) >= patience

    def _score(self, entry: Entry) -> float:
        score = -entry["loss"] if self.stage.best == "loss" else entry["accuracy"]
        return -math.inf if math.isnan(score) else score


Put = Callable[[Params, Params, StopSignal], tuple[float, float] | None]


def make_put(
    config: Config,
    stage: StageConfig,
    partition: Partition,
    functions: StepFunctions,
    questions: Questions,
    mesh: Mesh,
    workers: int | Literal["auto"],
) -> Put:
    """Makes (trainable, frozen parameters of the stage, stop) into the loss and the accuracy over all questions."""
    model = Model(config.model, partition.splits)
    asked = stage.validating

    def look(trainable: Params, frozen: Params, batch: Batch, record: jax.Array):
        bound = model.bind({**frozen, **trainable})
        hidden, _ = bound(batch)
        loss, count, _ = token_losses(bound, hidden, batch, passes=stage.loss_passes, chunks=stage.loss_chunks)
        learned, right, _ = right_tokens(bound, hidden, batch)
        return loss, count, learned, right, record

    compiled = jax.jit(
        look,
        in_shardings=(functions.state_shardings.params, dict(functions.frozen_shardings), None, None),
        out_shardings=rules.replicated(mesh),
        compiler_options=compiler_options(mesh, config.model.dtype),
    )

    def put(trainable: Params, frozen: Params, stop: StopSignal) -> tuple[float, float] | None:
        learned_by, right_by, total, tokens = Counter[int](), Counter[int](), 0.0, 0.0
        together = passes.batches(
            questions.records, questions.spec, mesh, rows=asked.batch_size, pack=asked.pack, workers=workers
        )
        with (
            jax.set_mesh(mesh),
            contextlib.closing(together),
            Meter(f"{stage.name}: validation", len(questions.records), grace=GRACE) as meter,
        ):
            for batch, record in together:
                loss, count, learned, right, owner = jax.device_get(compiled(trainable, frozen, batch, record))
                learned_by.update(owner[learned].tolist())
                right_by.update(owner[right].tolist())
                total, tokens = total + float(loss), tokens + float(count)
                meter.update(len(learned_by), "questions")
                if stop.reached():
                    return None
        right = sum(learned_by[number] == right_by[number] for number in learned_by)
        return total / max(tokens, 1.0), right / max(len(learned_by), 1)

    return put
