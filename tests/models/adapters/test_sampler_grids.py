"""What samplers are built on: partitions of the grid, uniform strides, top-k with ties, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import _samplers as samplers
from vlvm_jax.models.adapters._samplers import FixedWeights


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4096))
def test_near_square_is_the_most_square_factorisation(count):
    rows, columns = samplers.near_square(count)
    assert rows * columns == count and rows <= columns
    assert not any(count % r == 0 for r in range(rows + 1, columns))


def test_near_square_examples():
    assert [samplers.near_square(n) for n in (1, 7, 16, 32, 64)] == [(1, 1), (1, 7), (4, 4), (4, 8), (8, 8)]


sides_and_blocks = st.integers(1, 9).flatmap(
    lambda side: st.tuples(st.just(side), st.integers(1, side), st.integers(1, side))
)


@settings(max_examples=40, deadline=None)
@given(sides_and_blocks)
def test_block_weights_cut_the_grid_into_rectangles_of_nearly_equal_sides(case):
    side, rows, columns = case
    rows, columns = samplers.near_square(rows * columns)
    if columns > side:
        with pytest.raises(InputError, match="do not fit"):
            samplers.block_weights(rows * columns, side * side)
        return
    weights = samplers.block_weights(rows * columns, side * side)
    assert weights.shape == (rows * columns, side * side)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal((weights > 0).sum(0), 1)
    np.testing.assert_allclose(weights.max(1) * (weights > 0).sum(1), 1, rtol=1e-5)
    member = (weights > 0).reshape(rows, columns, side, side)
    for r, c in np.ndindex(rows, columns):
        in_row, in_column = member[r, c].any(1), member[r, c].any(0)
        np.testing.assert_array_equal(member[r, c], in_row[:, None] & in_column)
        for inside, count in ((in_row, rows), (in_column, columns)):
            assert (np.diff(np.flatnonzero(inside)) == 1).all()
            assert inside.sum() in (side // count, -(-side // count))


@settings(max_examples=40, deadline=None)
@given(side=st.integers(1, 8), slots=st.integers(1, 12), sigma=st.sampled_from([0.3, 1.0, 2.5]))
def test_grid_prior_is_a_symmetric_distance(side, slots, sigma):
    prior = samplers.grid_prior(slots, side * side, sigma)
    assert prior.shape == (slots, side * side) and prior.dtype == np.float32
    assert (prior <= 0).all()
    np.testing.assert_allclose(prior[::-1, ::-1], prior, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(prior * sigma**2, samplers.grid_prior(slots, side * side, 1.0), rtol=1e-4, atol=1e-5)
    rows, columns = samplers.near_square(slots)
    if side % rows == 0 and side % columns == 0:
        weights = samplers.block_weights(slots, side * side)
        at = np.stack(np.divmod(np.arange(side * side), side), -1)
        distance = ((at[None] - (weights @ at)[:, None]) ** 2).sum(-1)
        np.testing.assert_allclose(prior, -distance / (2 * sigma**2), rtol=1e-3, atol=1e-3)


def test_grids_that_are_not_square_or_too_small_are_refused():
    with pytest.raises(InputError, match="not a square grid"):
        samplers.grid_prior(4, 15, 1.0)
    with pytest.raises(InputError, match="num_tokens: 5 = 1 x 5 blocks do not fit a 4 x 4 grid"):
        samplers.block_weights(5, 16)


@settings(max_examples=25, deadline=None)
@given(patches=st.integers(1, 60), data=st.data())
def test_stride_is_uniform_for_any_count(patches, data):
    slots = data.draw(st.integers(1, patches))
    matrix = FixedWeights("stride", slots, patches).matrix.value
    kept = matrix.argmax(-1)
    np.testing.assert_array_equal(matrix, np.eye(patches)[kept])
    assert set(np.diff(kept)) <= {patches // slots, -(-patches // slots)}
    assert abs(kept[0] - (patches - 1 - kept[-1])) <= -(-patches // slots)


@settings(max_examples=25, deadline=None)
@given(ranking=st.lists(st.integers(0, 3), min_size=16, max_size=16), count=st.sampled_from([1, 3, 16]))
def test_ties_go_to_the_lower_index_in_raster_order(ranking, count):
    ranking = np.array(ranking, np.float32)
    expected = np.sort(np.argsort(-ranking, kind="stable")[:count])
    np.testing.assert_array_equal(samplers.top_k_indices(jnp.asarray(ranking), count), expected)


def top_k_gradient(weight):
    """Of a weighted sum of the K = 3 kept tokens of 8, by the scores; the weights of that sum, and what was kept."""
    rng = np.random.default_rng(0)
    scores, x, cotangent = (rng.standard_normal(shape).astype(np.float32) for shape in [(8,), (8, 5), (3, 5)])

    def loss(scores):
        return ((samplers.top_k_weights(scores, scores, 3, weight, False) @ x) * cotangent).sum()

    kept = np.sort(np.argsort(-scores)[:3])
    return jax.grad(loss)(jnp.asarray(scores)), scores, kept, (x[kept] * cotangent).sum(-1)


def test_straight_through_gradient_is_that_of_the_sigmoid():
    gradient, scores, kept, product = top_k_gradient("ste")
    gate = 1 / (1 + np.exp(-scores[kept]))
    np.testing.assert_allclose(gradient[kept], gate * (1 - gate) * product, rtol=1e-4)
    np.testing.assert_array_equal(np.delete(gradient, kept), 0)


def test_renormed_gradient_is_that_of_a_softmax_over_the_kept():
    gradient, scores, kept, product = top_k_gradient("renorm")
    share = np.exp(scores[kept]) / np.exp(scores[kept]).sum()
    np.testing.assert_allclose(gradient[kept], 3 * share * (product - (share * product).sum()), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.delete(gradient, kept), 0, atol=1e-6)


def test_plain_gather_gives_the_scores_no_gradient():
    gradient, *_ = top_k_gradient("none")
    np.testing.assert_array_equal(gradient, 0)
