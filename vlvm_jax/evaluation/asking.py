"""Asks a model the questions of a list that have no answer yet, and writes each down as it is answered."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.evaluation.controls import SWAPPING, Control
from vlvm_jax.evaluation.predictions import Predictions
from vlvm_jax.evaluation.question_lists import Question
from vlvm_jax.inference.requests import Answer, Request
from vlvm_jax.training.interrupt import StopSignal

Answers = Callable[[Sequence[Request]], Iterator[Answer]]
_SAID = ("finish", "prompt_tokens", "visual_tokens", "new_tokens")  # of an answer, for its prediction


def request(question: Question, control: Control | None, other: Question | None, prefix: str) -> Request:
    """What is asked for a question.

    Args:
      other: whose text stands for the question's, under the controls that shuffle these.
      prefix: with which the answer is made to begin.
    """
    asked, guide = question.asked, question.text
    if control == "shuffled_prompt":
        assert other is not None
        guide = other.text
    elif control == "shuffled_question":
        assert other is not None
        asked, guide = other.asked, other.text
    return Request(
        id=question.id, media=question.media, question=asked, prefix=prefix, span=question.span, scoring_text=guide
    )


def ask(
    answers: Answers,
    questions: Sequence[Question],
    predictions: Predictions,
    *,
    control: Control | None = None,
    others: Mapping[str, Question] | None = None,
    prefix: str = "",
    chunk: int = 64,
    stop: StopSignal,
    on_answer: Callable[[], None] = lambda: None,
) -> None:
    """Answers what `predictions` has no answer to, clip by clip, so that what is kept of one serves all its questions.

    A question whose media cannot be used gets a prediction of None with the cause, and is tried again by the next run.

    Args:
      chunk: requests handed over at once.

    Raises:
      Interrupted: asked to stop; everything answered is written.
    """
    todo = [question for question in questions if not predictions.answered(question.id)]
    for missing in (question for question in todo if question.missing):
        cause = BadSampleError("missing", missing.media[0][1])
        predictions.add(_line(missing, control, others, {"pred": None, "cause": cause.cause, "detail": cause.detail}))
        on_answer()
    by_id = {question.id: question for question in _by_clip(todo) if not question.missing}
    requests = [request(q, control, (others or {}).get(q.id), prefix) for q in by_id.values()]
    for start in range(0, len(requests), chunk):
        for name, said in _each(answers, requests[start : start + chunk]):
            predictions.add(_line(by_id[name], control, others, said))
            on_answer()
            stop.check("what is answered is kept")


def _by_clip(questions: Iterable[Question]) -> list[Question]:
    """In the list's order, but a clip's questions together."""
    groups: dict[Any, list[Question]] = {}
    for question in questions:
        groups.setdefault((question.media, question.span), []).append(question)
    return [question for group in groups.values() for question in group]


def _each(answers: Answers, requests: Sequence[Request]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What came of each request, by id. After one that cannot be used, the others are asked one by one."""
    left = {one.id: one for one in requests}
    try:
        for answer in answers(requests):
            del left[answer.id]
            yield answer.id, {"pred": answer.text} | {key: getattr(answer, key) for key in _SAID} | _picked(answer)
    except BadSampleError as error:
        if len(requests) == 1:
            yield requests[0].id, {"pred": None, "cause": error.cause, "detail": error.detail}
            return
        for one in left.values():
            yield from _each(answers, [one])


def _picked(answer: Answer) -> dict[str, Any]:
    """Which frames and regions the model saw, where its adapter chooses."""
    if answer.picked is None:
        return {}
    return {"picked": json.loads(json.dumps(answer.picked, default=lambda value: np.asarray(value).tolist()))}


def _line(
    question: Question, control: Control | None, others: Mapping[str, Question] | None, said: Mapping[str, Any]
) -> dict[str, Any]:
    """A prediction, with the keys of the format of its list."""
    other = {"other": others[question.id].id} if others and control in SWAPPING else {}
    return {
        "id": question.id,
        "question": question.text,
        "answer": question.answer,
        **question.carried,
        **other,
        **said,
    }
