"""The text around visual tokens, against what transformers' processors write."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hf_checkpoints import processor
from transformers.video_utils import VideoMetadata

from vlvm_jax.families import idefics3, internvl, smolvlm

IDEFICS3, SMOLVLM, INTERNVL = idefics3.Family(), smolvlm.Family(), internvl.Family()


def written(pieces, token="<image>"):
    return "".join(token * piece if isinstance(piece, int) else piece for piece in pieces)


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 2), (2, 1), (3, 4)])
def test_idefics_images(rows, columns):
    hf = processor("idefics3")
    expected = hf.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
    assert written(IDEFICS3.image_pieces(hf.tokenizer, (rows, columns), hf.image_seq_len)) == expected


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 2), (2, 1), (2, 3)])
def test_internvl_images(rows, columns):
    hf = processor("internvl")
    expected = hf.replace_image_token({"num_patches": [rows * columns + 1]}, 0)
    pieces = INTERNVL.image_pieces(hf.tokenizer, (rows, columns), hf.image_seq_length)
    assert written(pieces, "<IMG_CONTEXT>") == expected


@pytest.mark.parametrize("frames", [1, 2, 11])
def test_internvl_clips(frames):
    hf = processor("internvl")
    expected = hf.replace_video_token({"pixel_values_videos": np.zeros((1, frames, 3, 32, 32))}, 0)
    pieces = INTERNVL.clip_pieces(hf.tokenizer, [0.0] * frames, None, hf.image_seq_length)
    assert written(pieces, "<IMG_CONTEXT>") == expected


times = st.lists(st.floats(0, 9000), min_size=1, max_size=30).map(sorted)


@settings(deadline=None, max_examples=30)
@given(times=times, duration=st.none() | st.floats(0, 200_000))
def test_smolvlm_clips(times, duration):
    pytest.importorskip("num2words")
    hf = processor("smolvlm")
    metadata = SimpleNamespace(fps=8, timestamps=times, duration=duration)
    clip = {"pixel_values": np.zeros((1, len(times), 3, 32, 32)), "video_metadata": [metadata]}
    assert written(SMOLVLM.clip_pieces(hf.tokenizer, times, duration, hf.image_seq_len)) == hf.replace_video_token(
        clip, 0
    )


def test_a_smolvlm_clip_in_full():
    metadata = VideoMetadata(total_num_frames=800, fps=8.0, duration=100.0, frames_indices=[0, 520])
    around = "<fake_token_around_image><global-img><image><image><fake_token_around_image>"
    assert written(SMOLVLM.clip_pieces(None, metadata.timestamps, metadata.duration, 2)) == (
        "You are provided the following series of two frames from a 0:01:40 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{around}\nFrame from 01:05:{around}\n\n"
    )


def test_the_template_for_clips_shows_them():
    assert "<video>" in str(SMOLVLM.clip_template)
