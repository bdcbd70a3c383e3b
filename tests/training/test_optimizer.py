"""Schedules, rates by group, what decays, and where the optimizer's state lives."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.recipes import small

from vlvm_jax.training.optimizer import make_optimizer, schedule

STAGE = small().stages[0]


def with_(**changes):
    return STAGE.model_copy(update=changes)


def test_warm_up_rises_to_one_then_cosine_falls_to_the_final_ratio():
    factor = schedule(with_(warmup_ratio=0.1, final_lr_ratio=0.1, schedule="cosine"), 100)
    values = np.array([factor(step) for step in range(101)])
    assert values[0] == pytest.approx(0.1)
    assert values[9] == pytest.approx(1.0) and values[10] == pytest.approx(1.0)
    assert np.all(np.diff(values[10:]) <= 0)
    assert values[55] == pytest.approx(0.55, abs=1e-6)
    assert values[100] == pytest.approx(0.1)


@pytest.mark.parametrize(("kind", "middle"), [("constant", 1.0), ("linear", 0.5)])
def test_other_schedules(kind, middle):
    factor = schedule(with_(warmup_ratio=0.0, final_lr_ratio=0.0, schedule=kind), 100)
    assert factor(0) == pytest.approx(1.0)
    assert factor(50) == pytest.approx(middle)


@pytest.mark.parametrize(
    ("steps", "rates"),
    [
        (468, {0: 0, 1: 1.280e-6, 2: 2.028e-6, 7: 3.839e-6, 14: 5e-6, 100: 4.612e-6, 241: 2.742e-6, 467: 5e-7}),
        (3125, {1: 7.63e-7, 47: 4.260e-6, 93: 5e-6, 1000: 4.077e-6, 3124: 5e-7}),
    ],
)
def test_deepspeeds_warm_up_cosine(steps, rates):
    """T2Vid's schedule at peak 5e-6: warm-up over 15 of 468 and 94 of 3,125 steps."""
    factor = schedule(with_(warmup_ratio=0.03, final_lr_ratio=0.1, schedule="log_warmup_cosine"), steps)
    for step, rate in rates.items():
        assert 5e-6 * float(factor(step)) == pytest.approx(rate, rel=1e-3, abs=1e-12)


def test_each_group_moves_at_its_own_rate():
    stage = with_(warmup_ratio=0.0, weight_decay=0.0, clip_norm=None, schedule="constant")
    tx = make_optimizer(stage, {"a": 1e-2, "b": 1e-4}, 10, frozenset())
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -1e-2, rtol=1e-4)  # Adam's first step is the rate itself
    np.testing.assert_allclose(updates["b"], -1e-4, rtol=1e-4)


def test_matrices_decay_and_vectors_do_not_also_when_stacked():
    stage = with_(warmup_ratio=0.0, weight_decay=0.5, clip_norm=None, schedule="constant")
    params = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(2), "stack": jnp.ones((3, 2)), "deep": jnp.ones((3, 2, 2))}
    rates = dict.fromkeys(params, 1e-2)
    tx = make_optimizer(stage, rates, 10, frozenset({"stack", "deep"}))
    zero = {path: jnp.zeros_like(value) for path, value in params.items()}
    updates, _ = tx.update(zero, tx.init(params), params)
    assert {path for path, value in updates.items() if jnp.any(value)} == {"matrix", "deep"}
    np.testing.assert_allclose(updates["deep"], -1e-2 * 0.5)


def test_it_is_adamw_with_moments_of_the_stages_betas():
    """Three steps against the algorithm written out (arXiv 1711.05101, decay times the rate)."""
    stage = with_(warmup_ratio=0.0, weight_decay=0.3, clip_norm=None, schedule="constant", beta1=0.7, beta2=0.95)
    tx = make_optimizer(stage, {"a": 1e-2}, 10, frozenset())
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)}
    state, expected = tx.init(params), np.asarray(params["a"], np.float64)
    first = second = np.zeros((2, 3))
    for step in range(1, 4):
        gradient = rng.normal(size=(2, 3)) * 10.0**step
        updates, state = tx.update({"a": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = {"a": params["a"] + updates["a"]}
        first, second = 0.7 * first + 0.3 * gradient, 0.95 * second + 0.05 * gradient**2
        adam = first / (1 - 0.7**step) / (np.sqrt(second / (1 - 0.95**step)) + 1e-8)
        expected = expected - 1e-2 * (adam + 0.3 * expected)
        np.testing.assert_allclose(params["a"], expected, rtol=1e-5)


def test_clipping_is_by_the_norm_over_all_groups():
    stage = with_(warmup_ratio=0.0, weight_decay=0.0, clip_norm=1.0, schedule="constant", beta1=0.0)
    tx = make_optimizer(stage, {"a": 1.0, "b": 1.0}, 10, frozenset())
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = tx.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, tx.init(params), params)
    moments = state[1].mu
    np.testing.assert_allclose([moments["a"][0], moments["b"][0]], [0.6, 0.8], rtol=1e-6)
