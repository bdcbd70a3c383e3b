"""The whole model: merging visual tokens into the text, packing, gradients, precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hf

from vlvm_jax.config import AdapterConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.models.adapters.base import VisualTokens
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoder import init_cache
from vlvm_jax.models.video_llm import VideoLLM, merge, merge_indexed

VOCAB, WIDTH, N, K, FRAMES, LENGTH = 24, 16, 4, 2, 4, 18
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, VOCAB, (4, LENGTH))


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def config(dtype="float32") -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
        ),
        adapter=AdapterConfig(name="weighted_sampler", options={"num_tokens": K, "hidden": 6}),
        decoder=DecoderConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        ),
        dtype=dtype,
    )  # fmt: skip


def model_of(dtype="float32") -> VideoLLM:
    return hf.fill(lambda: VideoLLM(config(dtype), rngs=nnx.Rngs(0)), seed=2)


@pytest.fixture(scope="module")
def model():
    return model_of()


@nnx.jit
def forward(model, batch):
    hidden, _ = model(batch)
    return hidden, model.decoder.logits(hidden)


@dataclasses.dataclass
class Sample:
    """`marks` says of each token whether a visual token stands there."""

    frames: np.ndarray
    is_video: bool
    ids: np.ndarray
    marks: np.ndarray


def make_sample(num_frames: int, is_video: bool, before: int, after: int) -> Sample:
    visual = num_frames * (K if is_video else N)
    marks = np.repeat([False, True, False], [before, visual, after])
    frames = RNG.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8)
    return Sample(frames, is_video, RNG.integers(0, VOCAB, marks.size), marks)


def make_batch(rows: list[list[Sample]]) -> Batch:
    """Rows of packed samples. What pads them, and the ids under visual tokens, is noise."""
    size = len(rows)
    batch = Batch(
        frames=RNG.integers(0, 256, (size, FRAMES, 8, 8, 3), dtype=np.uint8),
        media=np.zeros((size, FRAMES), np.int32),
        is_video=np.zeros((size, FRAMES), bool),
        token_ids=RNG.integers(0, VOCAB, (size, LENGTH)),
        media_mask=np.zeros((size, LENGTH), bool),
        positions=np.zeros((size, LENGTH), np.int32),
        segment_ids=np.zeros((size, LENGTH), np.int32),
        loss_mask=np.zeros((size, LENGTH), bool),
    )
    for row, samples in enumerate(rows):
        frame = token = 0
        for segment, sample in enumerate(samples, 1):
            frames = slice(frame, frame := frame + len(sample.frames))
            tokens = slice(token, token := token + len(sample.ids))
            batch.frames[row, frames] = sample.frames
            batch.media[row, frames] = segment
            batch.is_video[row, frames] = sample.is_video
            batch.token_ids[row, tokens] = np.where(sample.marks, batch.token_ids[row, tokens], sample.ids)
            batch.media_mask[row, tokens] = sample.marks
            batch.positions[row, tokens] = np.arange(len(sample.ids))
            batch.segment_ids[row, tokens] = segment
            batch.loss_mask[row, tokens] = ~sample.marks
    return batch


CLIP = make_sample(2, True, before=1, after=3)  # 8 tokens
IMAGE = make_sample(1, False, before=2, after=1)  # 7 tokens
TEXT = make_sample(0, False, before=2, after=0)
BATCH = make_batch([[CLIP, IMAGE, TEXT], [CLIP], [IMAGE], [TEXT]])


# --- merge

BOOLS = st.lists(st.booleans(), min_size=2 * 7, max_size=2 * 7).map(lambda values: np.array(values).reshape(2, 7))
place = jax.jit(merge)


@settings(max_examples=40, deadline=None)
@given(valid=BOOLS, marked=BOOLS)
def test_merge_puts_the_ith_valid_token_at_the_ith_marked_position(valid, marked):
    # The pipeline marks as many positions as there are tokens; fewer are fine, more have no meaning.
    marked = marked & (marked.cumsum(1) <= valid.sum(1, keepdims=True))
    text = RNG.standard_normal((2, 7, 3)).astype(np.float32)
    tokens = RNG.standard_normal((2, 7, 3)).astype(np.float32)
    expected = text.copy()
    for row in range(2):
        queue = [tokens[row, slot] for slot in range(7) if valid[row, slot]]
        for position in range(7):
            if marked[row, position]:
                expected[row, position] = queue.pop(0)
    np.testing.assert_array_equal(place(text, marked, VisualTokens(tokens, valid)), expected)


def test_merge_of_other_sizes_and_types():
    """More slots than positions, all of them marked, and tokens of another dtype than the text."""
    tokens = jnp.arange(24, dtype=jnp.float32).reshape(1, 12, 2)
    valid = np.arange(12)[None] % 3 == 1
    merged = merge(jnp.zeros((1, 4, 2), jnp.bfloat16), np.ones((1, 4), bool), VisualTokens(tokens, valid))
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged[0], tokens[0, 1::3])


def test_indexed_merge_is_the_weighted_sum_of_slots():
    """Of bf16 slots summed in fp32; what the index says where nothing is marked does not matter."""
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((2, 7, 3)).astype(jnp.bfloat16)
    index, weight = rng.integers(0, 7, (2, 5, 4)), rng.random((2, 5, 4)).astype(np.float32)
    text, marked = rng.standard_normal((2, 5, 3)).astype(np.float32), rng.random((2, 5)) < 0.6
    found = merge_indexed(text, marked, VisualTokens(jnp.asarray(tokens), np.ones((2, 7), bool)), index, weight)
    expected = text.copy()
    for row, place in np.argwhere(marked):
        expected[row, place] = weight[row, place] @ tokens[row, index[row, place]].astype(np.float32)
    assert 0 < marked.sum() < marked.size
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_merge_gradient_reaches_what_was_placed_and_nothing_else():
    valid = np.array([[0, 1, 0, 1, 1]], bool)
    marked = np.array([[1, 0, 0, 1]], bool)
    text, tokens = jnp.zeros((1, 4, 1)), jnp.zeros((1, 5, 1))
    cotangent = jnp.arange(1.0, 5.0)[None, :, None]
    to_text, to_tokens = jax.jit(
        jax.grad(lambda x, v: (merge(x, marked, VisualTokens(v, valid)) * cotangent).sum(), argnums=(0, 1))
    )(text, tokens)
    assert to_text.ravel().tolist() == [0, 2, 3, 0]
    assert to_tokens.ravel().tolist() == [0, 1, 0, 4, 0]


# --- the whole


@nnx.jit
def parts(model, batch):
    whole = model.adapter.connector(model.encoder(batch.frames).patches)
    return model.embed(batch), whole, model.adapter.sampler(whole)


def test_clips_images_and_text_are_where_they_belong(model):
    embedded, whole, sampled = map(np.asarray, parts(model, BATCH))
    row, marks = 0, BATCH.media_mask[0]
    expected = np.concatenate([sampled[row, 0], sampled[row, 1], whole[row, 2]])
    np.testing.assert_allclose(embedded[row, marks], expected, atol=1e-6)
    table = model.decoder.embed_tokens.embedding[...]
    np.testing.assert_allclose(embedded[row, ~marks], table[BATCH.token_ids[row, ~marks]], atol=1e-6)


def test_packed_row_equals_its_samples_alone(model):
    hidden, logits = forward(model, BATCH)
    assert hidden.shape == (4, LENGTH, WIDTH) and logits.shape == (4, LENGTH, VOCAB)
    assert np.isfinite(hidden).all()
    start = 0
    for row, sample in enumerate((CLIP, IMAGE, TEXT), 1):
        count = len(sample.ids)
        np.testing.assert_allclose(hidden[0, start : start + count], hidden[row, :count], atol=2e-5)
        np.testing.assert_allclose(logits[0, start : start + count], logits[row, :count], atol=1e-4)
        start += count
    assert start == LENGTH - 1


def test_only_frames_of_a_medium_matter(model):
    """Frames of padding change nothing, and a text-only row has no others; those of the clip change its own tokens."""
    frames = BATCH.frames.copy()
    frames[BATCH.media == 0] = RNG.integers(0, 256, frames[BATCH.media == 0].shape)
    before = forward(model, BATCH)[0]
    np.testing.assert_array_equal(forward(model, dataclasses.replace(BATCH, frames=frames))[0], before)
    frames = BATCH.frames.copy()
    frames[0, 1] = 255 - frames[0, 1]
    moved = np.abs(forward(model, dataclasses.replace(BATCH, frames=frames))[0] - before).max(-1)
    # One text token and frame 0's come first; the second frame is seen from its own tokens on.
    first = 1 + K
    assert (moved[0, first : len(CLIP.ids)] > 1e-4).all()
    moved[0, first : len(CLIP.ids)] = 0
    assert not moved[BATCH.segment_ids > 0].any()


def test_ids_under_visual_tokens_and_padding_do_not_matter(model):
    other = RNG.integers(0, VOCAB, BATCH.token_ids.shape)
    text = ~BATCH.media_mask & (BATCH.segment_ids > 0)
    ids = np.where(text, BATCH.token_ids, other)
    ids[BATCH.media_mask] = -200  # LLaVA's placeholder id
    used = BATCH.segment_ids > 0
    before, after = (forward(model, dataclasses.replace(BATCH, token_ids=i))[0] for i in (BATCH.token_ids, ids))
    np.testing.assert_array_equal(before[used], after[used])


def test_prefill_gives_the_same(model):
    cache = init_cache(config().decoder, 4, LENGTH + 3)
    hidden, cache = nnx.jit(lambda model, batch, cache: model(batch, cache=cache))(model, BATCH, cache)
    used = BATCH.segment_ids > 0
    np.testing.assert_allclose(hidden[used], forward(model, BATCH)[0][used], atol=2e-5)
    assert int(cache.index) == LENGTH


def test_gradient_flows_to_encoder_adapter_and_decoder(model):
    graphdef, params = nnx.split(model)

    def loss(params):
        model = nnx.merge(graphdef, params)
        log_probability = jax.nn.log_softmax(model.decoder.logits(model(BATCH)[0]))
        chosen = jnp.take_along_axis(log_probability, LABELS[..., None], -1)[..., 0]
        return -(chosen * BATCH.loss_mask).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in nnx.to_flat_state(gradient):
        name, size = "/".join(map(str, path)), np.abs(np.asarray(leaf[...]))
        assert np.isfinite(size).all(), name
        if name.startswith("encoder/layers"):
            # feature_layer -2 of two layers: only the first runs.
            assert not size[1].any(), name
            size = size[0]
        if name.startswith("encoder/post_layernorm"):
            assert not size.any()
        elif not name.endswith(("k_proj/bias", "key_proj/bias", "sampler/norm/bias")):
            # A softmax does not see what is added to all of its logits, so of those biases little or nothing remains.
            assert size.max() > 1e-4, name


def test_bfloat16_is_finite_and_close(model):
    half = model_of("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    expected, _ = forward(model, BATCH)
    hidden, logits = forward(half, BATCH)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert np.isfinite(np.asarray(hidden, np.float32)).all() and np.isfinite(logits).all()
    used = BATCH.segment_ids > 0
    error = np.abs(np.asarray(hidden, np.float32) - expected)[used]
    assert 0 < error.mean() < 0.03 and error.max() < 0.3
