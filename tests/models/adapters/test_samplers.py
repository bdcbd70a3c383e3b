"""Samplers against the formulas of docs/ftfv.md, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, expit, softmax
from support import hf

from vlvm_jax.models.adapters._samplers import (
    EncoderAttention,
    FixedWeights,
    LocalWeightedPool,
    RandomK,
    ScoredTopK,
    SoftSlots,
)

B, T, SIDE, C, K, HIDDEN = 2, 3, 4, 6, 4, 5
N = SIDE * SIDE
RNG = np.random.default_rng(0)
# At most 7 significant bits, so that bfloat16 holds them exactly and no choice of tokens flips.
X = (RNG.integers(-120, 121, (B, T, N, C)) / 32).astype(np.float32)
ATTENTION = softmax(RNG.standard_normal((B, T, N)), -1).astype(np.float32)
COTANGENT = RNG.standard_normal((B, T, K, C)).astype(np.float32)


def soft(dtype=jnp.float32, **options):
    return lambda: SoftSlots(C, K, N, hidden=HIDDEN, dtype=dtype, rngs=nnx.Rngs(0), **options)


def topk(slots=K, **options):
    return lambda: ScoredTopK(C, slots, hidden=HIDDEN, rngs=nnx.Rngs(0), **options)


def local(dtype=jnp.float32, **options):
    return lambda: LocalWeightedPool(C, K, N, hidden=HIDDEN, dtype=dtype, rngs=nnx.Rngs(0), **options)


MAKERS = {
    "soft": soft(),
    "soft_linear_keys": soft(key_net="linear", tau=0.5),
    "soft_grid": soft(prior="grid", prior_sigma=1.5),
    "soft_learned_grid": soft(prior="learned_grid"),
    "soft_linear_values": soft(value_net="linear"),
    "topk_renorm": topk(),
    "topk_sigmoid": topk(weight="sigmoid"),
    "topk_ste": topk(weight="ste", score_net="mlp"),
    "topk_rest": topk(merge_rest=True),
    "attn": lambda: EncoderAttention(K, merge_rest=False),
    "attn_rest": lambda: EncoderAttention(K),
    "local": local(),
    "local_mlp": local(score_net="mlp"),
    "mean": lambda: FixedWeights("mean", K, N),
    "block_average": lambda: FixedWeights("block_average", K, N),
    "stride": lambda: FixedWeights("stride", K, N),
    "random": lambda: RandomK(K),
}
CONVEX = [name for name in MAKERS if name not in ("soft_linear_values", "topk_renorm", "topk_sigmoid", "topk_rest")]
SCORED = ["topk_renorm", "topk_sigmoid", "topk_ste"]
LEARNED = [name for name in MAKERS if name.startswith(("soft", "topk", "local"))]
MASKABLE = [*LEARNED, "attn", "attn_rest"]
SAMPLERS = {name: hf.fill(make, seed=1, gain=2.0) for name, make in MAKERS.items()}


@nnx.jit
def run(sampler, x, attention=None, patch_mask=None, rng=None):
    options = {"attention": attention, "patch_mask": patch_mask, "rng": rng}
    return sampler.weights(x, **options), sampler(x, **options)


def sample(name, x=X, patch_mask=None):
    weights, out = run(SAMPLERS[name], x, ATTENTION, patch_mask)
    return np.asarray(weights), np.asarray(out)


def bias_of(layer):
    return 0 if layer.bias is None else layer.bias[...]


def layer_norm(norm, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * norm.scale[...] + bias_of(norm)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def scores_of(scorer, x):
    x = layer_norm(scorer.norm, x)
    if scorer.score_in is not None:
        x = gelu(x @ scorer.score_in.kernel[...] + scorer.score_in.bias[...])
    return np.asarray(x @ scorer.score_out.kernel[...])[..., 0]


def kept_by(scores, count):
    return np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :count], axis=-1)


def gather(x, index):
    return np.take_along_axis(x, index[..., None] if x.ndim == 4 else index, axis=2)


def block_means(x):
    """Means of the 2 x 2 windows of the 4 x 4 grid."""
    return x.reshape(B, T, 2, 2, 2, 2, C).mean(axis=(3, 5)).reshape(B, T, 4, C)


# --- what holds for all


@pytest.mark.parametrize("name", MAKERS)
def test_shapes_and_the_product(name):
    weights, out = sample(name)
    assert weights.shape == (B, T, K, N) and weights.dtype == np.float32
    assert out.shape == (B, T, K, C)
    assert (weights >= 0).all()
    sampler = SAMPLERS[name]
    values = X if name != "soft_linear_values" else X @ sampler.value_proj.kernel[...]
    np.testing.assert_allclose(out, np.einsum("btkn,btnc->btkc", weights, values), atol=2e-5)


@pytest.mark.parametrize("name", CONVEX)
def test_rows_sum_to_one_and_outputs_are_convex(name):
    weights, out = sample(name)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert (out >= X.min(2, keepdims=True) - 1e-5).all() and (out <= X.max(2, keepdims=True) + 1e-5).all()


@pytest.mark.parametrize("name", [*CONVEX, "topk_renorm"])
def test_constant_frame_gives_that_token(name):
    constant = np.broadcast_to(X[:, :, :1], X.shape)
    _, out = sample(name, constant)
    np.testing.assert_allclose(out, constant[:, :, :K], atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_frames_do_not_mix(name):
    changed = X.copy()
    changed[0, 1] = -2 * changed[0, 1] + 1
    moved = np.abs(sample(name)[1] - sample(name, changed)[1]).max(axis=(2, 3))
    assert moved[0, 1] > 0.1
    np.testing.assert_array_equal(np.delete(moved.ravel(), 1), 0)


@pytest.mark.parametrize("name", ["soft_grid", "topk_rest", "local"])
def test_same_without_jit(name):
    eager = SAMPLERS[name](jnp.asarray(X), attention=jnp.asarray(ATTENTION))
    np.testing.assert_allclose(sample(name)[1], eager, atol=1e-5)


@pytest.mark.parametrize("name", ["soft_grid", "soft_linear_values", *SCORED, "attn_rest", "local", "mean"])
def test_bfloat16_inputs(name):
    weights, out = sample(name, jnp.asarray(X, jnp.bfloat16))
    assert weights.dtype == np.float32
    assert out.dtype == (np.float32 if name == "soft_linear_values" else jnp.bfloat16)
    np.testing.assert_allclose(out.astype(np.float32), sample(name)[1], atol=0.03 * np.abs(X).max())


@pytest.mark.parametrize("make", [soft, local])
def test_bfloat16_computation(make):
    full, half = (hf.fill(make(dtype=dtype), seed=1) for dtype in (jnp.float32, jnp.bfloat16))
    expected, found = run(full, X)[0], run(half, jnp.asarray(X, jnp.bfloat16))[0]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert 0 < np.abs(found - expected).max() < 0.05


# --- masks


@pytest.mark.parametrize("name", MASKABLE)
def test_masked_patches_get_no_weight(name):
    """Column 1 and 3 of the grid are masked, in frame (0, 0) alone."""
    mask = np.ones((B, T, N), bool)
    mask[0, 0] = np.arange(N) % 2 == 0
    weights, out = sample(name, patch_mask=mask)
    np.testing.assert_array_equal(weights[~np.broadcast_to(mask[:, :, None], weights.shape)], 0)
    assert (weights[0, 0].sum(-1) > 0).all()
    moved = np.abs(weights - sample(name)[0]).max(axis=(2, 3)).ravel()
    assert moved[0] > 1e-3
    np.testing.assert_array_equal(moved[1:], 0)
    scrambled = np.where(mask[..., None], X, 100.0)
    np.testing.assert_allclose(sample(name, scrambled, mask)[1], out, atol=1e-5)


@pytest.mark.parametrize("name", [*SCORED, "attn", "local"])
def test_masked_patches_get_no_weight_when_slots_outnumber_the_valid(name):
    mask = np.ones((B, T, N), bool)
    mask[0, 0] = np.arange(N) == 5  # in the first window
    weights, _ = sample(name, patch_mask=mask)
    assert weights[0, 0, :, 5].max() > 0
    np.testing.assert_array_equal(np.delete(weights[0, 0], 5, axis=-1), 0)


@pytest.mark.parametrize("name", ["soft_learned_grid", *SCORED, "topk_rest", "attn_rest", "local_mlp"])
def test_frame_without_valid_patches_gives_no_nan(name):
    mask = np.ones((B, T, N), bool)
    mask[1, 2] = False
    x = jnp.asarray(X)

    def loss(params, graphdef):
        sampler = nnx.merge(graphdef, params)
        return (sampler(x, attention=ATTENTION, patch_mask=jnp.asarray(mask)) * COTANGENT).sum()

    weights, out = sample(name, patch_mask=mask)
    assert np.isfinite(weights).all() and np.isfinite(out).all()
    np.testing.assert_array_equal(out[0], sample(name)[1][0])
    graphdef, params = nnx.split(SAMPLERS[name])
    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss), static_argnums=1)(params, graphdef)):
        assert np.isfinite(gradient).all()


# --- A: soft_slots


@pytest.mark.parametrize("name", ["soft", "soft_linear_keys", "soft_grid", "soft_learned_grid"])
def test_soft_slots_are_attention_with_learned_queries(name):
    sampler = SAMPLERS[name]
    keys = layer_norm(sampler.norm, X) @ sampler.key_proj.kernel[...] + bias_of(sampler.key_proj)
    keys = keys if name == "soft_linear_keys" else gelu(keys)
    queries = sampler.queries.kernel[...].T
    prior = grid_prior_by_blocks(1.5) if name == "soft_grid" else 0 if sampler.prior is None else sampler.prior[...]
    expected = softmax((np.einsum("kh,btnh->btkn", queries, keys) + prior) / sampler.tau, axis=-1)
    weights, out = sample(name)
    np.testing.assert_allclose(weights, expected, atol=2e-5)
    np.testing.assert_allclose(out, expected @ X, atol=1e-4)


def grid_prior_by_blocks(sigma):
    """For the 4 x 4 grid and K = 4, where the centres are the mean positions of the 2 x 2 windows."""
    rows, columns = np.divmod(np.arange(N), SIDE)
    block = (rows // 2) * 2 + columns // 2
    centres = np.array([[rows[block == k].mean(), columns[block == k].mean()] for k in range(K)])
    return -((rows - centres[:, :1]) ** 2 + (columns - centres[:, 1:]) ** 2) / (2 * sigma**2)


@pytest.mark.parametrize(("name", "invariant"), [("soft", True), ("soft_grid", False), ("soft_learned_grid", False)])
def test_order_of_tokens_matters_only_with_a_prior(name, invariant):
    moved = np.abs(sample(name)[1] - sample(name, X[:, :, np.random.default_rng(3).permutation(N)])[1]).max()
    assert moved < 1e-5 if invariant else moved > 0.05


def test_zero_queries_without_prior_give_the_frame_mean():
    _, out = run(soft(zero_queries=True)(), X)
    np.testing.assert_allclose(out, np.broadcast_to(X.mean(2, keepdims=True), out.shape), atol=1e-5)


@pytest.mark.parametrize("prior", ["grid", "learned_grid"])
def test_zero_queries_with_a_narrow_prior_give_block_means(prior):
    sampler = soft(zero_queries=True, prior=prior, prior_sigma=0.3)()
    _, out = run(sampler, X)
    np.testing.assert_allclose(out, block_means(X), atol=5e-4)
    assert len(jax.tree.leaves(nnx.state(sampler))) == 5 + (prior == "learned_grid")


def test_constant_added_to_one_slots_logits_changes_nothing():
    """A key that is the same for all tokens (its weights are 0, its bias is not), and one slot's query for it."""
    sampler = soft()()
    sampler.key_proj.kernel[...] = sampler.key_proj.kernel[...].at[:, 0].set(0)
    sampler.key_proj.bias[...] = sampler.key_proj.bias[...].at[0].set(1.0)
    before, _ = run(sampler, X)
    sampler.queries.kernel[...] = sampler.queries.kernel[...].at[0, 2].add(3.0)
    np.testing.assert_allclose(run(sampler, X)[0], before, atol=1e-5)
    sampler.queries.kernel[...] = sampler.queries.kernel[...].at[1, 2].add(3.0)
    assert np.abs(run(sampler, X)[0] - before)[:, :, 2].max() > 0.05


