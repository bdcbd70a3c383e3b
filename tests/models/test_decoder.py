"""Decoder against transformers' Llama, Mistral, Qwen2 and Qwen3; KV cache, packing, and the stack of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import hf

from vlvm_jax.config import DecoderConfig, RopeScaling
from vlvm_jax.models.decoder import Decoder, apply_rotary, init_cache, rotary_embedding, rotary_frequencies
from vlvm_jax.models.stack import REMAT_POLICIES, LayerStack, segment_bounds

VOCAB, WIDTH, LENGTH = 40, 16, 10
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (3, LENGTH))


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@nnx.jit
def forward(model, tokens, positions, segments):
    hidden, _ = model(model.embed(tokens), positions, segments)
    return hidden, model.logits(hidden)


@nnx.jit
def cached(model, tokens, positions, segments, cache):
    hidden, cache = model(model.embed(tokens), positions, segments, cache)
    return model.logits(hidden), cache


def config(**changes) -> DecoderConfig:
    values = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "attention_bias": True,
        "attention_out_bias": True,
    }
    return DecoderConfig(**(values | changes))


def make(cfg: DecoderConfig, **kwargs):
    return lambda: Decoder(cfg, dtype=jnp.float32, rngs=nnx.Rngs(0), **kwargs)


@pytest.fixture(scope="module")
def model():
    return hf.fill(make(config()))


def row(*lengths: int, total: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segment ids of samples packed in one row."""
    pad = total - sum(lengths)
    positions = np.concatenate([np.arange(n) for n in lengths] + [np.zeros(pad, int)])
    return positions, np.repeat(np.arange(len(lengths) + 1) + 1, [*lengths, pad]) * (np.arange(total) < total - pad)


PLAIN = {"num_key_value_heads": 1, "head_dim": 4, "attention_bias": False, "attention_out_bias": False}
# Family, HF's own options, ours.
FAMILIES = [
    ("Llama", {"attention_bias": True}, {"attention_bias": True, "attention_out_bias": True, "rms_norm_eps": 1e-3}),
    ("Llama", {}, {"num_key_value_heads": 4, "rope_theta": 500.0, "hidden_act": "gelu"}),
    ("Mistral", {"sliding_window": None}, {"num_key_value_heads": 2, "head_dim": 6, "rope_theta": 1e6}),
    ("Mistral", {"sliding_window": 4}, {"num_key_value_heads": 2, "sliding_window": 4}),
    ("Qwen2", {"use_sliding_window": False}, {"attention_bias": True, "tie_word_embeddings": True}),
    ("Qwen3", {}, {"qk_norm": True, "head_dim": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
    ("Qwen3", {"attention_bias": True}, {"qk_norm": True, "attention_bias": True, "attention_out_bias": True}),
]


@pytest.mark.parametrize(("family", "theirs", "ours"), FAMILIES)
def test_hidden_states_and_logits_equal_transformers(family, theirs, ours):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    cfg = config(**(PLAIN | ours))
    shared = cfg.model_dump(exclude={"attention_bias", "attention_out_bias", "rope_theta", "qk_norm", "sliding_window"})
    if family == "Qwen2":
        shared.pop("head_dim")
    reference = hf.randomize(
        getattr(transformers, f"{family}ForCausalLM")(
            getattr(transformers, f"{family}Config")(
                **shared, **theirs, rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta}
            )
        )
    )
    valid = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 1], [6]])
    with torch.no_grad():
        out = reference(
            torch.from_numpy(TOKENS), attention_mask=torch.from_numpy(valid).long(), output_hidden_states=True
        )
    model = hf.load(make(cfg), reference, ignore=("lm_head.",) if cfg.tie_word_embeddings else ())
    positions = np.broadcast_to(np.arange(LENGTH), TOKENS.shape)
    hidden, logits = forward(model, TOKENS, positions, valid.astype(int))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(hidden[valid], out.hidden_states[-1].numpy()[valid], atol=3e-5)
    np.testing.assert_allclose(logits[valid], out.logits.numpy()[valid], atol=1e-4)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)  # fmt: skip
