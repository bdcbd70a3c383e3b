"""Greedy decoding in a batch, against the plain way: the whole sequence anew for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf import fill
from recipes import small

from vlvm_jax.inference.decode import Greedy
from vlvm_jax.models.params import Model
from vlvm_jax.models.video_llm import Batch, VideoLLM

MODEL = Model(small().model)
NEW = 6


@pytest.fixture(scope="module")
def params():
    from flax import nnx

    filled = fill(lambda: VideoLLM(MODEL.config, rngs=nnx.Rngs(0)))
    return {"/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(filled))}


def batch(lengths, width):
    """A clip of one frame each, at the front, then text; rows padded to `width`."""
    rng = np.random.default_rng(3)
    adapter = MODEL.bind(MODEL.abstract()).adapter
    visual, size, rows = adapter.num_video_tokens(1), MODEL.config.vision.image_size, len(lengths)
    frames = rng.integers(0, 256, (rows, 1, size, size, 3), dtype=np.uint8)
    text = rng.integers(1, 60, (rows, 32))
    places = np.arange(width)[None]
    real = places < np.array(lengths)[:, None]
    return Batch(
        frames=jnp.asarray(frames),
        media=jnp.ones((rows, 1), jnp.int32),
        is_video=jnp.ones((rows, 1), bool),
        token_ids=jnp.asarray(np.where(real, text[:, :width], 0), jnp.int32),
        media_mask=jnp.asarray(np.tile(places < visual, (rows, 1))),
        positions=jnp.asarray(np.where(real, places, 0), jnp.int32),
        segment_ids=jnp.asarray(real, jnp.int32),
        loss_mask=jnp.zeros((rows, width), bool),
    )


def one_by_one(params, row: Batch, length: int) -> list[int]:
    """Every token from a forward pass over all before it, in a row wide enough for all."""

    @jax.jit
    def logits(batch):
        bound = MODEL.bind(params)
        return bound.decoder.logits(bound(batch)[0])[0]

    said = []
    for step in range(NEW):
        token = int(jnp.argmax(logits(row)[length + step - 1]))
        said.append(token)
        place = length + step
        row = dataclasses.replace(
            row,
            token_ids=row.token_ids.at[0, place].set(token),
            positions=row.positions.at[0, place].set(place),
            segment_ids=row.segment_ids.at[0, place].set(1),
        )
    return said


def test_rows_of_different_lengths_each_say_what_they_would_alone(params):
    lengths = (14, 9)
    tokens, counts = Greedy(MODEL, max_new_tokens=NEW)(params, batch(lengths, 16))
    wide = batch(lengths, 24)
    for number, length in enumerate(lengths):
        row = jax.tree.map(lambda x, i=number: x[i : i + 1], wide)
        assert np.asarray(tokens)[number].tolist() == one_by_one(params, row, length)
    assert np.asarray(counts).tolist() == [NEW, NEW]


def test_an_end_token_ends_its_row_alone(params):
    full = np.asarray(Greedy(MODEL, max_new_tokens=NEW)(params, batch((14, 9), 16))[0])
    end = next(int(t) for t in full[0][1:] if t not in full[1])
    at = full[0].tolist().index(end)
    tokens, counts = Greedy(MODEL, max_new_tokens=NEW, end_ids=(end,))(params, batch((14, 9), 16))
    assert np.asarray(counts).tolist() == [at + 1, NEW]
    assert np.asarray(tokens)[0].tolist() == full[0][: at + 1].tolist() + [0] * (NEW - at - 1)
    assert np.asarray(tokens)[1].tolist() == full[1].tolist()


def test_the_loop_stops_when_all_rows_have_ended(params):
    first = {int(row[0]) for row in np.asarray(Greedy(MODEL, max_new_tokens=NEW)(params, batch((14, 9), 16))[0])}
    tokens, counts = Greedy(MODEL, max_new_tokens=NEW, end_ids=tuple(first))(params, batch((14, 9), 16))
    assert np.asarray(counts).tolist() == [1, 1]
    assert not np.asarray(tokens)[:, 1:].any()