def test_slots_start_different_and_linear_values_start_as_the_identity():
    plain, linear = soft()(), soft(value_net="linear")()
    weights, _ = run(plain, X)
    assert np.abs(weights - weights[:, :, :1])[:, :, 1:].max(axis=(0, 1, 3)).min() > 1e-4
    np.testing.assert_allclose(run(linear, X)[1], np.einsum("btkn,btnc->btkc", run(linear, X)[0], X), atol=1e-5)
    np.testing.assert_array_equal(linear.value_proj.kernel[...], np.eye(C))


# --- B: scored_topk


@pytest.mark.parametrize("name", SCORED)
def test_scored_topk(name):
    scores = scores_of(SAMPLERS[name].score, X)
    kept = kept_by(scores, K)
    chosen = gather(softmax(scores, -1), kept)
    factor = {
        "topk_renorm": K * chosen / chosen.sum(-1, keepdims=True),
        "topk_sigmoid": expit(gather(scores, kept)),
        "topk_ste": np.ones_like(chosen),
    }[name]
    weights, out = sample(name)
    np.testing.assert_array_equal(weights.argmax(-1), kept)
    assert (np.diff(weights.argmax(-1), axis=-1) > 0).all()
    tolerance = {"rtol": 0} if name == "topk_ste" else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(out, gather(X, kept) * factor[..., None], **tolerance)
    np.testing.assert_array_equal((weights > 0).sum(-1), 1)


