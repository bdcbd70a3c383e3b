"""SlowFast-LLaVA and FreeVA: token counts, which frames, in which order, and what shares a row with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import guided
from support.guided import OFF

from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import _frame_paths as frame_paths
from vlvm_jax.models.adapters._frame_paths import ClipFrames

FREEVA = {
    "d1": {"num_frames": "all", "pool": "concat"},
    "d2": {"num_frames": "all"},
    "s1": {"num_frames": "all", "pool": "temporal_global_pool"},
}


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def uniform(total, wanted, room=50):
    picks = frame_paths.uniform_picks(ClipFrames(jnp.array([0]), jnp.array([total])), wanted, room)
    return np.asarray(picks.index[0])[np.asarray(picks.valid[0])].tolist()


def test_uniform_frames():
    assert uniform(50, 5) == [0, 10, 20, 30, 40]
    assert uniform(50, 3) == [0, 16, 33]
    assert uniform(50, 10) == list(range(0, 50, 5))
    assert uniform(49, 5) == [0, 9, 19, 29, 39]
    assert uniform(30, 5) == [0, 6, 12, 18, 24]
    assert uniform(20, 5) == [0, 4, 8, 12, 16]
    assert uniform(4, 5) == [0, 0, 1, 2, 3]
    assert uniform(3, 5) == [0, 0, 1, 1, 2]
    assert uniform(0, 5) == [] and uniform(3, "all") == [0, 1, 2]


@given(total=st.integers(1, 50), wanted=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_uniform_frames_are_the_truncated_line(total, wanted):
    assert uniform(total, wanted) == np.linspace(0, total, wanted + 1)[:wanted].round(9).astype(int).tolist()


def test_token_counts():
    assert guided.abstract("slow_fast").num_video_tokens(50) == 3680
    slow8 = {"slow_path": {"num_frames": 8}}
    assert guided.abstract("slow_fast", **slow8).num_video_tokens(50) == 3104
    for name, frames, tokens in (("d1", 4, 2304), ("d2", 8, 2304), ("s1", 4, 576), ("s1", 9, 576)):
        made = guided.abstract("slow_fast", slow_path=FREEVA[name], fast_path=OFF)
        assert made.num_video_tokens(frames) == tokens and made.num_image_tokens() == 576
    spatiotemporal = {"num_frames": 10, "pool": "spatial_temporal_pool"}
    assert guided.abstract("slow_fast", slow_path=spatiotemporal, fast_path=OFF).num_video_tokens(50) == 16 * 144
    assert guided.abstract("slow_fast").num_video_tokens(0) == 0


def reference(tokens, slow, fast, side):
    """SlowFast-LLaVA of one clip's [T, N, C] tokens, from its formulas; even sides, fast grid 2 x 2."""
    count = len(tokens)
    taken = tokens[[count * j // slow for j in range(slow)]]
    pairs = taken.reshape(slow, side**2 // 2, 2, -1).max(2)
    half = side // 2
    coarse = tokens[:fast].reshape(-1, 2, half, 2, half, tokens.shape[-1]).mean((2, 4))
    return np.concatenate([pairs.reshape(-1, tokens.shape[-1]), coarse.reshape(-1, tokens.shape[-1])])


@pytest.mark.parametrize("slow", [1, 3, 8])
@given(counts=st.lists(st.integers(1, 6), min_size=2, max_size=2), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_tokens_equal_the_reference(slow, counts, seed):
    made = guided.adapter("slow_fast", 4, slow_path={"num_frames": slow}, fast_path={"grid": (2, 2)})
    layout = guided.clips(counts, frames=6)
    seen = made, guided.tower(4), guided.frames(6, 4, batch=2, seed=seed)
    features, whole = guided.encode_media(*seen), np.asarray(guided.connected(*seen))
    out = guided.call(made, features, layout)
    for row, count in enumerate(counts):
        expected = reference(whole[row, :count], slow, 99, 4)
        np.testing.assert_allclose(guided.row_tokens(out, row), expected, atol=1e-5)
        assert len(expected) == made.num_video_tokens(count)


@pytest.mark.parametrize("room", [None, 45, 60])
def test_images_stand_where_they_are_among_the_media(room):
    """On 3 x 3 grids: an image, a clip of three frames, two images, all with every patch of theirs."""
    made = guided.adapter("slow_fast", 3, slow_path={"num_frames": 2}, fast_path={"grid": (1, 1)})
    layout = guided.clips([3, 1], room, before=1, after=2)
    seen = made, guided.tower(3), guided.frames(6, 3, batch=2)
    features, whole = guided.encode_media(*seen), np.asarray(guided.connected(*seen))
    out = guided.call(made, features, layout)
    for row, count in enumerate((3, 1)):
        got = guided.row_tokens(out, row)
        clip = made.num_video_tokens(count)
        assert clip == 2 * 6 + count  # pairs of 3 columns: two and one
        np.testing.assert_allclose(got[:9], whole[row, 0], atol=1e-5)
        np.testing.assert_allclose(got[9 + clip :], whole[row, 1 + count : 3 + count].reshape(18, -1), atol=1e-5)
        means = whole[row, 1 : 1 + count].mean(1)
        np.testing.assert_allclose(got[9 + 12 : 9 + clip], means, atol=1e-5)
        assert len(got) == clip + 3 * made.num_image_tokens()
    if room == 45:
        assert out.tokens.shape[1] < 6 * 9 + made.num_video_tokens(6)  # no room, no slots


def test_rows_without_a_clip_are_their_images():
    made = guided.adapter("slow_fast", 3, slow_path={"num_frames": 2}, fast_path={"grid": (1, 1)})
    layout = guided.clips([0], before=2, after=0)
    seen = made, guided.tower(3), guided.frames(2, 3)
    features, whole = guided.encode_media(*seen), np.asarray(guided.connected(*seen))
    got = guided.row_tokens(guided.call(made, features, layout))
    np.testing.assert_allclose(got, whole.reshape(18, -1), atol=1e-5)


def test_freeva_settings():
    x = guided.frames(4, 4)
    layout = guided.clips([4])
    for name, expected in (
        ("d1", lambda t: t.reshape(-1, t.shape[-1])),
        ("d2", lambda t: t.reshape(4, 8, 2, -1).max(2).reshape(32, -1)),
        ("s1", lambda t: t.mean(0)),
    ):
        made = guided.adapter("slow_fast", 4, slow_path=FREEVA[name], fast_path=OFF)
        features, whole = (part(made, guided.tower(4), x) for part in (guided.encode_media, guided.connected))
        got = guided.row_tokens(guided.call(made, features, layout))
        np.testing.assert_allclose(got, expected(np.asarray(whole)[0]), atol=1e-5)
        weights = guided.weights(made, features, layout)
        np.testing.assert_allclose(weights.sum(), made.num_video_tokens(4), rtol=1e-5)


def test_d1_is_the_plain_adapter():
    made = guided.adapter("slow_fast", 4, slow_path=FREEVA["d1"], fast_path=OFF)
    plain = guided.adapter("frames", 4)
    layout = guided.clips([3, 4], before=1)
    x = guided.frames(5, 4, batch=2)
    ours, theirs = (guided.call(a, guided.encode_media(a, guided.tower(4), x), layout) for a in (made, plain))
    for row in range(2):
        np.testing.assert_allclose(guided.row_tokens(ours, row), guided.row_tokens(theirs, row), atol=1e-6)


def test_picked_and_weights():
    made = guided.adapter("slow_fast", 4, slow_path={"num_frames": 2}, fast_path={"num_frames": 3, "grid": (1, 1)})
    layout = guided.clips([5, 2], before=1)
    features = guided.encode_media(made, guided.tower(4), guided.frames(6, 4, batch=2))
    found = guided.picked(made, features, layout)
    np.testing.assert_array_equal(found["uniform_idx"], [[0, 2], [0, 1]])
    np.testing.assert_array_equal(found["fast_idx"], [[0, 1, 3], [0, 1, -1]])
    np.testing.assert_array_equal(found["uniform_tokens"], [16, 16])
    np.testing.assert_array_equal(found["fast_tokens"], [3, 2])
    frames = np.asarray(guided.weights(made, features, layout).sum(-1))
    np.testing.assert_allclose(frames, [[16, 9, 1, 8, 1, 0], [16, 9, 9, 0, 0, 0]], rtol=1e-5)


def test_faults_are_named():
    with pytest.raises(InputError, match=r"config.model.adapter.options: no path takes any frames"):
        guided.abstract("slow_fast", slow_path=OFF, fast_path=OFF)
    with pytest.raises(InputError, match=r"fast_path.grid: 4 x 4 is larger than the grid of 3 x 3"):
        guided.abstract("slow_fast", 3)
    with pytest.raises(InputError, match=r"connector.kind: the adapter 'slow_fast' pools tokens by where they lie"):
        guided.abstract("slow_fast", connector="resampler")
    with pytest.raises(InputError, match=r"slow_path.num_frames"):
        guided.abstract("slow_fast", slow_path={"num_frames": -1})
