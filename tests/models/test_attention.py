"""The kernels against the plain formula, forward and backward. Splash runs interpreted, on any device."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlvm_jax.config import MeshConfig
from vlvm_jax.models import attention as attention_lib
from vlvm_jax.models.attention import (
    attention,
    attention_received,
    blocked_attention,
    cached_attention,
    causal_mask,
    segment_mask,
    splash_attention,
)
from vlvm_jax.parallel.mesh import make_mesh


def plain(query, key, value, mask=None):
    """softmax(q k^T / sqrt(F)) v, head by head, fp32."""
    groups = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    logits = jnp.einsum("bqhf,bkhf->bhqk", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    return jnp.einsum("bhqk,bkhf->bqhf", jax.nn.softmax(logits, axis=-1), value)


def inputs(length, heads, groups, width, batch=2):
    rng = np.random.default_rng(length + heads)
    shapes = [(batch, length, heads, width), (batch, length, groups, width), (batch, length, groups, width)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def packed(length, batch=2):
    """Segments 1 and 2, then padding; positions from 0 in each."""
    segments = np.zeros((batch, length), np.int32)
    segments[:, : length // 3] = 1
    segments[:, length // 3 : length - 5] = 2
    positions = np.concatenate([np.arange(length // 3), np.arange(length - length // 3)])
    return jnp.asarray(segments), jnp.asarray(np.tile(positions, (batch, 1)))


@pytest.mark.parametrize(
    ("length", "heads", "groups", "width"),
    [(128, 2, 2, 128), (200, 4, 2, 64), (130, 2, 1, 72)],
    ids=["whole block", "grouped heads, padded", "one key head, odd width"],
)
def test_splash_is_causal_attention_within_segments(length, heads, groups, width):
    query, key, value = inputs(length, heads, groups, width)
    segments, positions = packed(length)
    mask = segment_mask(segments, segments, positions, positions)
    real = (segments > 0)[:, :, None, None]

    def weighed(function):
        return lambda *qkv: jnp.sum(jnp.where(real, function(*qkv), 0) * jnp.cos(jnp.arange(width)))

    def splash(*qkv):
        return splash_attention(*qkv, segments, causal=True, interpret=True)

    np.testing.assert_allclose(
        jnp.where(real, splash(query, key, value), 0), jnp.where(real, plain(query, key, value, mask), 0), atol=2e-5
    )
    assert np.isfinite(splash(query, key, value)).all()
    ours = jax.grad(weighed(splash), argnums=(0, 1, 2))(query, key, value)
    theirs = jax.grad(weighed(lambda *qkv: plain(*qkv, mask)), argnums=(0, 1, 2))(query, key, value)
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("length", [36, 257], ids=["6 x 6 patches", "16 x 16 patches and a class token"])
def test_splash_is_full_attention_for_towers(length):
    query, key, value = inputs(length, 2, 2, 64)
    got = splash_attention(query, key, value, None, causal=False, interpret=True)
    np.testing.assert_allclose(got, plain(query, key, value), atol=2e-5)


@pytest.mark.parametrize(("length", "block"), [(64, 16), (70, 16), (9, 16)], ids=["whole", "a rest", "less than one"])
def test_blocks_of_queries_are_causal_attention_within_segments(length, block):
    query, key, value = inputs(length, 4, 2, 8)
    segments, positions = packed(length)
    mask = segment_mask(segments, segments, positions, positions)
    real = (segments > 0)[:, :, None, None]

    def weighed(function):
        return lambda *qkv: jnp.sum(jnp.where(real, function(*qkv, mask), 0) * jnp.cos(jnp.arange(8)))

    def blocked(*args):
        return blocked_attention(*args, block=block)

    got = blocked(query, key, value, mask)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(jnp.where(real, got, 0), jnp.where(real, plain(query, key, value, mask), 0), atol=2e-6)
    ours = jax.grad(weighed(blocked), argnums=(0, 1, 2))(query, key, value)
    theirs = jax.grad(weighed(plain), argnums=(0, 1, 2))(query, key, value)
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_logits_of_bfloat16_are_summed_in_fp32():
    """Logits of some hundred: rounded to bf16 they would be off by one, and the weights by a factor of e."""
    query, key, value = (x.astype(jnp.bfloat16) for x in inputs(12, 4, 2, 8))
    query = query * 40
    everything = jnp.ones((2, 1, 12, 12), bool)
    expected = plain(*(x.astype(jnp.float32) for x in (query, key, value)))
    found = cached_attention(query, key.swapaxes(1, 2), value.swapaxes(1, 2), everything)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03)


def test_padding_is_seen_by_nobody():
    segments = jnp.array([[1, 1, 2, 0, 0]])
    seen = segment_mask(segments, segments)[0, 0].astype(int).tolist()
    assert seen == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0] * 5, [0] * 5]


def test_attention_received_is_a_mean_over_queries_and_heads():
    query, key, _ = inputs(5, 2, 2, 4)
    logits = np.einsum("bqhf,bkhf->bhqk", query, key) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for from_first, expected in ((True, weights[:, :, 0].mean(1)), (False, weights.mean((1, 2)))):
        found = attention_received(query, key, from_first=from_first)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(("mesh", "blocks"), [(None, 3), (MeshConfig(data=8), 3), (MeshConfig(context=8), 1)])
def test_long_sequences_go_by_blocks_unless_they_are_split_over_devices(mesh, blocks):
    """The shapes of the products say which."""
    length = 2 * attention_lib._BLOCK + 8
    query, key, value = inputs(length, 2, 2, 8, batch=8)
    segments, positions = packed(length, batch=8)

    def run(query, key, value):
        return attention(query, key, value, causal_mask(segments, positions, jnp.float32))

    with contextlib.nullcontext() if mesh is None else jax.set_mesh(make_mesh(mesh)):
        text = str(jax.make_jaxpr(run)(query, key, value))
    assert text.count("dot_general[") == 2 * blocks


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, context=4)], ids=["whole", "split"])
@pytest.mark.parametrize("window", [1, 40, 130])
def test_splash_with_a_window(window, mesh):
    """Two samples a row: who sees whom is told by positions, the kernel goes by places in the row."""
    length = 256 if mesh is None else 1024
    query, key, value = inputs(length, 2, 1, 64)
    segments, positions = packed(length)
    mask = segment_mask(segments, segments, positions, positions, window)
    assert 0 < mask.sum() < segment_mask(segments, segments, positions, positions).sum()
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(make_mesh(mesh)):
        run = jax.jit(lambda *a: splash_attention(*a, causal=True, window=window, interpret=True))
        got = run(query, key, value, segments)
    real = (segments > 0)[:, :, None, None]
    np.testing.assert_allclose(jnp.where(real, got, 0), jnp.where(real, plain(query, key, value, mask), 0), atol=2e-5)


def test_splash_on_a_mesh_splits_rows_and_heads():
    query, key, value = inputs(128, 4, 2, 64, batch=4)
    segments, positions = packed(128, batch=4)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        got = jax.jit(lambda *a: splash_attention(*a, causal=True, interpret=True))(query, key, value, segments)
    assert got.sharding.spec[0] == ("data", "fsdp") and got.sharding.spec[2] == "tensor"
    mask = segment_mask(segments, segments, positions, positions)
    real = (segments > 0)[:, :, None, None]
    np.testing.assert_allclose(jnp.where(real, got, 0), jnp.where(real, plain(query, key, value, mask), 0), atol=2e-5)


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(1024, {"data": 2, "context": 4}), (504, {"context": 2, "tensor": 2, "data": 2}), (768, {"context": 3})],
    ids=["whole blocks", "padded, heads split", "an odd number of shards"],
)
def test_splash_over_a_split_sequence(length, sizes):
    """Forward and backward, keys and values gathered, causal work shared out evenly."""
    devices = jax.devices()[:3] if sizes == {"context": 3} else None
    query, key, value = inputs(length, 2, 2, 64)
    segments, positions = packed(length)
    mask = segment_mask(segments, segments, positions, positions)
    real = (segments > 0)[:, :, None, None]

    def weighed(function):
        return lambda *qkv: jnp.sum(jnp.where(real, function(*qkv), 0) * jnp.cos(jnp.arange(64)))

    def split(*qkv):
        return splash_attention(*qkv, segments, causal=True, interpret=True)

    with jax.set_mesh(make_mesh(MeshConfig(**{"data": 1, **sizes}), devices)):
        got = jax.jit(split)(query, key, value)
        ours = jax.jit(jax.grad(weighed(split), argnums=(0, 1, 2)))(query, key, value)
    assert got.sharding.spec[1] == "context"
    np.testing.assert_allclose(jnp.where(real, got, 0), jnp.where(real, plain(query, key, value, mask), 0), atol=2e-5)
    theirs = jax.grad(weighed(lambda *qkv: plain(*qkv, mask)), argnums=(0, 1, 2))(query, key, value)
    for mine, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, want, atol=1e-4)


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_causal_work_is_shared_out_evenly(shards):
    halves = attention_lib._halves(shards)
    assert sorted(halves) == list(range(2 * shards))
    assert set(halves[0::2] + halves[1::2]) == {2 * shards - 1}


def test_the_kernel_follows_the_mesh_not_the_process():
    """A program for a TPU, compiled on a host that has none, takes the TPU's kernel and makes no [L, L] mask."""
    assert attention_lib.kernel_here(jnp.float32) == "xla"
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    segments, positions = packed(128)
    with jax.sharding.use_abstract_mesh(mesh):
        assert attention_lib.kernel_here(jnp.float32) == "splash"
        assert causal_mask(segments, positions, jnp.float32).visible is None
    assert causal_mask(segments, positions, jnp.float32).visible.shape == (2, 1, 128, 128)
