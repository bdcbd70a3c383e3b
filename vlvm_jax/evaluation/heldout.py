"""Accuracy on held-out questions by type, beside controls that say what the number means.

Each question is asked alone. An answer is right when greedy decoding would produce it exactly, end of turn included:
that is so if and only if, fed the true answer, the model would say every one of its tokens, which needs one forward
pass and no decoding loop.
"""

import contextlib
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from vlvm_jax import passes
from vlvm_jax.config import EvalConfig, ModelConfig
from vlvm_jax.data.record import Record
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.params import Model, Params
from vlvm_jax.models.video_llm import right_tokens
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.cpu_options import compiler_options


@dataclasses.dataclass(frozen=True)
class Answered:
    """One question: its record and whether it was answered rightly."""

    record: Record
    right: bool

    @property
    def type(self) -> str:
        return self.record.turns[0].type or "all"


Predict = Callable[[Params, Batch, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def make_predict(config: ModelConfig, mesh: Mesh) -> Predict:
    """(whole parameters as one segment each, batch, records) -> which next tokens count, which of those are right, and
    the records again, all [B, L] and whole on every process."""
    model = Model(config)
    shardings = {path: a.sharding for path, a in model.on_mesh(model.abstract(), mesh).items()}

    def predict(params: Params, batch: Batch, record: jax.Array):
        bound = model.bind(params)
        hidden, _ = bound(batch)
        learned, right, _ = right_tokens(bound, hidden, batch)
        return learned, right, record

    return jax.jit(
        predict,
        in_shardings=(shardings, None, None),
        out_shardings=rules.replicated(mesh),
        compiler_options=compiler_options(mesh, config.dtype),
    )


def ask(
    predict: Predict,
    params: Params,
    records: Sequence[Record],
    spec: SampleSpec,
    config: EvalConfig,
    mesh: Mesh,
    *,
    workers: int | Literal["auto"],
    on_batch: Callable[[int], None] = lambda questions: None,
) -> list[Answered]:
    """Asks every record (one question each, see `sample.turns.split_turns`) and returns them in order.

    Records that cannot be read are left out.
    """
    learned_by, right_by = Counter[int](), Counter[int]()
    together = passes.batches(records, spec, mesh, rows=config.batch_size, pack=config.pack, workers=workers)
    with jax.set_mesh(mesh), contextlib.closing(together):
        for batch, record in together:
            learned, right, owner = jax.device_get(predict(params, batch, record))
            learned_by.update(owner[learned].tolist())
            right_by.update(owner[right].tolist())
            on_batch(len(learned_by))
    return [Answered(records[i], learned_by[i] == right_by[i]) for i in sorted(learned_by)]


def accuracy_by_type(answers: Sequence[Answered]) -> dict[str, float]:
    by_type: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        by_type[answer.type].append(answer.right)
    return {kind: float(np.mean(rights)) for kind, rights in sorted(by_type.items())}


def majority_answers(asked: Sequence[Record], trained_on: Iterable[Record]) -> list[Answered]:
    """The control that never looks: for each question the answer most often given to the same words in training.

    A question whose words training never held gets its type's most frequent answer.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for record in trained_on:
        for turn in record.turns:
            by_text[_words(turn.question)][turn.answer] += 1
            by_type[turn.type][turn.answer] += 1
    answered = []
    for record in asked:
        turn = record.turns[0]
        counts = by_text.get(_words(turn.question)) or by_type.get(turn.type) or Counter({"": 1})
        # Ties go to the answer that sorts first, so that the control is the same on every run.
        guess = min(counts, key=lambda answer: (-counts[answer], answer))
        answered.append(Answered(record, guess == turn.answer))
    return answered


def _words(question: str) -> str:
    return question.replace("<image>", "").replace("<video>", "").strip()


def summarise(answers: Sequence[Answered], controls: Mapping[str, Sequence[Answered]]) -> dict[str, Any]:
    """The `eval` entry of `summary.json`: accuracy, by type, and the same for every control."""
    return {
        "questions": len(answers),
        "accuracy": float(np.mean([a.right for a in answers])) if answers else 0.0,
        "by_type": accuracy_by_type(answers),
        "controls": {
            name: {
                "accuracy": float(np.mean([a.right for a in given])) if given else 0.0,
                "by_type": accuracy_by_type(given),
            }
            for name, given in controls.items()
        },
    }
