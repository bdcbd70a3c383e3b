"""Video-ChatGPT's benchmark: a question about a clip, or two of them with one answer (consistency).

Example:
    {"video_name": "v_1", "question_id": "1", "question": ["What jumps?", "Which animal jumps?"], "answer": "A dog."}

Of two questions each is asked alone. Their ids end in /1 and /2.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vlvm_jax.data.record import short
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.benchmarks._format import ListFile, ListFormat, about_clip, answer_of, has_ids, text_of
from vlvm_jax.evaluation.questions import Draft


def _matches(raw: Mapping[str, Any]) -> bool:
    return has_ids(raw) and "question" in raw and "answer" in raw


def _read(file: ListFile) -> Iterator[Draft]:
    for _, raw, where in file.records():
        file.refuse_options(raw, where)
        answer, asked = answer_of(raw, "answer", where), raw.get("question")
        if not isinstance(asked, list):
            text = text_of(raw, "question", where)
            yield about_clip(raw, where, file.clips, "video_name", text=text, answer=answer), None
            continue
        if len(asked) != 2:
            raise InputError(f"{where}: 'question' must be a text or a list of two, found {short(asked)}")
        for number, text in enumerate(asked, start=1):
            text = text_of({"question": text}, "question", where)
            question = about_clip(
                raw, where, file.clips, "video_name", text=text, answer=answer, type="consistency", paired=True
            )
            yield dataclasses.replace(question, id=f"{question.id}/{number}"), None


FORMAT = ListFormat(precedence=40, read=_read, matches=_matches)