def test_scaled_rotary_frequencies_equal_transformers(scaling):
    """Llama 3.1's own numbers: fast frequencies stay, slow ones are stretched, and some lie between."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    cfg = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, head_dim=128, max_position_embeddings=131072,
        rope_parameters={**scaling, "rope_theta": 500000.0},
    )  # fmt: skip
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](cfg, "cpu")
    assert factor == 1
    found = rotary_frequencies(128, 500000.0, RopeScaling(**scaling))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    plain = rotary_frequencies(128, 500000.0)
    shares = (np.asarray(found / plain) * scaling["factor"] - 1) / (scaling["factor"] - 1)  # 1 where it stays
    if scaling["rope_type"] == "llama3":
        assert shares[0] == pytest.approx(1) and shares[-1] == pytest.approx(0, abs=1e-5)
        assert ((shares > 0.01) & (shares < 0.99)).sum() > 5


def test_rotary_is_worked_out_in_fp32():
    """Far along, where bf16 cannot tell one angle's cosine from the next: one rounding at the end, as transformers."""
    cos, sin = rotary_embedding(np.array([[100, 101, 5000]]), 8, 10000.0)
    x = np.random.default_rng(0).standard_normal((1, 3, 2, 8)).astype(jnp.bfloat16)
    found = apply_rotary(jnp.asarray(x), cos, sin)
    exact = apply_rotary(jnp.asarray(x, jnp.float32), cos, sin)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_logits_of_bfloat16_are_summed_in_fp32():
    decoder = hf.fill(lambda: Decoder(config(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    hidden = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(jnp.bfloat16)
    logits = decoder.logits(jnp.asarray(hidden))
    expected = hidden.astype(np.float32) @ np.asarray(decoder.head().astype(jnp.float32))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 3}, {"qk_norm": True}], ids=["plain", "window", "qk_norm"])
def test_decoding_with_a_cache_equals_the_whole_sequence(changes):
    """Prompts of 4 and 2 tokens, right-padded to 4; then four single steps; the cache keeps free slots."""
    model = hf.fill(make(config(**changes)))
    prompts, steps = np.array([4, 2]), 4
    positions = np.broadcast_to(np.arange(LENGTH), (3, LENGTH))
    segments = (np.arange(LENGTH) < np.array([[8], [6], [0]])).astype(int)
    _, expected = forward(model, TOKENS, positions, segments)
    cache = init_cache(model.config, 2, 11)
    prompt_mask = np.arange(4) < prompts[:, None]
    prompt_positions = np.broadcast_to(np.arange(4), (2, 4))
    logits, cache = cached(model, TOKENS[:2, :4], prompt_positions, prompt_mask.astype(int), cache)
    for sample, count in enumerate(prompts):
        np.testing.assert_allclose(logits[sample, :count], expected[sample, :count], atol=1e-4)
    for step in range(steps):
        at = prompts + step
        tokens = TOKENS[np.arange(2), at][:, None]
        logits, cache = cached(model, tokens, at[:, None], np.ones((2, 1), int), cache)
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(2), at], atol=1e-4)
    assert int(cache.index) == 8
    np.testing.assert_array_equal(cache.segments[0], [1] * 8 + [0] * 3)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 3}, {"qk_norm": True}], ids=["plain", "window", "qk_norm"])
def test_packed_samples_equal_each_alone(changes):
    """Rows: both samples packed; each alone. Tokens of padding are arbitrary."""
    model = hf.fill(make(config(**changes)))
    first, second = 4, 5
    tokens = TOKENS.copy()
    tokens[1, :first] = tokens[0, :first]
    tokens[2, :second] = tokens[0, first : first + second]
    layout = [row(first, second), row(first), row(second)]
    positions, segments = (np.stack(part) for part in zip(*layout, strict=True))
    hidden, _ = forward(model, tokens, positions, segments)
    np.testing.assert_allclose(hidden[0, :first], hidden[1, :first], atol=1e-5)
    np.testing.assert_allclose(hidden[0, first : first + second], hidden[2, :second], atol=1e-5)
    assert np.isfinite(hidden).all()


def test_later_tokens_do_not_change_earlier_ones(model):
    positions, segments = (np.broadcast_to(part, TOKENS.shape) for part in row(LENGTH))
    changed = TOKENS.copy()
    changed[:, 6] = (changed[:, 6] + 1) % VOCAB
    before, after = (forward(model, tokens, positions, segments)[0] for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, 6:].max(-1) > 1e-4).all()


def test_cut_decoder_gives_the_same(model):
    cut = hf.fill(make(config(), splits=(1, 2)))
    layers = nnx.state(model.layers.segments[0])
    for segment, (start, stop) in zip(cut.layers.segments, cut.layers.bounds, strict=True):
        nnx.update(segment, jax.tree.map(lambda p, a=start, b=stop: p[a:b], layers))
    for name in ("embed_tokens", "norm", "lm_head"):
        nnx.update(getattr(cut, name), nnx.state(getattr(model, name)))
    positions, segments = (np.broadcast_to(part, TOKENS.shape) for part in row(LENGTH))
    expected, expected_cache = cached(model, TOKENS, positions, segments, init_cache(model.config, 3, LENGTH))
    found, found_cache = cached(cut, TOKENS, positions, segments, init_cache(model.config, 3, LENGTH))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found_cache.key, expected_cache.key, atol=1e-5)
    np.testing.assert_allclose(found_cache.value, expected_cache.value, atol=1e-5)


