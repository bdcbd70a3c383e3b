"""A table of open questions or of multiple choice: IG-VLM's lists and NExT-QA's own.

Example:
    video_name,question_id,question,answer,question_type
    a.mp4,1,What jumps?,a dog,action

The columns may also be NExT-QA's: video, qid, question, answer, type, a0 to a4.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any

from vlvm_jax.data import json_lines
from vlvm_jax.data.record import short
from vlvm_jax.data.sources import options
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.benchmarks._format import (
    CLIP_KEYS,
    TYPE_KEYS,
    ListFile,
    ListFormat,
    about_clip,
    answer_of,
    clip_key,
    count_spans,
    first_of,
    read_bytes,
    text_of,
)
from vlvm_jax.evaluation.questions import Draft


def _read(file: ListFile) -> Iterator[Draft]:
    """NExT-QA numbers the questions of each video from 0, so a question's id is `VIDEO_QID`, as in its own code."""
    for index, raw, where in _rows(file):
        choice, clip = options.read(raw, where), clip_key(raw)
        if clip is None:
            raise InputError(f"{where}: no name of a clip under {' or '.join(map(repr, CLIP_KEYS))}")
        name = raw.get("question_id") or (f"{raw[clip]}_{raw['qid']}" if raw.get("qid") else str(index))
        question = about_clip(
            raw | {"question_id": name},
            where,
            file.clips,
            clip,
            text=text_of(raw, "question", where),
            answer=answer_of(raw, "answer", where) if choice is None else "",
            type=first_of(raw, ("question_type", *TYPE_KEYS), where) or "all",
        )
        yield question, choice


def _rows(file: ListFile) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The index, the values by column and `file: row index` of each row of a table."""
    path = file.path
    text, _ = json_lines.decode(read_bytes(path, "--questions"), path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # which is 131,072 characters at first
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = table.fieldnames or ()
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error})") from None
    if repeated := [column for column in columns if columns.count(column) > 1]:
        raise InputError(f"{path}: {columns.count(repeated[0])} columns {repeated[0]!r}; keep one of them")
    wanted = [CLIP_KEYS, ("question",), ("answer", *options.ANSWERS, *options.NUMBERS)]
    absent = [keys[0] for keys in wanted if not set(keys) & set(columns)]
    if absent:
        raise InputError(f"{path}: no column {absent[0]!r}; its columns are {short(list(columns))}")
    number = 0
    while True:
        where = f"{path}: row {number}"
        try:
            row = next(table, None)
        except csv.Error as error:
            raise InputError(f"{where}: not CSV ({error})") from None
        if row is None:
            return
        if None in row:
            raise InputError(
                f"{where}: {len(columns) + len(row[None])} fields for {len(columns)} columns; put a field that holds a "
                f"comma in double quotes (found beyond the last column: {short(row[None])})"
            )
        count_spans(row, file.unread)
        yield number, row, where
        number += 1


FORMAT = ListFormat(precedence=60, read=_read, ending=".csv")
