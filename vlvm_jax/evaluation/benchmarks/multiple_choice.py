"""Multiple choice as IG-VLM and Free Video-LLM have it: options and the right one's number, letter or text.

Example:
    {"video_name": "a.mp4", "question_id": "1", "question": "What jumps?", "candidates": ["a dog", "a cat"],
     "answer_number": 0, "task_name": "action"}
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vlvm_jax.data.sources import options
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.benchmarks._format import (
    TYPE_KEYS,
    ListFile,
    ListFormat,
    about_clip,
    first_of,
    has_ids,
    offers_options,
    tells_right_option,
    text_of,
)
from vlvm_jax.evaluation.questions import Draft


def _matches(raw: Mapping[str, Any]) -> bool:
    return has_ids(raw) and tells_right_option(raw) and offers_options(raw)


def _read(file: ListFile) -> Iterator[Draft]:
    for _, raw, where in file.records():
        choice = options.read(raw, where)
        if choice is None:
            raise InputError(f"{where}: no options under 'candidates', 'options' or 'choices', nor one key for each")
        carried = {key: raw[key] for key in ("task_name", "answer_number", "candidates") if key in raw}
        question = about_clip(
            raw,
            where,
            file.clips,
            "video_name",
            text=text_of(raw, "question", where),
            answer="",
            type=first_of(raw, ("task_name", *TYPE_KEYS), where) or "all",
            carried=carried,
        )
        yield question, choice


FORMAT = ListFormat(precedence=20, read=_read, matches=_matches)
