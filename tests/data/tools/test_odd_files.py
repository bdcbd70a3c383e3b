"""Decoding, `check` and `prepare` agree on every odd file: which can be used, and what it shows."""

import numpy as np
import pytest
from PIL import Image
from support.odd_media import ODD

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import frames
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.tools.check import Checker
from vlvm_jax.data.tools.record_bytes import record_bytes
from vlvm_jax.data.tools.reencode import PROBED, Target


def cause(use):
    """Why a file cannot be used; empty where it can."""
    try:
        use()
    except BadSampleError as error:
        return error.cause
    return ""


@pytest.mark.parametrize("kind", ODD)
def test_all_commands_take_or_drop_the_same(tmp_path, kind):
    path = ODD[kind](tmp_path)
    record = Record("1", "notes.json: 0", (("video", path),), (Turn("What moves?", "It."),))
    decoded = cause(lambda: frames.decode_frames(path, PROBED))
    assert Checker([record], None)(0).cause == decoded
    for target in (Target(), Target(size=16), Target(fps=1)):
        assert cause(lambda target=target: record_bytes(record, target)) == decoded
    if not decoded and kind != "begins within a group":  # of which decoding counts times from either start
        shows_the_same(tmp_path, kind, path, record)


def shows_the_same(tmp_path, kind, path, record):
    """A prepared clip shows at its times what the source does."""
    file = tmp_path / "prepared.mp4"
    file.write_bytes(record_bytes(record, Target(size=1000))[1][0].data)
    prepared = frames.decode_frames(str(file), 5)
    if not any(word in kind for word in ("cut", "hole", "trunc", "damaged", "broken")):
        assert prepared.duration == pytest.approx(frames.decode_frames(path, 5).duration, abs=2e-3)
    try:
        source = frames.decode_frames(path, 1000)
    except BadSampleError:  # not every frame of it decodes
        return
    for time, pixels in zip(prepared.times, prepared.frames, strict=True):
        shown = source.frames[int(np.searchsorted(source.times, time + 2e-3, "right")) - 1]
        assert np.abs(coarse(shown) - coarse(pixels)).mean() < 8  # neighbours are further apart


def coarse(pixels):
    """A picture without the detail that compression loses."""
    return np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BOX)).astype(int)