def test_equal_scores_and_all_tokens_give_the_identity():
    sampler = topk(slots=N)()
    sampler.score.score_out.kernel[...] *= 0
    np.testing.assert_allclose(run(sampler, X)[1], X, atol=1e-6)


def test_rest_token_conserves_the_mass():
    scores = scores_of(SAMPLERS["topk_rest"].score, X)
    probability = softmax(scores, -1)
    kept = kept_by(scores, K - 1)
    _, out = sample("topk_rest")
    chosen = gather(probability, kept)
    rest = out[:, :, -1]
    total = (chosen[..., None] * gather(X, kept)).sum(2) + (1 - chosen.sum(-1))[..., None] * rest
    np.testing.assert_allclose(total, (probability[..., None] * X).sum(2), atol=2e-5)
    factor = (K - 1) * chosen / chosen.sum(-1, keepdims=True)
    np.testing.assert_allclose(out[:, :, :-1], gather(X, kept) * factor[..., None], rtol=1e-4, atol=1e-5)


def test_gumbel_noise_explores_in_training_only():
    sampler, plain = hf.fill(topk(gumbel=True, weight="sigmoid"), seed=1), SAMPLERS["topk_sigmoid"]
    np.testing.assert_array_equal(run(sampler, X)[0], run(hf.fill(MAKERS["topk_sigmoid"], seed=1), X)[0])
    noisy = [np.asarray(run(sampler, X, None, None, jax.random.key(i))[0]) for i in range(3)]
    assert (noisy[0].argmax(-1) != noisy[1].argmax(-1)).any()
    scores = scores_of(sampler.score, X)
    for weights in noisy:
        kept = weights.argmax(-1)
        assert (np.diff(kept, axis=-1) > 0).all()
        np.testing.assert_allclose(weights.max(-1), expit(gather(scores, kept)), rtol=1e-4)
    key = jax.random.key(0)
    np.testing.assert_array_equal(run(plain, X, None, None, key)[0], sample("topk_sigmoid")[0])


