"""The `weighted_sampler` adapter: which tokens of which frame reach the decoder, and in what order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from support import hf

from vlvm_jax.config import AdapterConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import build_adapter
from vlvm_jax.models.adapters.base import FrameLayout
from vlvm_jax.models.vision import VisionFeatures

B, T, N, K, D, C = 2, 5, 16, 4, 6, 8
RNG = np.random.default_rng(0)
PATCHES = RNG.standard_normal((B, T, N, D)).astype(np.float32)
ATTENTION = RNG.random((B, T, N)).astype(np.float32)
# An image, a clip of two frames, an image, padding; a clip of one frame, a clip of three, padding.
MEDIA = np.array([[1, 2, 2, 3, 0], [1, 2, 2, 2, 0]])
IS_VIDEO = np.array([[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]], bool)
MIXED = FrameLayout(MEDIA, IS_VIDEO)
READINGS = [
    "soft_slots", "scored_topk", "encoder_attn", "local_weighted_pool", "mean", "block_average", "stride", "random",
]  # fmt: skip


def model_config(options=None, *, name="weighted_sampler", attention_layer=None, connector="mlp2x_gelu") -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=D, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=16,
            patch_size=4, attention_layer=attention_layer,
        ),
        adapter=AdapterConfig(name=name, options=options or {}, connector={"kind": connector}),
        decoder=DecoderConfig(
            vocab_size=16, hidden_size=C, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8,
        ),
        dtype="float32",
    )  # fmt: skip


def make(name="weighted_sampler", connector="mlp2x_gelu", **options):
    layer = 0 if options.get("reading") == "encoder_attn" else None
    config = model_config(options, name=name, attention_layer=layer, connector=connector)
    return lambda: build_adapter(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


def adapter(**options):
    """Random parameters, the same connector whatever the sampler."""
    made = hf.fill(make(**({"num_tokens": K} | options)), seed=1)
    nnx.update(made.connector, nnx.state(CONNECTOR))
    return made


@nnx.jit
def call(adapter, patches, layout, rng=None):
    return adapter(VisionFeatures(patches, ATTENTION), layout, rng=rng)


def per_frame(adapter, layout=MIXED, patches=PATCHES, rng=None):
    """Tokens and validity as [B, T, slots per frame, ...]."""
    out = call(adapter, patches, layout, rng)
    return np.asarray(out.tokens).reshape(B, T, -1, C), np.asarray(out.valid).reshape(B, T, -1)


def connect(x):
    """The connector's formula."""
    hidden = x @ CONNECTOR.linear_1.kernel[...] + CONNECTOR.linear_1.bias[...]
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return np.asarray(hidden @ CONNECTOR.linear_2.kernel[...] + CONNECTOR.linear_2.bias[...])


def block_means(x):
    return x.reshape(B, T, 2, 2, 2, 2, -1).mean(axis=(3, 5)).reshape(B, T, K, -1)


CONNECTOR = hf.fill(make(), seed=5).connector
WHOLE = connect(PATCHES)
VIDEO = FrameLayout(np.ones((B, T), int), np.ones((B, T), bool))
IMAGES = FrameLayout(np.arange(1, T + 1) + np.zeros((B, 1), int), np.zeros((B, T), bool))


@pytest.mark.parametrize("reading", READINGS)
def test_a_clip_takes_the_tokens_it_says_and_an_image_all_of_its(reading):
    made = adapter(reading=reading)
    assert [made.num_video_tokens(n) for n in (1, 3, T)] == [K, 3 * K, T * K]
    assert made.num_image_tokens() == N
    assert call(made, PATCHES, VIDEO).valid.sum(1).tolist() == [T * K] * B
    tokens, valid = per_frame(made)
    expected = np.where(MEDIA == 0, 0, np.where(IS_VIDEO, made.num_video_tokens(1), made.num_image_tokens()))
    np.testing.assert_array_equal(valid.sum(-1), expected)
    np.testing.assert_allclose(tokens[~IS_VIDEO & (MEDIA > 0)], WHOLE[~IS_VIDEO & (MEDIA > 0)], atol=1e-5)


@pytest.mark.parametrize("reading", ["soft_slots", "scored_topk", "local_weighted_pool"])
def test_options_reach_the_sampler(reading):
    options = {
        "soft_slots": {"hidden": 3, "tau": 0.5, "key_net": "linear", "value_net": "linear", "prior": "learned_grid"},
        "scored_topk": {"score_net": "mlp", "hidden": 3, "weight": "ste", "merge_rest": True, "gumbel": True},
        "local_weighted_pool": {"score_net": "mlp", "hidden": 3},
    }[reading]
    sampler = hf.fill(make(reading=reading, num_tokens=K, **options)).sampler
    for name, value in options.items():
        match name:
            case "hidden":
                proj = sampler.key_proj if reading == "soft_slots" else sampler.score.score_in
                assert proj.kernel.shape == (C, value)
            case "value_net":
                assert sampler.value_proj is not None
            case "prior":
                assert sampler.prior.shape == (K, N)
            case "score_net":
                assert sampler.score.score_in is not None
            case _:
                assert getattr(sampler, name) == value
    assert sampler.num_slots == K


