"""A clip or image with a question and its answer, or with options: MVBench, Video-MME, a list of your own.

Example:
    {"video": "a.mp4", "question": "What jumps?", "options": ["a dog", "a cat"], "answer": "A", "type": "action"}

JSON or JSONL. The clip may also be under `video_name`, `videoID`, `video_id` or `q_uid`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vlvm_jax.data import record
from vlvm_jax.data.sources import formats, media_keys, options
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.benchmarks._format import (
    ID_KEYS,
    TYPE_KEYS,
    ListFile,
    ListFormat,
    answer_of,
    clip_key,
    first_of,
    has_ids,
    of_record,
    offers_options,
    text_of,
)
from vlvm_jax.evaluation.questions import Draft


def _matches(raw: Mapping[str, Any]) -> bool:
    return not has_ids(raw) and (offers_options(raw) or ("question" in raw and "answer" in raw))


def _read(file: ListFile) -> Iterator[Draft]:
    for index, raw, where in file.records():
        choice = options.read(raw, where)
        answer = answer_of(raw, "answer", where) if choice is None else "-"
        said = {"question": text_of(raw, "question", where), "answer": answer}
        hidden = {*options.keys_in(raw), *options.LISTS, *options.ANSWERS, *options.NUMBERS}
        if not media_keys.read(raw, where) and (key := clip_key(raw)) is not None:
            said["video"] = str(raw[key])
        known = {"id": first_of(raw, ID_KEYS, where), "type": first_of(raw, TYPE_KEYS, where)}
        said |= {key: value for key, value in known.items() if value is not None}
        kept = {key: value for key, value in raw.items() if key not in (*hidden, *ID_KEYS, *TYPE_KEYS)}
        read = record.parse(formats.to_llava(kept | said, "qa", where, str), where, index, file.clips.locate)
        if not read.media:
            raise InputError(f"{where}: no 'video' (nor 'image'), which a record of the format {file.format!r} has")
        yield of_record(read, read.id, file.clips), choice


FORMAT = ListFormat(precedence=50, read=_read, matches=_matches, reads_span=True)
