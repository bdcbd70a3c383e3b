"""T2Vid's lists, whose prompts hold the options: Video-MME, MVBench and others as its released code asks them.

Example:
    {"question_id": "1", "video": "a.mp4", "prompt": "What jumps?\\nA. a dog\\nB. a cat", "GT": "A",
     "category": "action"}

JSON or JSONL.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from vlvm_jax.data.record import short
from vlvm_jax.data.sources.options import LETTERS
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.benchmarks._format import ListFile, ListFormat, about_clip, text_of
from vlvm_jax.evaluation.questions import Draft


def _matches(raw: Mapping[str, Any]) -> bool:
    return "prompt" in raw and "GT" in raw


def _read(file: ListFile) -> Iterator[Draft]:
    for _, raw, where in file.records():
        text, offered = split_prompt(text_of(raw, "prompt", where))
        prompt = raw["prompt"]  # asked as it is, with its outer spaces
        letter = raw.get("GT")
        known = LETTERS[: len(offered) or len(LETTERS)]
        if not isinstance(letter, str) or len(letter) != 1 or letter not in known:
            raise InputError(f"{where}: 'GT' must be one letter from A to {known[-1]}, found {short(letter)}")
        question = about_clip(
            raw,
            where,
            file.clips,
            "video",
            text=text,
            answer=offered[known.index(letter)] if offered else "",
            type=str(raw.get("category") or "all"),
            options=offered,
            letter=letter,
            prompt=prompt,
            carried={key: raw[key] for key in ("question_id", "prompt", "GT", "category") if key in raw},
        )
        yield question, None


def split_prompt(prompt: str) -> tuple[str, tuple[str, ...]]:
    """Splits a prompt into its question and options: a line "A. ..." and the lines of the next letters right after it.

    A prompt without such lines is all question.
    """
    lines = prompt.split("\n")
    start = next((number for number, line in enumerate(lines) if number and line.startswith("A. ")), len(lines))
    lettered = zip(LETTERS, lines[start:], strict=False)
    options = [
        line[3:].strip() for _, line in itertools.takewhile(lambda one: one[1].startswith(f"{one[0]}. "), lettered)
    ]
    return "\n".join(lines[:start]).strip() if options else prompt, tuple(options)


FORMAT = ListFormat(precedence=10, read=_read, matches=_matches)
