"""What differs between PyAV's versions. The decode tests run under several of them."""

from fractions import Fraction

import av
import numpy as np
import pytest
from support.media_files import moving, write_clip

from vlvm_jax.data.media import pyav
from vlvm_jax.data.media.frame_rules import uniform_indices
from vlvm_jax.data.media.frames import decode_clip


def test_rationals_are_fractions_or_none():
    unset = [None, Fraction(0)]
    rates = [Fraction(30000, 1001)]
    if hasattr(av, "AVRational"):
        unset += [av.AVRational(0, 1), av.AVRational(1, 0), av.AVRational(0, 0)]
        rates += [av.AVRational(30000, 1001), av.AVRational(60000, 2002)]
    assert [pyav.fraction(value) for value in unset] == [None] * len(unset)
    found = [pyav.fraction(value) for value in rates]
    assert found == [Fraction(30000, 1001)] * len(rates) and {type(value) for value in found} == {Fraction}


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv"])
def test_metadata_that_are_not_utf8(tmp_path, name):
    path = tmp_path / name
    write_clip(path, moving(20, (64, 48)), title="Zurich")
    plain = decode_clip(str(path), 4, lambda pixels: pixels)
    data = path.read_bytes()
    assert data.count(b"Zurich") == 1
    path.write_bytes(data.replace(b"Zurich", b"Z\xfcrich"))
    clip = decode_clip(str(path), 4, lambda pixels: pixels)
    assert clip.times == pytest.approx([i / 10 for i in uniform_indices(20, 4)])
    np.testing.assert_array_equal(clip.frames, plain.frames)