@pytest.mark.parametrize("options", [{"num_tokens": N}, {"num_tokens": N + 9}, {"reading": "none"}])
def test_no_sampling_keeps_all_tokens(options):
    made = adapter(**options)
    assert made.num_video_tokens(3) == 3 * N and made.num_image_tokens() == N
    assert made.sampler is None and made.frame_weights(VisionFeatures(PATCHES), MIXED) is None
    tokens, valid = per_frame(made)
    np.testing.assert_allclose(tokens[MEDIA > 0], WHOLE[MEDIA > 0], atol=1e-5)
    np.testing.assert_array_equal(valid, np.repeat(MEDIA[..., None] > 0, N, axis=-1))


def test_one_frame_video_without_sampling_equals_the_image_path():
    made = adapter(reading="none")
    video, image = call(made, PATCHES, FrameLayout(MEDIA, IS_VIDEO)), call(made, PATCHES, FrameLayout(MEDIA, ~IS_VIDEO))
    np.testing.assert_array_equal(video.tokens, image.tokens)
    np.testing.assert_array_equal(video.valid, image.valid)


def test_without_sampling_it_is_the_frames_adapter():
    frames = hf.fill(make("frames"))
    nnx.update(frames.connector, nnx.state(CONNECTOR))
    assert frames.num_video_tokens(3) == 3 * N and frames.num_image_tokens() == N
    expected, found = call(frames, PATCHES, MIXED), call(adapter(reading="none"), PATCHES, MIXED)
    np.testing.assert_array_equal(found.valid, expected.valid)
    np.testing.assert_array_equal(found.tokens[found.valid], expected.tokens[expected.valid])


def test_apply_to_images_samples_them_like_frames():
    sampled, bypassed = adapter(apply_to_images=True), adapter()
    assert sampled.num_image_tokens() == K and sampled.num_video_tokens(2) == 2 * K
    tokens, valid = per_frame(sampled)
    assert tokens.shape == (B, T, K, C)
    np.testing.assert_array_equal(valid, np.repeat(MEDIA[..., None] > 0, K, axis=-1))
    as_video, _ = per_frame(bypassed, VIDEO)
    np.testing.assert_allclose(tokens, as_video[:, :, :K], atol=1e-6)


@pytest.mark.parametrize("placement", ["after_connector", "before_connector"])
def test_placement(placement):
    tokens, _ = per_frame(adapter(reading="block_average", placement=placement), VIDEO)
    after, before = block_means(WHOLE), connect(block_means(PATCHES))
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(tokens[:, :, :K], after if placement == "after_connector" else before, atol=1e-5)


def test_placement_decides_the_samplers_width():
    assert adapter().sampler.key_proj.kernel.shape[0] == C
    before = adapter(placement="before_connector")
    assert before.sampler.key_proj.kernel.shape[0] == D
    images, _ = per_frame(before, IMAGES)
    np.testing.assert_allclose(images, WHOLE, atol=1e-5)


def test_mixed_row_reads_in_order():
    """Image, clip of two, image: what is valid is N + 2 K + N tokens, frames in time order, K together."""
    out = call(adapter(reading="block_average"), PATCHES, MIXED)
    pooled = block_means(WHOLE)
    expected = np.concatenate([WHOLE[0, 0], pooled[0, 1], pooled[0, 2], WHOLE[0, 3]])
    np.testing.assert_allclose(out.tokens[0][out.valid[0]], expected, atol=1e-5)
    np.testing.assert_allclose(out.tokens[1][out.valid[1]], pooled[1, :4].reshape(-1, C), atol=1e-5)


@pytest.mark.parametrize("reading", ["soft_slots", "scored_topk", "random"])
def test_changing_a_frame_changes_only_its_tokens(reading):
    made = adapter(reading=reading)
    changed = PATCHES.copy()
    changed[0, 2] = 1 - 2 * changed[0, 2]
    before, valid = per_frame(made)
    after, _ = per_frame(made, patches=changed)
    moved = np.abs(before - after).max(-1)
    assert (moved[0, 2, :K] > 1e-3).all()
    assert not moved[0, 2, K:].any() and not valid[0, 2, K:].any()
    np.testing.assert_array_equal(np.delete(moved.reshape(B * T, -1), 2, axis=0), 0)


def test_padding_frames_are_invalid_and_do_not_matter():
    made = adapter()
    changed = PATCHES.copy()
    changed[:, -1] = 50
    before, after = call(made, PATCHES, MIXED), call(made, changed, MIXED)
    assert not np.asarray(before.valid).reshape(B, T, -1)[:, -1].any()
    np.testing.assert_array_equal(before.tokens[before.valid], after.tokens[after.valid])