class Layer(nnx.Module):
    """x -> tanh(x W + shift), of which it gives the mean; or plus its own of `given`, where it writes that mean."""

    def __init__(self, rngs):
        self.kernel = nnx.Param(rngs.params.normal((4, 4)))

    def __call__(self, x, shift, shared=None):
        out = jnp.tanh(x @ self.kernel[...].astype(x.dtype) + shift)
        if shared is None:
            return out, x.mean()
        given, number = shared
        return out + given[number], given.at[number].set(x.mean())


def stack(dtype=jnp.float32, **kwargs) -> LayerStack:
    return LayerStack(Layer, 4, dtype=dtype, rngs=nnx.Rngs(0), **kwargs)


@pytest.mark.parametrize(("used", "splits"), [(4, ()), (2, ()), (3, (2,)), (2, (1, 3)), (2, (2,))])
def test_stack_runs_its_first_layers_in_order(used, splits):
    layers = stack(num_used=used, splits=splits)
    kernels = np.concatenate([segment.kernel[...] for segment in layers.segments])
    assert kernels.shape == (4, 4, 4)
    assert np.abs(kernels - kernels[:1])[1:].max(axis=(1, 2)).min() > 0.1
    given = np.arange(4, dtype=np.float32) * 0.1
    x = expected = np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32)
    means = []
    plain, of_plain = nnx.jit(lambda m, x: m(x, 0.5))(layers, x)
    alone, of_alone = x, []
    for kernel, extra in zip(kernels[:used], given, strict=False):
        means.append(expected.mean())
        of_alone.append(alone.mean())
        expected = np.tanh(expected @ kernel + 0.5) + extra
        alone = np.tanh(alone @ kernel + 0.5)
    found, state = nnx.jit(lambda m, x, given: m(x, 0.5, state=given))(layers, x, given)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(state, [*means, *given[used:]], atol=1e-5)
    np.testing.assert_allclose(plain, alone, atol=1e-5)
    np.testing.assert_allclose(of_plain, of_alone, atol=1e-5)


@pytest.mark.parametrize("splits", [(0,), (4,), (2, 2), (3, 1), (5,)])
def test_splits_that_do_not_cut_are_refused(splits):
    with pytest.raises(ValueError, match="splits"):
        segment_bounds(4, splits)


def test_segment_bounds():
    assert segment_bounds(24, (20, 23)) == ((0, 20), (20, 23), (23, 24))
    assert segment_bounds(3, ()) == ((0, 3),)


def test_remat_changes_neither_value_nor_gradient():
    x = np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32)
    results = {}
    for remat in REMAT_POLICIES:
        graphdef, params = nnx.split(stack(remat=remat))

        def loss(params, graphdef=graphdef):
            return (nnx.merge(graphdef, params)(x, 0.5)[0] ** 2).sum()

        results[remat] = jax.jit(jax.value_and_grad(loss))(params)
        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == (remat != "none")
    value, gradient = results["none"]
    assert jax.tree.leaves(gradient)[0].any(axis=(1, 2)).all()
    for remat in REMAT_POLICIES:
        np.testing.assert_allclose(results[remat][0], value, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[remat][1], gradient)


def test_remat_policies_differ_in_what_they_keep():
    """Matrix products in the backward pass: `full` repeats the forward's, `minimal` keeps them."""
    x = np.ones((3, 4), np.float32)
    counts = {}
    for remat in ("none", "minimal", "full"):
        graphdef, params = nnx.split(stack(remat=remat))

        def loss(params, graphdef=graphdef):
            return nnx.merge(graphdef, params)(x, 0.5)[0].sum()

        counts[remat] = str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")
    assert counts["full"] > counts["none"]
    assert counts["minimal"] == counts["none"]


def test_gradients_are_stacked_in_the_dtype_of_the_computation():
    graphdef, params = nnx.split(stack(dtype=jnp.bfloat16))
    x = jnp.linspace(-1, 1, 12, dtype=jnp.bfloat16).reshape(3, 4)

    def loss(params):
        return nnx.merge(graphdef, params)(x, 0.5)[0].astype(jnp.float32).sum()

    def unrolled(params):
        out = x
        for kernel in jax.tree.leaves(params)[0]:
            out = jnp.tanh(out @ kernel.astype(jnp.bfloat16) + 0.5)
        return out.astype(jnp.float32).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(params)
    scanned = [out.aval for scan in traced.eqns if scan.primitive.name == "scan" for out in scan.outvars]
    assert {str(out.dtype) for out in scanned if out.shape == (4, 4, 4)} == {"bfloat16"}
    (found,), (expected,) = (jax.tree.leaves(jax.jit(jax.grad(of))(params)) for of in (loss, unrolled))
    assert found.dtype == jnp.float32 and found.any(axis=(1, 2)).all()
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-3)
