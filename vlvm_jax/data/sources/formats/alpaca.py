"""Alpaca and LLaMA-Factory: an instruction, its input and the output, with earlier exchanges as `history`.

Example:
    {"instruction": "What jumps?", "input": "Name the animal.", "output": "A dog.", "history": [], "video": "a.mp4"}
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vlvm_jax.data.record import short
from vlvm_jax.data.sources import media_keys
from vlvm_jax.data.sources.formats._format import Format, Turns, exchange, history
from vlvm_jax.errors import InputError


def _parse(raw: Mapping[str, Any], where: str, _notes: Counter) -> tuple[Turns, dict[str, Any]]:
    """Puts the input on a line of its own after the instruction."""
    question, more = raw["instruction"], raw.get("input")
    if not media_keys.is_empty(more):
        if not isinstance(more, str) or not isinstance(question, str):
            raise InputError(f"{where}: 'instruction' and 'input' must be texts, found {short(more)}")
        question = f"{question}\n{more}" if question else more
    return history(raw, where) + exchange(question, raw["output"]), media_keys.read(raw, where)


FORMAT = Format(
    keys=("instruction", "output"), precedence=90, parse=_parse, texts=("input", "history"), lists=("history",)
)
