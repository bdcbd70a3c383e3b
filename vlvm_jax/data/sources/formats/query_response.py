"""ms-swift: a query and its response, with the exchanges before them as `history`.

Example:
    {"videos": ["a.mp4"], "query": "Where?", "response": "Over a fence.", "history": [["What jumps?", "A dog."]]}
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vlvm_jax.data.sources import media_keys
from vlvm_jax.data.sources.formats._format import Format, Turns, exchange, history


def _parse(raw: Mapping[str, Any], where: str, _notes: Counter) -> tuple[Turns, dict[str, Any]]:
    return history(raw, where) + exchange(raw["query"], raw["response"]), media_keys.read(raw, where)


FORMAT = Format(keys=("query", "response"), precedence=80, parse=_parse, texts=("history",), lists=("history",))
