"""A record with its media as bytes: what one record of a shard holds (`shards`)."""

import math
import re
from collections.abc import Sequence
from typing import Any

from vlvm_jax.data.faults import BadSampleError, reading
from vlvm_jax.data.media import containers, shard_record
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.record import MEDIA_KINDS, STILLS, MediaKind, Record
from vlvm_jax.data.tools import reencode
from vlvm_jax.data.tools.reencode import Target


def record_bytes(record: Record, target: Target) -> tuple[bytes, list[StoredMedium]]:
    """A record's bytes, and its media, images first.

    Raises:
      BadSampleError: one of its media cannot be used.
      StorageError: storage does not answer.
    """
    ordered = sorted(record.media, key=lambda medium: MEDIA_KINDS.index(medium[0]))
    media = [_stored(kind, path, target, record.span) for kind, path in ordered]
    return shard_record.encode(_as_llava(record, media), media), media


def _as_llava(record: Record, media: Sequence[StoredMedium]) -> dict[str, Any]:
    """The record as a JSON object that `record.parse` reads back."""
    raw: dict[str, Any] = {"id": record.id}
    for kind in MEDIA_KINDS:
        if names := [medium.name for medium in media if medium.kind == kind]:
            raw[kind] = names
    if record.span is not None:
        start, end = record.span
        raw |= {"start": start} if math.isinf(end) else {"start": start, "end": end}
    shown = iter([f"<{kind}>" for kind, _ in record.media])
    raw["conversations"] = [{"from": "system", "value": record.system}] if record.system else []
    for turn in record.turns:
        # So that each finds its medium again; without media it is text.
        question = re.sub("<image>", lambda _: next(shown), turn.question) if record.media else turn.question
        raw["conversations"] += [{"from": "human", "value": question}, {"from": "gpt", "value": turn.answer}]
    if any(turn.type for turn in record.turns):
        raw["types"] = [turn.type for turn in record.turns]
    return raw


def _stored(kind: MediaKind, path: str, target: Target, span: tuple[float, float] | None) -> StoredMedium:
    """A medium's bytes, after checking that frames can be decoded, also within the record's span."""
    with reading(path):
        files = containers.frame_names(path) if kind == "video" else None
        if files is not None:
            frames = tuple(reencode.image(_read(file), target, file) for file in files)
            if not frames:
                raise BadSampleError("empty", f"{path} holds no frame")
            return StoredMedium(kind, _name(kind, path), frames=frames, fps=containers.frame_rate(path) or 0.0)
        data = _read(path)
    if kind == "image":
        return StoredMedium(kind, _name(kind, path), reencode.image(data, target, path))
    if span is not None or not target.asked:
        reencode.probe(data, path, span)
    if target.asked:
        data = reencode.clip(data, target, path)
    return StoredMedium(kind, _name(kind, path), data)


def _read(path: str) -> bytes:
    with containers.open_medium(path) as file:
        return file.read()


def _name(kind: MediaKind, path: str) -> str:
    """What a medium is called in its record: the file's name. Of a clip no image's, which would be a frame's there."""
    name = path.rstrip("/").rpartition("/")[2]
    if kind == "video" and name.lower().endswith(STILLS):
        name = name.rpartition(".")[0]
    return name or kind