# --- C: encoder_attn; D: local_weighted_pool; controls


@pytest.mark.parametrize(("name", "kept_count"), [("attn", K), ("attn_rest", K - 1)])
def test_encoder_attention_keeps_what_the_tower_attends_to(name, kept_count):
    kept = kept_by(ATTENTION, kept_count)
    _, out = sample(name)
    np.testing.assert_array_equal(out[:, :, :kept_count], gather(X, kept))
    if kept_count < K:
        rest = ATTENTION.copy()
        np.put_along_axis(rest, kept, 0, axis=-1)
        rest /= rest.sum(-1, keepdims=True)
        np.testing.assert_allclose(out[:, :, -1], (rest[..., None] * X).sum(2), atol=1e-5)


def test_encoder_attention_needs_attention():
    with pytest.raises(ValueError, match="attention_layer"):
        EncoderAttention(K)(jnp.asarray(X))


@pytest.mark.parametrize("name", ["local", "local_mlp"])
def test_local_weighted_pool(name):
    def windows(values):
        grid = values.reshape(B, T, 2, 2, 2, 2, -1)
        return np.moveaxis(grid, 4, 3).reshape(B, T, 4, 4, -1)

    weight = softmax(windows(scores_of(SAMPLERS[name].score, X)), axis=3)
    np.testing.assert_allclose(sample(name)[1], (weight * windows(X)).sum(3), atol=2e-5)


