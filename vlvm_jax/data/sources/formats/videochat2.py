"""VideoChat2-IT: exchanges of an instruction, a question and an answer about a clip, or about a part of it.

Example:
    {"video": "a.mp4", "start": 1, "end": 4, "QA": [{"i": "Watch the clip.", "q": "What jumps?", "a": "A dog."}]}
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vlvm_jax.data.record import short
from vlvm_jax.data.sources import media_keys
from vlvm_jax.data.sources.formats._format import Format, Turns, exchange
from vlvm_jax.errors import InputError


def _parse(raw: Mapping[str, Any], where: str, _notes: Counter) -> tuple[Turns, dict[str, Any]]:
    """Puts the first exchange's instruction before its question. Captions have an instruction and no question."""
    pairs = raw["QA"]
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) and {"q", "a"} <= pair.keys() for pair in pairs):
        raise InputError(f"{where}: 'QA' must be a list of {{'i', 'q', 'a'}}, found {short(pairs)}")
    turns = []
    for number, pair in enumerate(pairs):
        instruction, question = pair.get("i") or "", pair["q"] or ""
        if instruction and question and number == 0:
            question = f"{instruction}\n{question}"
        turns += exchange(question or instruction, pair["a"])
    return turns, media_keys.read(raw, where)


FORMAT = Format(keys=("QA",), precedence=30, parse=_parse, lists=("QA",))
