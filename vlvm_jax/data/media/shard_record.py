"""One record of a shard, as bytes: a conversation and its media."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgpack

from vlvm_jax.data.record import MediaKind


@dataclasses.dataclass(frozen=True)
class StoredMedium:
    """A medium within a record: a compressed file, or the files of a clip's frames in time order.

    Attributes:
      name: of the file or folder it was, relative.
      data: the file; empty where there are `frames`.
      frames: one file each; empty where there is `data`.
      fps: frames per second of `frames`; 0 where that is not known.
    """

    kind: MediaKind
    name: str
    data: bytes = b""
    frames: tuple[bytes, ...] = ()
    fps: float = 0.0


def encode(record: Mapping[str, Any], media: Sequence[StoredMedium]) -> bytes:
    """One record of a shard.

    Args:
      record: a LLaVA JSON object; its media names stand in the order of `media`, images first, then videos.
    """
    stored = []
    for medium in media:
        content: dict[str, Any] = {"data": medium.data}
        if medium.frames:
            content = {"frames": list(medium.frames), "fps": float(medium.fps)}
        stored.append({"kind": medium.kind, "name": medium.name, **content})
    return cast(bytes, msgpack.packb({"record": dict(record), "media": stored}))


def decode(data: bytes) -> tuple[dict[str, Any], list[StoredMedium]]:
    """What `encode` was given.

    Raises:
      ValueError: the bytes are not such a record.
    """
    try:
        envelope = msgpack.unpackb(data)
        media = [
            StoredMedium(m["kind"], m["name"], m.get("data", b""), tuple(m.get("frames", ())), m.get("fps", 0.0))
            for m in envelope["media"]
        ]
        return dict(envelope["record"]), media
    except (msgpack.UnpackException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a record of a shard ({type(error).__name__}: {error})") from None