@pytest.mark.parametrize("score_net", ["linear", "mlp"])
def test_local_weighted_pool_starts_as_block_average(score_net):
    sampler = local(score_net=score_net)()
    np.testing.assert_allclose(run(sampler, X)[1], block_means(X), atol=1e-5)
    assert np.abs(gradient_of(sampler)["score"]["score_out"]["kernel"][...]).max() > 1e-3


def test_controls_are_what_they_are_called():
    np.testing.assert_allclose(sample("mean")[1], np.broadcast_to(X.mean(2, keepdims=True), (B, T, K, C)), atol=1e-5)
    np.testing.assert_allclose(sample("block_average")[1], block_means(X), atol=1e-5)
    np.testing.assert_array_equal(sample("stride")[1], X[:, :, [2, 6, 10, 14]])


def test_random_is_fresh_in_training_and_fixed_in_evaluation():
    draws = [np.asarray(run(SAMPLERS["random"], X, None, None, jax.random.key(i))[0]) for i in (1, 1, 2)]
    fixed = sample("random")[0]
    for weights in (*draws, fixed):
        kept = weights.argmax(-1)
        np.testing.assert_array_equal(weights, np.eye(N)[kept])
        assert (np.diff(kept, axis=-1) > 0).all()
        assert (kept != kept[:1, :1]).any()
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    np.testing.assert_array_equal(fixed, sample("random", 2 * X)[0])


# --- gradients


def gradient_of(sampler):
    graphdef, params = nnx.split(sampler)
    return jax.jit(jax.grad(lambda p: (nnx.merge(graphdef, p)(jnp.asarray(X)) * COTANGENT).sum()))(params)


@pytest.mark.parametrize("name", LEARNED)
def test_every_weight_receives_gradient(name):
    for path, leaf in nnx.to_flat_state(gradient_of(SAMPLERS[name])):
        # A softmax over tokens does not see what is added to all of them, so some biases have none.
        if path[-1] != "bias":
            assert np.abs(leaf[...]).max() > 1e-3, path


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in LEARNED])
def test_the_others_have_no_parameters(name):
    assert not jax.tree.leaves(nnx.state(SAMPLERS[name]))
