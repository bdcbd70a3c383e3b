"""Open questions in one list, X_q.json, and their answers in another, X_a.json: MSVD-QA, MSR-VTT-QA, ActivityNet-QA.

Example:
    {"video_name": "v_1", "question_id": "1", "question": "What jumps?"}

Its answer: {"question_id": "1", "answer": "a dog", "type": "1"}. Questions and answers are joined by `question_id`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlvm_jax.data.sources import options
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.benchmarks._format import (
    ListFile,
    ListFormat,
    about_clip,
    answer_of,
    has_ids,
    id_of,
    offers_options,
    records,
    tells_right_option,
    text_of,
)
from vlvm_jax.evaluation.questions import Draft


def _matches(raw: Mapping[str, Any]) -> bool:
    if offers_options(raw):
        return has_ids(raw) and not tells_right_option(raw)
    return has_ids(raw) and "question" in raw and "answer" not in raw


def _read(file: ListFile) -> Iterator[Draft]:
    assert file.answers is not None
    true: dict[str, tuple[dict, str]] = {}
    for _, raw, where in records(file.answers):
        name = id_of(raw, "question_id", where)
        if name in true:
            raise InputError(f"{where}: 'question_id' {name!r} stands here and in {true[name][1]}; ids must be unique")
        true[name] = raw, where
    asked = set()
    for _, raw, where in file.records():
        name = id_of(raw, "question_id", where)
        if name not in true:
            raise InputError(f"{where}: no record of {file.answers} has its 'question_id' {name!r}")
        answered, there = true[name]
        told = {key: answered[key] for key in (*options.ANSWERS, *options.NUMBERS) if key in answered}
        choice, type = options.read({**raw, **told}, there), answered.get("type")
        question = about_clip(
            raw,
            where,
            file.clips,
            "video_name",
            text=text_of(raw, "question", where),
            answer=answer_of(answered, "answer", there) if choice is None else "",
            type="all" if type is None or type == "" else str(type),
        )
        yield question, choice
        asked.add(name)
    if unasked := [name for name in true if name not in asked]:
        raise InputError(f"{true[unasked[0]][1]}: no record of {file.path} has its 'question_id' {unasked[0]!r}")


def _answers_beside(path: str) -> str:
    """The list of answers in the same folder: `X_a.json` for `X_q.json`."""
    match = re.fullmatch(r"(.*)_q(\.jsonl?)", path, re.IGNORECASE | re.DOTALL)
    if match is None:
        raise InputError(
            f"{path}: questions without answers; name the list of answers with --answers (it is found by itself beside "
            "a file that ends in _q.json)"
        )
    return f"{match[1]}_a{match[2]}"


FORMAT = ListFormat(precedence=30, read=_read, matches=_matches, answers_beside=_answers_beside)
