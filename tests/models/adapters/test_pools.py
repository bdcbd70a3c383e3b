"""Pools over a frame's grid: worked numbers, torch's own pools, and a reference written from the words."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import _pools as pools

INDEX = np.arange(576, dtype=np.float32).reshape(24, 24)


def pool(name, side=24, size=None):
    return pools.grid_pool(name, side, size, where="config.x")


def pooled(name, x, size=None):
    """[side, side] through the pool, as its grid."""
    made = pool(name, len(x), size)
    return np.asarray(made(jnp.asarray(x).reshape(-1, 1))).reshape(len(made.rows), len(made.columns))


def test_1d_pool_pairs_neighbours_of_a_row():
    out = pooled("spatial_1d_max_pool", INDEX)
    assert out.shape == (24, 12)  # the true grid: 24 rows of 12
    np.testing.assert_array_equal(out[0], np.arange(1, 24, 2))  # the larger of columns (0, 1), (2, 3), ...
    np.testing.assert_array_equal(out[23], 552 + np.arange(1, 24, 2))
    flattened = INDEX.reshape(-1, 2)  # what torch's pool over the flattened 576 takes together
    np.testing.assert_array_equal(out.reshape(-1), flattened.max(1))
    np.testing.assert_array_equal(pooled("spatial_1d_avg_pool", INDEX).reshape(-1), flattened.mean(1))
    np.testing.assert_array_equal(pooled("vertical_1d_max_pool", INDEX), INDEX[1::2])


def test_numbers_of_tokens():
    found = {name: pool(name).num_tokens for name in pools._WINDOWS}
    assert found == {
        "concat": 576, "spatial_1d_max_pool": 288, "spatial_1d_avg_pool": 288, "vertical_1d_max_pool": 288,
        "spatial_2d_max_pool": 144, "spatial_2d_avg_pool": 144, "spatial_temporal_pool": 144,
        "temporal_global_pool": 576,
    }  # fmt: skip
    assert pool("adaptive_2d_pool", size=(9, 19)).num_tokens == 171
    assert pool("spatial_temporal_pool").parts == 16 and pool("temporal_global_pool").parts == 1


def test_adaptive_windows():
    assert pools.adaptive_windows(24, 9) == (
        (0, 3), (2, 6), (5, 8), (8, 11), (10, 14), (13, 16), (16, 19), (18, 22), (21, 24),
    )  # fmt: skip
    assert pools.adaptive_windows(24, 4) == ((0, 6), (6, 12), (12, 18), (18, 24))


def test_fast_grid_is_means_of_6_by_6():
    np.testing.assert_array_equal(pooled("adaptive_2d_pool", INDEX, (4, 4)), INDEX.reshape(4, 6, 4, 6).mean((1, 3)))
    constant = np.full((24, 24), 0.3, np.float32)
    np.testing.assert_allclose(pooled("adaptive_2d_pool", constant, (4, 4)), 0.3, rtol=1e-6)
    np.testing.assert_allclose(pooled("adaptive_2d_pool", constant, (9, 19)), 0.3, rtol=1e-6)


@given(side=st.integers(1, 13), data=st.data())
@settings(max_examples=40, deadline=None)
def test_adaptive_pool_is_torchs(side, data):
    size = data.draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    x = np.random.default_rng(side).standard_normal((side, side)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x)[None, None], size)[0, 0].numpy()
    np.testing.assert_allclose(pooled("adaptive_2d_pool", x, size), expected, atol=1e-6)


@given(side=st.integers(1, 9), name=st.sampled_from(sorted(pools._WINDOWS)))
@settings(max_examples=60, deadline=None)
def test_windows_of_any_side(side, name):
    """On odd sides the last window is what is left of it: torch's pools with `ceil_mode`, which count no padding."""
    size = {"concat": (1, 1), "temporal_global_pool": (1, 1), "vertical_1d_max_pool": (2, 1)}.get(name, (2, 2))
    size = (1, 2) if "spatial_1d" in name else size
    x = np.random.default_rng(side).standard_normal((side, side)).astype(np.float32)
    kind = torch.nn.functional.max_pool2d if "max" in name else torch.nn.functional.avg_pool2d
    expected = kind(torch.from_numpy(x)[None, None], size, ceil_mode=True)[0, 0].numpy()
    np.testing.assert_allclose(pooled(name, x), expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(pools._WINDOWS))
@pytest.mark.parametrize("side", [3, 4, 24])
def test_shares_say_what_a_token_is_made_of(side, name):
    made = pool(name, side)
    shares = made.shares()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    if made.reduce == "mean":
        x = np.random.default_rng(0).standard_normal((side**2, 5)).astype(np.float32)
        np.testing.assert_allclose(made(jnp.asarray(x)), shares @ x, atol=1e-6)
    x = np.zeros((side**2, 1), np.float32)
    x[-1] = 1
    np.testing.assert_array_equal(np.asarray(made(jnp.asarray(x)))[:, 0] > 0, shares[:, -1] > 0)


@given(count=st.integers(0, 20), parts=st.sampled_from([1, 16]))
@settings(max_examples=40, deadline=None)
def test_means_over_parts_of_the_frames_there_are(count, parts):
    x = np.random.default_rng(count).standard_normal((1, 20, 2, 3)).astype(np.float32)
    tokens, valid = pools.over_frames(jnp.asarray(x), jnp.arange(20)[None] < count, parts)
    assert tokens.shape == (1, parts, 2, 3) and valid.all() == valid.any() == (count > 0)
    if count:
        over_time = torch.from_numpy(x[0, :count]).permute(1, 2, 0)
        expected = torch.nn.functional.adaptive_avg_pool1d(over_time, parts).permute(2, 0, 1).numpy()
        np.testing.assert_allclose(tokens[0], expected, atol=1e-5)


def test_faults_are_named():
    with pytest.raises(InputError, match=r"config.x.grid: rows and columns of adaptive_2d_pool, and of no other"):
        pool("adaptive_2d_pool")
    with pytest.raises(InputError, match=r"config.x.grid: rows and columns .*found concat"):
        pool("concat", size=(2, 2))
    with pytest.raises(InputError, match=r"config.x.grid: 4 x 2 is larger than the grid of 3 x 3 tokens"):
        pool("adaptive_2d_pool", 3, (4, 2))
