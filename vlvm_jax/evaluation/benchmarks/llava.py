"""LLaVA's conversations, and the other formats of `data.sources.formats`; each exchange is a question of its own.

Example:
    {"video": "a.mp4", "conversations": [{"from": "human", "value": "What jumps?"}, {"from": "gpt", "value": "A dog."}]}
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vlvm_jax.data import record
from vlvm_jax.data.sample.turns import split_turns
from vlvm_jax.data.sources import formats
from vlvm_jax.evaluation.benchmarks._format import ListFile, ListFormat, of_record
from vlvm_jax.evaluation.questions import Draft


def _matches(raw: Mapping[str, Any]) -> bool:
    return any(format.matches(raw) for format in formats.FORMATS.values())


def _read(file: ListFile) -> Iterator[Draft]:
    name = ""
    for index, raw, where in file.records():
        name = name or formats.detect(raw, where)
        file.refuse_options(raw, where)
        read = record.parse(formats.to_llava(raw, name, where, str), where, index, file.clips.locate)
        turns = split_turns([read])
        for number, turn in enumerate(turns):
            yield of_record(turn, read.id if len(turns) == 1 else f"{read.id}/{number}", file.clips), None


FORMAT = ListFormat(precedence=90, read=_read, matches=_matches, reads_span=True)
