"""Decoding in a batch, against the plain way: the whole sequence anew for every token; sampling against numpy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hf import fill
from support.recipes import small

from vlvm_jax.models import decoding
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoding import NOTHING, Sampling
from vlvm_jax.models.params import Model
from vlvm_jax.models.video_llm import VideoLLM

MODEL = Model(small().model)
NEW = 6


@pytest.fixture(scope="module")
def params():
    from flax import nnx

    filled = fill(lambda: VideoLLM(MODEL.config, rngs=nnx.Rngs(0)))
    return {"/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(filled))}


@functools.cache
def greedy(end_ids: tuple[int, ...] = ()):
    return jax.jit(lambda params, batch: decoding.generate(MODEL.bind(params), batch, NEW, end_ids))


def batch(lengths, width):
    """A clip of one frame each, at the front, then text; rows padded to `width`."""
    rng = np.random.default_rng(3)
    adapter = MODEL.adapter
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
    tokens, counts = greedy()(params, batch(lengths, 16))
    wide = batch(lengths, 24)
    for number, length in enumerate(lengths):
        row = jax.tree.map(lambda x, i=number: x[i : i + 1], wide)
        assert np.asarray(tokens)[number].tolist() == one_by_one(params, row, length)
    assert np.asarray(counts).tolist() == [NEW, NEW]


def test_an_end_token_ends_its_row_alone(params):
    full = np.asarray(greedy()(params, batch((14, 9), 16))[0])
    end = next(int(t) for t in full[0][1:] if t not in full[1])
    at = full[0].tolist().index(end)
    tokens, counts = greedy((end,))(params, batch((14, 9), 16))
    assert np.asarray(counts).tolist() == [at + 1, NEW]
    assert np.asarray(tokens)[0].tolist() == full[0][: at + 1].tolist() + [NOTHING] * (NEW - at - 1)
    assert np.asarray(tokens)[1].tolist() == full[1].tolist()


def test_the_loop_stops_when_all_rows_have_ended(params):
    first = {int(row[0]) for row in np.asarray(greedy()(params, batch((14, 9), 16))[0])}
    tokens, counts = greedy(tuple(first))(params, batch((14, 9), 16))
    assert np.asarray(counts).tolist() == [1, 1]
    assert (np.asarray(tokens)[:, 1:] == NOTHING).all()


def test_cached_logits_equal_uncached_ones(params):
    """Prefill and every step, against a forward pass over the whole sequence."""
    length, width = 9, 16
    row = batch((length,), width)
    text = np.random.default_rng(5).integers(1, 60, NEW)
    whole = dataclasses.replace(
        row,
        token_ids=row.token_ids.at[0, length : length + NEW].set(text),
        positions=jnp.arange(width)[None],
        segment_ids=(jnp.arange(width) < length + NEW).astype(jnp.int32)[None],
    )
    model = MODEL.bind(params)
    expected = np.asarray(model.decoder.logits(model(whole)[0]))[0]
    logits, cache = decoding.prefill_step(model, row, width + NEW)
    assert np.abs(expected).max() > 0.5, "nothing to compare"
    np.testing.assert_allclose(logits[0], expected[length - 1], atol=1e-4)
    for step, token in enumerate(text):
        at = jnp.full((1, 1), length + step)
        logits, cache = decoding.decode_step(model, jnp.full((1, 1), token), at, cache)
        np.testing.assert_allclose(logits[0], expected[length + step], atol=1e-4)


def test_features_seen_before_give_the_same(params):
    row = batch((9,), 16)
    model = MODEL.bind(params)
    features = model.encode_media(row.frames)
    blind = dataclasses.replace(row, frames=row.frames[..., :0, :0, :])
    np.testing.assert_array_equal(
        decoding.prefill_step(model, blind, 16, features)[0], decoding.prefill_step(model, row, 16)[0]
    )


def reference_nucleus(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Probabilities of the fewest likeliest tokens that have top_p together."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights.sum()
    kept = np.zeros_like(weights)
    total = 0.0
    for token in sorted(range(len(weights)), key=lambda t: (-weights[t], t)):
        if total >= top_p:
            break
        kept[token] = weights[token]
        total += weights[token]
    return kept / kept.sum()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_nucleus_against_numpy(top_p):
    logits = np.random.default_rng(0).normal(0, 2, (6, 40)).astype(np.float32)
    logits[1, :4] = 3.0  # equally likely
    found = np.asarray(jax.nn.softmax(decoding.nucleus(jnp.asarray(logits), jnp.float32(top_p)), axis=-1))
    for row, expected in zip(found, (reference_nucleus(row, top_p) for row in logits), strict=True):
        np.testing.assert_array_equal(row > 0, expected > 0)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_what_is_drawn_has_the_distribution():
    """Chi-squared against numpy over 20000 draws at temperature 0.7 and top-p 0.8."""
    draws, logits = 20_000, np.random.default_rng(1).normal(0, 1.5, 12).astype(np.float32)
    expected = reference_nucleus(logits / 0.7, 0.8)
    keys = jax.random.split(jax.random.PRNGKey(7), draws)
    sampling = Sampling(jnp.float32(0.7), jnp.float32(0.8), keys)
    said = decoding.choose(jnp.tile(logits, (draws, 1)), jnp.zeros(draws, jnp.int32), sampling)
    counts = np.bincount(np.asarray(said), minlength=12)
    possible = expected > 0
    assert 3 <= possible.sum() < 12
    assert not counts[~possible].any()
    chi = ((counts - draws * expected)[possible] ** 2 / (draws * expected[possible])).sum()
    assert chi < 35, (counts, expected)  # with at most 11 degrees of freedom, once in four thousand


def test_a_row_draws_anew_for_each_of_its_tokens():
    """Rows with one key, as far as their first, second, ... token."""
    rows = 64
    sampling = Sampling(jnp.float32(1.0), jnp.float32(1.0), jnp.tile(jax.random.PRNGKey(0), (rows, 1)))
    flat = jnp.zeros((rows, 40))
    said = decoding.choose(flat, jnp.arange(rows), sampling)
    assert len(set(said.tolist())) > 20
    assert said.tolist() == decoding.choose(flat, jnp.arange(rows), sampling).tolist()
    assert len(set(decoding.choose(flat, jnp.full(rows, 3), sampling).tolist())) == 1


def test_a_row_ends_with_its_limit_or_an_end_token():
    counts, most, said = [1, 2, 3, 1, 1], [2, 2, 2, 9, 9], [7, 7, 7, 5, 7]
    cache: Any = None
    progress = decoding.Progress(
        cache, jnp.array(said), jnp.zeros(5, int), jnp.array(counts), jnp.zeros(5, bool)
    )  # fmt: skip
    limits = decoding.Limits(jnp.array([5, 6]), jnp.array(most))
    assert decoding._ends(progress, limits).tolist() == [False, True, True, True, False]


def test_a_row_draws_the_same_whatever_its_neighbours(params):
    keys = jax.vmap(jax.random.PRNGKey)(jnp.arange(2))
    draw = jax.jit(lambda params, batch, sampling: decoding.generate(MODEL.bind(params), batch, NEW, (), sampling)[0])
    rows = batch((14, 9), 16)
    both = draw(params, rows, Sampling(jnp.float32(1.0), jnp.float32(0.95), keys))
    assert both[0].tolist() != greedy()(params, rows)[0][0].tolist()
    for number in range(2):
        alone = jax.tree.map(lambda x, i=number: x[i : i + 1], rows)
        sampling = Sampling(jnp.float32(1.0), jnp.float32(0.95), keys[number : number + 1])
        assert draw(params, alone, sampling)[0].tolist() == both[number].tolist()