def test_temporal_embedding_starts_as_a_no_op():
    made = make(num_tokens=K, temporal_embed="learned")()
    assert made.temporal_embedding.shape == (64, C)
    with_embedding, plain = adapter(temporal_embed="learned"), adapter()
    nnx.update(plain.sampler, nnx.state(with_embedding.sampler))
    with_embedding.temporal_embedding[...] = made.temporal_embedding[...]
    np.testing.assert_array_equal(per_frame(with_embedding)[0], per_frame(plain)[0])


def test_temporal_embedding_restarts_for_each_clip():
    """Row 1: a clip of one frame, then of three, of which the last two share the last of `max_frames` vectors."""
    learned, plain = adapter(temporal_embed="learned", max_frames=2), adapter()
    nnx.update(plain.sampler, nnx.state(learned.sampler))
    vectors = np.asarray(learned.temporal_embedding[...])
    assert vectors.shape == (2, C)
    difference = per_frame(learned)[0] - per_frame(plain)[0]
    np.testing.assert_allclose(difference[0, 0], 0)
    np.testing.assert_allclose(difference[0, 3], 0)
    for at, index in {(0, 1): 0, (0, 2): 1, (1, 0): 0, (1, 1): 0, (1, 2): 1, (1, 3): 1}.items():
        np.testing.assert_allclose(difference[at][:K], np.broadcast_to(vectors[index], (K, C)), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=4))
def test_index_in_medium_counts_the_frames_of_each(lengths):
    ids = [i + 1 for i, length in enumerate(lengths) for _ in range(length)]
    media = np.array([ids + [0] * (16 - len(ids))])
    layout = FrameLayout(media, media > 0)
    expected = [frame for length in lengths for frame in range(length)]
    assert layout.index_in_medium[0, : len(ids)].tolist() == expected
    assert layout.mask[0].tolist() == [True] * len(ids) + [False] * (16 - len(ids))


def test_random_key_reaches_the_sampler():
    made = adapter(reading="random")
    fixed, again = per_frame(made)[0], per_frame(made)[0]
    first, second = (per_frame(made, rng=jax.random.key(i))[0] for i in (1, 2))
    np.testing.assert_array_equal(fixed, again)
    assert (first != second).any() and (first != fixed).any()


def test_frame_weights_say_how_much_of_each_patch_is_kept():
    features = VisionFeatures(PATCHES, ATTENTION)
    weigh = nnx.jit(lambda made, features: made.frame_weights(features, MIXED))
    kept = weigh(adapter(reading="encoder_attn", merge_rest=False), features)
    order = np.sort(np.argsort(-ATTENTION, axis=-1)[..., :K], -1)
    np.testing.assert_array_equal(kept, np.eye(N)[order].sum(2))
    np.testing.assert_allclose(weigh(adapter(), features).sum(-1), K, rtol=1e-5)


def test_encoder_attn_merges_the_rest_by_default():
    """With one token there is no room for it."""
    for slots, merged in ((K, True), (1, False)):
        assert adapter(reading="encoder_attn", num_tokens=slots).sampler.merge_rest is merged
    assert adapter(reading="scored_topk").sampler.merge_rest is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model_config(name="nonsense"), r"adapter.name: no adapter 'nonsense'; there are .*frames, .*weighted_sampler"),
        (model_config({"num_token": 4}), r"adapter.options.num_token: unknown key; did you mean 'num_tokens'"),
        (model_config({"reading": "magic"}), r"adapter.options.reading: .*soft_slots.*\(found 'magic'\)"),
        (model_config({"num_tokens": 0}), r"adapter.options.num_tokens: .*greater than 0 \(found 0\)"),
        (model_config({"anything": 1}, name="frames"), r"adapter.options.anything: unknown key"),
        (model_config({"reading": "encoder_attn"}), r"encoder_attn .*config.model.vision.attention_layer"),
        (model_config({"reading": "block_average", "num_tokens": 5}), r"num_tokens: 5 = 1 x 5 blocks do not fit a 4 x"),
        (model_config({"reading": "local_weighted_pool", "num_tokens": 10}), r"num_tokens: 10 = 2 x 5 blocks do not"),
        (model_config({"reading": "scored_topk", "merge_rest": True, "num_tokens": 1}), r"merge_rest: .*tokens >= 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_by_name(config, message):
    with pytest.raises(InputError, match=r"^config\.model\.") as error:
        build_adapter(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert error.match(message)


def test_linear_connector():
    made = hf.fill(make(connector="linear", reading="none"))
    linear = made.connector.linear_1
    assert made.connector.linear_2 is None
    expected = PATCHES @ linear.kernel[...] + linear.bias[...]
    np.testing.assert_allclose(per_frame(made, VIDEO)[0], expected, atol=1e-5)
