"""Asks a model the questions of a list that have no answer yet, and writes each down as it is answered."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.controls import SWAPPING, Control
from vlvm_jax.evaluation.predictions import Predictions
from vlvm_jax.evaluation.questions import Question
from vlvm_jax.inference.answering import Answering
from vlvm_jax.inference.requests import Answer, Decoding, Request
from vlvm_jax.stop import StopSignal

_SAID = ("finish", "prompt_tokens", "visual_tokens", "new_tokens")  # of an answer, for its prediction
_BATCHES = 4  # asked at once: what their answers are sorted into by length, and what a kill may cost


def request(question: Question, control: Control | None, other: Question | None, prefix: str | None) -> Request:
    """What is asked for a question.

    Args:
      other: whose text stands for the question's, under the controls that shuffle these.
      prefix: with which the answer is made to begin; None for the recipe's own.
    """
    put = question
    if control == "shuffled_question":
        assert other is not None
        put = other
    guide = put.text if put.prompt else None  # a prompt holds more than the question
    if control == "shuffled_prompt":
        assert other is not None
        guide = other.text
    return Request(
        id=question.id,
        media=question.media,
        question=put.prompt or put.text,
        span=question.span,
        prefix=prefix,
        options=() if put.prompt else put.options,
        scoring_text=guide,
    )


def ask(
    model: Answering,
    decoding: Decoding,
    questions: Sequence[Question],
    predictions: Predictions,
    *,
    control: Control | None = None,
    others: Mapping[str, Question] | None = None,
    prefix: str | None = None,
    stop: StopSignal,
    on_answer: Callable[[], None] = lambda: None,
) -> None:
    """Answers what `predictions` has no answer to, clip by clip, so that what is kept of one serves all its questions.

    A question whose media cannot be used, or whose prompt cannot (`refused`: it is longer than the context, say), gets
    a prediction of None with the cause, and is tried again by the next run.

    Args:
      model: as the control has it, see `controls.controlled`.

    Raises:
      InputError: the model refuses questions before it has answered any of some batches: no single one is at fault.
      Interrupted: asked to stop; everything answered is written.
    """
    todo = [question for question in questions if not predictions.answered(question.id)]

    def write(question: Question, said: Mapping[str, Any]) -> None:
        other = {"other": others[question.id].id} if others and control in SWAPPING else {}
        line = {"id": question.id, "question": question.text, "answer": question.answer}
        predictions.add({**line, **question.carried, **other, **said})
        on_answer()

    for missing in (question for question in todo if question.missing):
        write(missing, _nothing(BadSampleError("missing", missing.media[0][1])))
    by_id = {question.id: question for question in _by_clip(todo) if not question.missing}
    requests = [request(q, control, (others or {}).get(q.id), prefix) for q in by_id.values()]
    answered = any(predictions.answered(question.id) for question in questions)
    size = _BATCHES * model.rows
    for start in range(0, len(requests), size):
        refused: dict[str, InputError] = {}
        for name, said in _each(model, requests[start : start + size], decoding):
            if isinstance(said, InputError):
                refused[name] = said
                continue
            answered |= isinstance(said, Answer)
            write(by_id[name], _something(said) if isinstance(said, Answer) else _nothing(said))
            stop.check("what is answered is kept")
        for name, error in refused.items():
            if not answered:
                raise error
            write(by_id[name], _nothing(BadSampleError("refused", str(error))))


def _by_clip(questions: Iterable[Question]) -> list[Question]:
    """In the list's order, but a clip's questions together."""
    groups: dict[Any, list[Question]] = {}
    for question in questions:
        groups.setdefault((question.media, question.span), []).append(question)
    return [question for group in groups.values() for question in group]


def _each(
    model: Answering, requests: Sequence[Request], decoding: Decoding
) -> Iterator[tuple[str, Answer | BadSampleError | InputError]]:
    """What came of each request, by id. After one that is refused, the others are asked one by one."""
    left = {one.id: one for one in requests}
    bad: list[tuple[str, BadSampleError]] = []
    try:
        for answer in model.answer(requests, decoding, on_bad=lambda one, error: bad.append((one.id, error))):
            del left[answer.id]
            yield answer.id, answer
    except InputError as error:
        if len(requests) == 1:
            yield requests[0].id, error
            return
        for name, _ in bad:
            del left[name]
        yield from bad
        for one in left.values():
            yield from _each(model, [one], decoding)
    else:
        yield from bad


def _something(answer: Answer) -> dict[str, Any]:
    """A prediction's part of an answer; `picked` where the adapter chooses frames and regions."""
    picked = {} if answer.picked is None else {"picked": json.loads(json.dumps(answer.picked, default=_plain))}
    return {"pred": answer.text, **{key: getattr(answer, key) for key in _SAID}, **picked}


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


def _nothing(error: BadSampleError) -> dict[str, Any]:
    return {"pred": None, "cause": error.cause, "detail": error.detail}
