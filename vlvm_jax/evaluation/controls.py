"""What is asked to find out what an accuracy owes to: the same questions with a part of what the model needs spoilt.

blank_video       every frame is grey: what is known from the question alone
shuffled_frames   frames in another order: what their order gives
shuffled_prompt   what guides the choice of frames and regions is another question's text, while the own one is asked:
                  what the guidance gives; for adapters that are guided
shuffled_question another question is asked: how often its answer passes for the own one's

The first two are those of training's evals.
"""

import dataclasses
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlvm_jax.data.record import Record
from vlvm_jax.data.sample.assemble import Medium
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.questions import Question
from vlvm_jax.inference.answering import Answering
from vlvm_jax.inference.prompts import Prompts
from vlvm_jax.inference.requests import Request

Control = Literal["blank_video", "shuffled_frames", "shuffled_prompt", "shuffled_question"]
CONTROLS: tuple[Control, ...] = ("blank_video", "shuffled_frames", "shuffled_prompt", "shuffled_question")
SWAPPING: tuple[Control, ...] = ("shuffled_prompt", "shuffled_question")  # a question for another


def controlled(model: Answering, control: Control | None) -> Answering:
    """The same model, compiled once, given what a control makes of its clips.

    Raises:
      InputError: the control is about guidance, and the model's adapter has none.
    """
    if control == "shuffled_prompt" and not model.engine.model.adapter.needs_prompt:
        name = model.engine.model.config.adapter.name
        raise InputError(
            f"--control=shuffled_prompt: the question does not guide the adapter {name!r}; leave the control out "
            "(shuffled_question asks another question)"
        )
    if control not in ("blank_video", "shuffled_frames"):
        return model
    spec = dataclasses.replace(model.prompts.spec, control=control)
    prompts = _ByClip(spec, model.prompts.longest, model.prompts.answers)
    return Answering(model.engine, prompts, rows=model.rows, cache_bytes=model.cache_bytes)


class _ByClip(Prompts):
    """Shuffles the frames of each clip in its own way."""

    def media(self, request: Request) -> list[Medium]:
        record = Record(request.id, request.id, request.media, (), span=request.span)
        return self.loader.media(record, zlib.crc32(repr(request.media).encode()))


def others(questions: Sequence[Question], seed: int = 0) -> dict[str, Question]:
    """For each question, by id, another one: of other words, of its type and about another clip where there is one.

    Where no question of the type has other words, one of another type is taken. The same for the same list and seed.

    Raises:
      InputError: all questions have the same words.
    """
    if len({question.text for question in questions}) < 2:
        raise InputError(
            f"{questions[0].source}: all questions have the same words, {questions[0].text!r}: none can stand for "
            "another; leave out the controls shuffled_prompt and shuffled_question"
        )
    order = [questions[i] for i in np.random.default_rng(seed).permutation(len(questions))]
    by_type: dict[str, list[Question]] = defaultdict(list)
    for question in order:
        by_type[question.type].append(question)
    swapped = {}
    for place, question in enumerate(order):
        same = by_type[question.type]
        swapped[question.id] = _next(question, same, same.index(question)) or _next(question, order, place)
    return {question.id: swapped[question.id] for question in questions}


def _next(question: Question, order: Sequence[Question], place: int) -> Question | None:
    """The first one after a question's place, round to it again, that has other words; best about another clip."""
    fallback = None
    for step in range(1, len(order)):
        other = order[(place + step) % len(order)]
        if other.text == question.text:
            continue
        if other.media != question.media:
            return other
        fallback = fallback or other
    return fallback
