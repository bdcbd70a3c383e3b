"""Which clips are set aside: a hash of a clip's name decides, so it stays on its side when others are added."""

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import LISTED, Record

LEFT = 4  # times as many clips as are set aside have to be left, or none is set aside


def chosen(source: Sequence[Record], entry: MixtureEntry) -> np.ndarray:
    """Which records an entry takes by its `held_out` and `side`; those that cannot be read are on the training side."""
    if not entry.held_out:
        return np.ones(len(source), bool)
    keys = [_key(source, number) for number in range(len(source))]
    aside = set_aside({key for key in keys if key is not None}, entry)
    return np.array([(key in aside) == (entry.side == "held_out") for key in keys], bool)


def set_aside(keys: set[str], entry: MixtureEntry) -> set[str]:
    """The clips that are set aside: those with small hashes; none where there are too few clips."""
    places = {key: place(key) for key in keys}
    by_share = {key for key in keys if places[key] < entry.held_out}
    if len(by_share) >= entry.held_out_clips:
        return by_share
    if len(keys) < (1 + LEFT) * entry.held_out_clips:
        return set()
    return set(sorted(keys, key=lambda key: (places[key], key))[: entry.held_out_clips])


def place(key: str) -> float:
    """A clip's place in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64


def _key(source: Sequence[Record], number: int) -> str | None:
    """What tells a record's clip: its file's name, the folder of a list of frames, or the words of text alone."""
    try:
        record = source[number]
    except BadSampleError:
        return None
    if not record.media:
        return record.turns[0].question + record.turns[0].answer
    path = record.media[0][1]
    first = PurePosixPath(path.split(LISTED)[0])
    return first.parent.name if LISTED in path else first.name
