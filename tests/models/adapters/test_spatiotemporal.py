"""The `spatiotemporal` adapter: invariants of its two means and two connectors, and its tokens' number and order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hf

from vlvm_jax.config import AdapterConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import build_adapter
from vlvm_jax.models.adapters.base import FrameLayout
from vlvm_jax.models.vision import VisionFeatures

T, N, D, C = 6, 16, 6, 8
LINEAR, MLP = {"kind": "linear"}, {"kind": "mlp2x_gelu"}
RESAMPLER = {"kind": "resampler", "num_queries": 4}
RNG = np.random.default_rng(0)
PATCHES = RNG.standard_normal((2, T, N, D)).astype(np.float32)
CLIP = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
# An image, a clip of two frames, an image, a clip of one; a clip of three, an image, a clip of two.
MEDIA = np.array([[1, 2, 2, 3, 4, 0], [1, 1, 1, 2, 3, 3]])
IS_VIDEO = np.array([[0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]], bool)


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def config(options=None, connector=None, *, image_size=16, width=C) -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=D, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=image_size,
            patch_size=4,
        ),
        adapter=AdapterConfig(name="spatiotemporal", options=options or {}, connector=connector or MLP),
        decoder=DecoderConfig(
            vocab_size=16, hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8,
        ),
        dtype="float32",
    )  # fmt: skip


def make(connector=None, **options):
    """An adapter with random parameters."""
    return hf.fill(lambda: build_adapter(config(options, connector), dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=1)


def copied(connector=None, **options):
    """Its temporal connector begins as a copy of the image connector."""
    made = make(connector, **options)
    nnx.update(made.temporal_connector, nnx.state(made.connector))
    return made


@nnx.jit
def call(adapter, patches, layout):
    return adapter(VisionFeatures(patches), layout)


def tokens(adapter, patches=PATCHES, media=CLIP, is_video=None, room=None):
    """The valid tokens of each row."""
    is_video = media > 0 if is_video is None else is_video
    out = call(adapter, patches, FrameLayout(media, is_video, room=room))
    return [np.asarray(row)[np.asarray(valid)] for row, valid in zip(out.tokens, out.valid, strict=True)]


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


# --- the two means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connector", [LINEAR, MLP])
def test_the_formula(connector):
    made = make(connector)
    for row, frames in enumerate((4, 6)):
        clip = PATCHES[row, :frames]
        expected = np.concatenate([made.temporal_connector(clip.mean(1)), made.connector(clip.mean(0))])
        close(tokens(made)[row], expected)


def test_a_copy_gives_what_the_shared_connector_gives():
    """At the first step RED-VILLM is Video-ChatGPT: both blocks through one connector."""
    for connector in (LINEAR, MLP, RESAMPLER):
        one = copied(connector)
        shared = make(connector, temporal="shared")
        nnx.update(shared.connector, nnx.state(one.connector))
        for found, expected in zip(tokens(one), tokens(shared), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_mean_and_linear_map_commute():
    linear, mlp = make(LINEAR, join="space_only"), make(MLP, join="space_only")
    for row, frames in enumerate((4, 6)):
        clip = PATCHES[row, :frames]
        close(tokens(linear)[row], np.asarray(linear.connector(clip)).mean(0))
        assert np.abs(tokens(mlp)[row] - np.asarray(mlp.connector(clip)).mean(0)).max() > 0.01


@pytest.mark.parametrize("connector", [LINEAR, MLP, RESAMPLER])
def test_one_frame_has_the_image_s_own_tokens(connector):
    made, media = make(connector), np.array([[1, 0, 0, 0, 0, 0]] * 2)
    as_clip, as_image = tokens(made, media=media), tokens(made, media=media, is_video=np.zeros((2, T), bool))
    for row in range(2):
        expected = np.asarray(made.connector(PATCHES[row, 0]))
        close(as_image[row], expected)
        close(as_clip[row][-len(expected) :], expected)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(T)))
def test_order_moves_time_tokens_alone(order):
    made = _mlp()
    changed = PATCHES[:, list(order)]
    found, moved = tokens(made, media=np.ones((2, T), int)), tokens(made, changed, media=np.ones((2, T), int))
    for before, after in zip(found, moved, strict=True):
        close(after[T:], before[T:])
        close(after[:T], before[:T][list(order)])


_MADE = {}


def _mlp():
    return _MADE.setdefault("mlp", make(MLP))


def test_a_resampler_of_time_sees_the_order():
    made = make(RESAMPLER)
    changed = PATCHES[:, ::-1]
    before, after = (tokens(made, patches, media=np.ones((2, T), int)) for patches in (PATCHES, changed))
    for a, b in zip(before, after, strict=True):
        close(a[4:], b[4:])
        assert np.abs(a[:4] - b[:4]).max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"temporal": "linear"}, {"temporal": "shared"}])
@pytest.mark.parametrize("connector", [MLP, RESAMPLER])
def test_padding_is_inert(connector, options):
    """Whatever lies in frames that are not there, and however many of them."""
    made = make(connector, **options)
    noise = PATCHES.copy()
    noise[0, 4:] = 1e3
    close(tokens(made)[0], tokens(made, noise)[0])
    close(tokens(made)[0], tokens(made, PATCHES[:, :4], media=CLIP[:, :4])[0])


# --- padding as Video-ChatGPT has it -----------------------------------------------------------------------------


def test_padded_frames_become_the_connector_s_bias():
    made = make(LINEAR, temporal="shared", pad_frames=5)
    found = tokens(made, media=np.array([[1, 1, 1, 0, 0, 0]] * 2))[0]
    assert len(found) == 5 + N
    close(found[3:5], np.asarray(made.connector.linear_1.bias[...])[None].repeat(2, 0))
    close(found[5:], np.asarray(made.connector(PATCHES[0, :3].mean(0))))


def test_clips_longer_than_the_padding_are_refused():
    with pytest.raises(InputError, match="pad_frames: clips of 6 frames are longer than 5; raise it"):
        make(LINEAR, pad_frames=5).num_video_tokens(6)


# --- how many, and in which order --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "patch", "connector", "options", "count"),
    [
        (224, 14, LINEAR, {}, 356),
        (224, 14, LINEAR, {"temporal": "shared", "pad_frames": 100}, 356),
        (336, 14, MLP, {}, 676),
        (448, 14, {"kind": "resampler", "num_queries": 256}, {}, 512),
        (448, 14, {"kind": "resampler", "num_queries": 256}, {"temporal": "linear"}, 356),
        (448, 14, {"kind": "resampler", "num_queries": 256}, {"join": "add"}, 256),
        (336, 14, MLP, {"join": "space_only"}, 576),
        (336, 14, MLP, {"join": "time_only"}, 100),
    ],
)
def test_tokens_of_a_hundred_frames(image_size, patch, connector, options, count):
    made = config(options, connector, image_size=image_size)
    made = made.model_copy(update={"vision": made.vision.model_copy(update={"patch_size": patch})})
    adapter = nnx.eval_shape(lambda: build_adapter(made, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    assert adapter.num_video_tokens(100) == count
    assert adapter.num_image_tokens() == (256 if image_size == 448 else (image_size // patch) ** 2)


@pytest.mark.parametrize("room", [None, 90, 200])
@pytest.mark.parametrize(
    ("connector", "options"),
    [
        (MLP, {}),
        (MLP, {"join": "space_first"}),
        (MLP, {"join": "space_only"}),
        (MLP, {"join": "time_only"}),
        (LINEAR, {"temporal": "shared", "pad_frames": 4}),
        (LINEAR, {"temporal": "linear", "join": "space_first"}),
        (RESAMPLER, {}),
        (RESAMPLER, {"join": "add"}),
        (RESAMPLER, {"temporal": "linear"}),
    ],
)
def test_media_of_packed_rows_are_what_each_is_alone(connector, options, room):
    made = make(connector, **options)
    packed = tokens(made, media=MEDIA, is_video=IS_VIDEO, room=room)
    for row in range(2):
        alone = []
        for medium in range(1, MEDIA[row].max() + 1):
            frames = np.flatnonzero(MEDIA[row] == medium)
            video = IS_VIDEO[row, frames]
            one = tokens(made, PATCHES[row : row + 1, frames], np.ones((1, len(frames)), int), video[None])[0]
            assert len(one) == (made.num_video_tokens(len(frames)) if video[0] else made.num_image_tokens())
            alone.append(one)
        close(packed[row], np.concatenate(alone))


def test_slots_are_no_more_than_the_row_has_room_for():
    out = call(make(MLP), PATCHES, FrameLayout(MEDIA, IS_VIDEO, room=70))
    assert out.tokens.shape == (2, 70, C)
    assert call(make(MLP), PATCHES, FrameLayout(MEDIA, IS_VIDEO)).tokens.shape == (2, T * (N + 1), C)


def test_both_connectors_learn():
    made = make(MLP)
    graph, params = nnx.split(made)

    def loss(params):
        out = nnx.merge(graph, params)(VisionFeatures(PATCHES), FrameLayout(MEDIA, IS_VIDEO))
        return jnp.sum(jnp.where(out.valid[..., None], out.tokens, 0) ** 2)

    for path, gradient in nnx.to_flat_state(jax.grad(loss)(params)):
        assert np.abs(np.asarray(gradient[...])).max() > 0, path


@pytest.mark.parametrize(
    ("connector", "options", "message"),
    [
        (MLP, {"join": "add"}, "join: add sums as many time tokens as space tokens"),
        (RESAMPLER, {"join": "add", "temporal": "linear"}, "join: add sums"),
        (RESAMPLER, {"pad_frames": 8}, "pad_frames: a resampler gives as many tokens"),
        ({"kind": "pixel_shuffle"}, {}, "temporal: 'same' needs a connector that maps a single feature"),
        (MLP, {"temporal": "none"}, "options.temporal: Input should be 'same', 'linear' or 'shared'"),
    ],
)
def test_errors(connector, options, message):
    with pytest.raises(InputError, match=message):
        make(connector, **options)
