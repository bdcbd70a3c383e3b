"""The resampler connector: its formula, its positions, and what they let it tell apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import hf

from vlvm_jax.config import ConnectorConfig, VisionConfig, build
from vlvm_jax.errors import InputError
from vlvm_jax.models.connector import Connector
from vlvm_jax.models.resampler import Resampler, grid_positions, line_positions

D, C, QUERIES = 6, 256, 4  # two heads
RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((3, 9, D)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def resampler():
    return hf.fill(lambda: Resampler(D, C, QUERIES, dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=1)


def norm(module, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(module.scale[...]) + np.asarray(module.bias[...])


def dense(module, x):
    return x @ np.asarray(module.kernel[...]) + (0 if module.bias is None else np.asarray(module.bias[...]))


def formula(resampler, features, positions):
    """One item after another, in numpy."""
    out = []
    for x in features:
        values = norm(resampler.kv_norm, dense(resampler.kv_proj, x))
        queries = norm(resampler.q_norm, np.asarray(resampler.query[...])) + grid_positions(2, C)
        q, k, v = (
            dense(proj, of).reshape(-1, 2, C // 2).swapaxes(0, 1)
            for proj, of in zip(
                (resampler.q_proj, resampler.k_proj, resampler.v_proj),
                (queries, values + positions, values),
                strict=True,
            )
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(C // 2)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        read = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(-1, C)
        out.append(dense(resampler.output_proj, norm(resampler.post_norm, dense(resampler.out_proj, read))))
    return np.stack(out)


def test_its_formula(resampler):
    positions = grid_positions(3, C, of=2)
    np.testing.assert_allclose(
        resampler(FEATURES, positions)[:, 0], formula(resampler, FEATURES, positions), atol=2e-5, rtol=0
    )


def test_every_set_is_read_alone(resampler):
    ranges = [[(0, 9), (3, 5)], [(0, 4), (4, 9)], [(0, 1), (8, 9)]]
    sets = np.zeros((3, 2, 9), bool)
    for item, of_item in enumerate(ranges):
        for number, (start, stop) in enumerate(of_item):
            sets[item, number, start:stop] = True
    positions = line_positions(np.arange(9), C)
    out = np.asarray(resampler(FEATURES, positions, sets))
    assert out.shape == (3, 2, QUERIES, C)
    for item, of_item in enumerate(ranges):
        for number, (start, stop) in enumerate(of_item):
            alone = resampler(FEATURES[item : item + 1, start:stop], positions[start:stop])
            np.testing.assert_allclose(out[item, number], alone[0, 0], atol=1e-5, rtol=0)
    assert np.isfinite(resampler(FEATURES, positions, np.zeros_like(sets))).all()


def test_without_positions_order_is_lost(resampler):
    reversed_ = FEATURES[:, ::-1]
    none = np.zeros((9, C), np.float32)
    np.testing.assert_allclose(resampler(FEATURES, none), resampler(reversed_, none), atol=1e-5, rtol=0)
    positions = line_positions(np.arange(9), C)
    assert np.abs(np.asarray(resampler(FEATURES, positions) - resampler(reversed_, positions))).max() > 0.01


def test_positions_of_a_grid():
    """As MAE's and Qwen-VL's table: half the width for the column, half for the row; sines, then cosines."""
    found = grid_positions(3, 8)
    assert found.shape == (9, 8)
    for row in range(3):
        for column in range(3):
            expected = [f(place * omega) for place in (column, row) for f in (np.sin, np.cos) for omega in (1, 0.01)]
            np.testing.assert_allclose(found[3 * row + column], expected, atol=1e-6)


def test_places_of_a_finer_grid_lie_between():
    """Those of 4 x 4 in the coordinates of 2 x 2: -0.25, 0.25, 0.75, 1.25 along each side."""
    found = grid_positions(4, 8, of=2)
    np.testing.assert_allclose(found[:4, 0], np.sin([-0.25, 0.25, 0.75, 1.25]), atol=1e-6)
    np.testing.assert_allclose(grid_positions(5, 8, of=5), grid_positions(5, 8))


def test_as_a_connector():
    vision = VisionConfig(
        hidden_size=D, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=12, patch_size=4
    )
    config = ConnectorConfig(kind="resampler", num_queries=QUERIES)
    connector = hf.fill(lambda: Connector(config, vision, C, dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=1)
    assert connector.num_tokens == QUERIES
    out = connector(FEATURES.reshape(1, 3, 9, D))
    assert out.shape == (1, 3, QUERIES, C)
    np.testing.assert_allclose(out[0], connector.resampler(FEATURES, grid_positions(3, C, of=2))[:, 0], atol=1e-5)


def test_errors():
    with pytest.raises(InputError, match="num_queries 5 is not a square number"):
        build(ConnectorConfig, {"kind": "resampler", "num_queries": 5})
    with pytest.raises(InputError, match=r"config\.model\.decoder\.hidden_size: 6 is not a multiple of 4 x 1 heads"):
        Resampler(D, 6, QUERIES, dtype=jnp.float32, rngs=nnx.Rngs(0))
