"""Free Video-LLM: worked numbers, a numpy reference from its formulas, and that questions move no shape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from support import guided
from support.guided import OFF

from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters.base import FrameLayout, Guidance
from vlvm_jax.models.vision import VisionFeatures

PER_FRAME = {0.2: 55, 0.3: 91, 0.4: 120, 0.5: 136, 0.6: 171, 0.7: 200, 0.8: 231, 0.9: 253, 1.0: 288}


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def path(num_frames, alpha=0.8, **rest):
    return {"num_frames": num_frames, "roi_alpha": alpha, **rest}


def both(alpha, prompt=3, uniform=5, **rest):
    return {"prompt_path": path(prompt, alpha, **rest), "uniform_path": path(uniform, alpha, **rest)}


# --- how many tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["released", "corrected"])
@pytest.mark.parametrize("alpha", PER_FRAME)
def test_token_table(alpha, layout):
    each = PER_FRAME[alpha]
    for prompt, uniform in ((3, 0), (3, 3), (3, 5)):
        made = guided.abstract("prompt_guided", roi_layout=layout, fast_path=OFF, **both(alpha, prompt, uniform))
        assert made.num_video_tokens(50) == (prompt + uniform) * each
    made = guided.abstract("prompt_guided", roi_layout=layout, **both(alpha))
    assert made.num_video_tokens(50) == 8 * each + 800


def test_presets():
    def tokens(frames=50, **options):
        return guided.abstract("prompt_guided", **options).num_video_tokens(frames)

    assert tokens() == 693 + 1155 + 800 == 2648
    assert tokens(**both(0.6, 3, 3)) == 1826
    assert tokens(**both(0.6, 3, 3), fast_path=OFF) == 1026
    assert tokens(**both(1.0, 3, 0), fast_path=OFF) == tokens(**both(1.0, 0, 3), fast_path=OFF) == 864
    assert tokens(**both(1.0, 3, 3), fast_path=OFF) == 1728
    assert tokens(**both(0.6, 3, 0), fast_path=OFF) == 513
    assert tokens(**both(1.0, 3, 0, pool="adaptive_2d_pool", grid=(9, 19)), fast_path=OFF) == 513
    assert tokens(**both(1.0, 0, 10)) == 3680
    assert tokens(20) == 693 + 1155 + 320 == 2168
    assert tokens(2) == 2 * 231 + 1155 + 32
    assert tokens(0) == 0
    assert tokens(20, dedupe_frames=True) == tokens(20)
    assert tokens(6, dedupe_frames=True) == 231 + 1155 + 96  # uniform frames leave one


# --- against a reference ---------------------------------------------------------------------------------------------


def cosines(text, vectors):
    text, vectors = np.float64(text), np.float64(vectors)
    return vectors @ text / np.linalg.norm(vectors, axis=-1) / np.linalg.norm(text)


def reference(tokens, text, of_frames, of_patches, *, prompt, uniform, alphas, layout, side, grid, select="prompt"):
    """One clip of [T, N, C] tokens, from the formulas of the released code; even sides.

    Returns tokens, prompt frames and boxes.
    """
    count, width = tokens.shape[0], tokens.shape[-1]
    scores = cosines(text, of_frames)
    best = sorted(sorted(range(count), key=lambda i: (-scores[i], i))[:prompt])
    parts, boxes = [], []
    rows, columns = (side, side // 2) if layout == "corrected" else (side // 2, side)
    for frames, alpha in ((best, alphas[0]), ([count * j // uniform for j in range(uniform)], alphas[1])):
        for frame in frames:
            pooled = tokens[frame].reshape(-1, 2, width).max(1)
            if alpha < 1:
                places = cosines(text, of_patches[frame].reshape(len(pooled), 2, -1).max(1))
                number = max(1, int(len(pooled) * alpha))
                top = sorted(range(len(pooled)), key=lambda p: (-places[p], p))[:number]
                cx = int(np.float32(np.mean([p % columns for p in top])))
                cy = int(np.float32(np.mean([p // columns for p in top])))
                height, across = (max(1, round(s * math.sqrt(alpha))) for s in (rows, columns))
                left = min(max(cx - across // 2, 0), columns - across)
                upper = min(max(cy - height // 2, 0), rows - height)
                boxes.append((left, upper, across, height))
                pooled = pooled.reshape(rows, columns, width)[upper : upper + height, left : left + across]
            parts.append(pooled.reshape(-1, width))
    size = side // grid
    coarse = tokens.reshape(count, grid, size, grid, size, width).mean((2, 4))
    parts.append(coarse.reshape(-1, width))
    return np.concatenate(parts), best, boxes


@nnx.jit
def clip_sides(made, asked, x):
    own = made.clip.vision_model
    return made.clip.texts(asked.prompt_ids), made.clip.patches(own, own(x, final=True).final, post_norm=False)


@pytest.mark.parametrize(
    "case",
    [
        (4, 3, 2, (0.8, 0.6), "released"),
        (6, 2, 3, (0.3, 0.3), "released"),
        (6, 4, 1, (0.6, 1.0), "corrected"),
    ],
)
@given(
    counts=st.lists(st.integers(1, 7), min_size=2, max_size=2),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=12, deadline=None)
def test_tokens_equal_the_reference(case, counts, seed):
    side, prompt, uniform, alphas, layout = case
    made = guided.adapter(
        "prompt_guided", side, seed=seed % 5, prompt_path=path(prompt, alphas[0]),
        uniform_path=path(uniform, alphas[1]), fast_path={"grid": (2, 2)}, roi_layout=layout,
    )  # fmt: skip
    where = guided.clips(counts, frames=7)
    asked = guided.question(seed, batch=2)
    x = guided.frames(7, side, batch=2, seed=seed)
    features, whole = (part(made, guided.tower(side), x) for part in (guided.encode_media, guided.connected))
    out, found = guided.call(made, features, where, asked), guided.picked(made, features, where, asked)
    text, patches = (np.asarray(found) for found in clip_sides(made, asked, x))
    for row, count in enumerate(counts):
        tokens = np.asarray(whole[row, :count])
        expected, best, boxes = reference(
            tokens, text[row], np.asarray(features.frames)[row, :count], patches[row, :count], prompt=prompt,
            uniform=uniform, alphas=alphas, layout=layout, side=side, grid=2,
        )  # fmt: skip
        chosen = np.asarray(found["prompt_idx"][row])
        assert chosen[chosen >= 0].tolist() == best and len(best) == min(prompt, count)
        got = [
            tuple(box)
            for name, valid in (("prompt", chosen >= 0), ("uniform", np.ones(uniform, bool)))
            if f"{name}_boxes" in found
            for box in np.asarray(found[f"{name}_boxes"][row])[valid].tolist()
        ]
        assert got == boxes
        np.testing.assert_allclose(guided.row_tokens(out, row), expected, atol=1e-5)
        assert len(expected) == made.num_video_tokens(count)
        np.testing.assert_allclose(
            found["frame_scores"][row], np.pad(cosines(text[row], features.frames[row, :count]), (0, 7 - count)),
            atol=1e-6,
        )  # fmt: skip


# --- invariants ------------------------------------------------------------------------------------------------------


def test_without_a_question_to_use_it_is_slow_fast_bit_for_bit():
    """Prompt 0, uniform 10, no crop, fast 50 at 4 x 4."""
    guided_one = guided.adapter(
        "prompt_guided", prompt_path=OFF, uniform_path=path(10, 1.0), fast_path={"num_frames": 50, "grid": (4, 4)}
    )
    slow_fast = guided.adapter("slow_fast")
    nnx.update(slow_fast.connector, nnx.state(guided_one.connector))
    rng = np.random.default_rng(0)
    patches = jnp.asarray(rng.standard_normal((1, 50, 576, guided.VISION["hidden_size"])), jnp.float32)

    class Tower(nnx.Module):  # 50 frames of random features, for both
        def __call__(self, frames, *, final=False):
            return VisionFeatures(patches, final=None)

    layout = guided.clips([50])
    x = guided.frames(50)
    ours = guided.call(guided_one, guided.encode_media(guided_one, Tower(), x), layout, guided.question())
    theirs = guided.call(slow_fast, guided.encode_media(slow_fast, Tower(), x), layout)
    assert int(ours.valid.sum()) == 3680
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert np.asarray(ours.tokens).any()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_questions_move_no_length(alpha):
    made = guided.adapter("prompt_guided", 6, **both(alpha, 2, 2), fast_path={"grid": (2, 2)})
    layout = guided.clips([9])
    features = guided.encode_media(made, guided.tower(6), guided.frames(9, 6))
    picks, boxes = set(), set()
    for seed in range(8):
        asked = guided.question(seed)
        out, found = guided.call(made, features, layout, asked), guided.picked(made, features, layout, asked)
        assert int(out.valid.sum()) == made.num_video_tokens(9)
        picks.add(tuple(np.asarray(found["prompt_idx"][0]).tolist()))
        boxes.add(str(found.get("uniform_boxes")))
        np.testing.assert_array_equal(found["uniform_idx"], [[0, 4]])
    assert len(picks) > 1  # the question matters
    assert (len(boxes) > 1) == (alpha < 1)


def test_words_behind_the_end_do_not_count():
    made = guided.adapter("prompt_guided", 4, fast_path=OFF)
    layout = guided.clips([6])
    features = guided.encode_media(made, guided.tower(4), guided.frames(6, 4))
    asked = guided.question(3)
    ids = np.array(asked.prompt_ids)
    end = int(np.argmax(ids[0] == guided.EOS))
    ids[0, end + 1 :] = 7
    one, other = (guided.call(made, features, layout, g) for g in (asked, Guidance(jnp.asarray(ids))))
    np.testing.assert_array_equal(one.tokens, other.tokens)


def test_a_row_is_the_same_in_any_batch():
    """Nor does padding, before or behind: the same clip after an image has the same frames and tokens."""
    options = {"frame_select": "random", "roi_box": "random"}
    for changes in ({}, options, {"frame_select": "change"}):
        made = guided.adapter("prompt_guided", 4, fast_path={"grid": (2, 2)}, **both(0.6, 2, 2), **changes)
        x = guided.frames(5, 4)
        tower = guided.tower(4)
        asked = guided.question(1)
        alone = guided.call(made, guided.encode_media(made, tower, x), guided.clips([5]), asked)
        other = guided.frames(8, 4, seed=9)
        other[:, 1:6] = x
        layout = FrameLayout(jnp.asarray([[1, 2, 2, 2, 2, 2, 0, 0]]), jnp.asarray([[0, 1, 1, 1, 1, 1, 0, 0]], bool))
        after = guided.row_tokens(guided.call(made, guided.encode_media(made, tower, other), layout, asked))
        np.testing.assert_allclose(after[16:], guided.row_tokens(alone), atol=1e-6)


# --- options ---------------------------------------------------------------------------------------------------------


def find(counts, side=4, asked=0, x=None, **options):
    made = guided.adapter("prompt_guided", side, **({"fast_path": OFF} | options))
    layout = guided.clips(counts)
    x = guided.frames(max(counts), side, batch=len(counts)) if x is None else x
    features = guided.encode_media(made, guided.tower(side), x)
    question = guided.question(asked, batch=len(counts))
    return made, features, guided.picked(made, features, layout, question)


def test_dedupe_takes_what_uniform_leaves():
    for asked in range(4):
        made, _, kept = find([9, 3], asked=asked, **both(1.0, 3, 3))
        _, _, deduped = find([9, 3], asked=asked, dedupe_frames=True, **both(1.0, 3, 3))
        np.testing.assert_array_equal(deduped["uniform_idx"], kept["uniform_idx"])
        scores = np.asarray(kept["frame_scores"][0])
        left = [i for i in range(9) if i not in (0, 3, 6)]
        assert np.asarray(deduped["prompt_idx"][0]).tolist() == sorted(sorted(left, key=lambda i: -scores[i])[:3])
        np.testing.assert_array_equal(deduped["prompt_idx"][1], [-1, -1, -1])  # of three frames uniform takes all
        assert made.num_video_tokens(3) == 2 * 3 * 8 and int(deduped["prompt_tokens"][1]) == 0


def test_frames_by_change():
    """Frame 0, then those least like their predecessor."""
    x = guided.frames(8, 4)
    x[:, 1:4] = x[:, :1]  # still
    x[:, 5:8] = x[:, 4:5]
    _, _, found = find([8], x=x, frame_select="change", **both(1.0, 2, 0))
    np.testing.assert_array_equal(found["prompt_idx"], [[0, 4]])


def test_frames_at_random_and_uniform():
    drawn = {str(find([9], asked=a, frame_select="random", **both(1.0, 3, 0))[2]["prompt_idx"]) for a in range(6)}
    assert len(drawn) > 1
    _, _, found = find([9, 2], frame_select="uniform", **both(1.0, 3, 0))
    np.testing.assert_array_equal(found["prompt_idx"], [[0, 3, 6], [0, 1, -1]])


def test_boxes_of_controls():
    _, _, centre = find([3], side=6, roi_box="centre", **both(0.5, 1, 1))
    np.testing.assert_array_equal(centre["prompt_boxes"], [[[0, 0, 4, 2]]])  # 3 x 6 view: centre (2, 1)
    boxes = {str(find([3], side=6, asked=a, roi_box="random", **both(0.5, 1, 1))[2]["prompt_boxes"]) for a in range(8)}
    assert len(boxes) > 1


def test_one_path_may_crop_alone():
    made, _, found = find([4], prompt_path=path(2, 0.5), uniform_path=path(2, 1.0))
    assert "uniform_boxes" not in found and found["prompt_boxes"].shape == (1, 2, 4)
    assert made.num_video_tokens(4) == 2 * 3 + 2 * 8  # round(2 * 0.707) x round(4 * 0.707) of 2 x 4, and all 8


def test_fast_path_of_fewer_frames_than_there_are():
    fast = {"num_frames": 3, "grid": (1, 1)}
    made, _, found = find([9, 2], **both(1.0, 1, 1), fast_path=fast)
    best = np.sort(np.argsort(-np.asarray(found["frame_scores"][0]))[:3])
    np.testing.assert_array_equal(found["fast_idx"][0], best)
    np.testing.assert_array_equal(found["fast_idx"][1], [0, 1, -1])
    _, _, uniform = find([9, 2], **both(1.0, 1, 1), fast_path={**fast, "select": "uniform"})
    np.testing.assert_array_equal(uniform["fast_idx"], [[0, 3, 6], [0, 1, -1]])
    assert made.num_video_tokens(9) == 8 + 8 + 3


@pytest.mark.parametrize("side", [2, 3, 5])
def test_tiny_and_odd_grids(side):
    for layout in ("released", "corrected"):
        made = guided.adapter("prompt_guided", side, **both(0.4, 2, 2), fast_path={"grid": (2, 1)}, roi_layout=layout)
        features = guided.encode_media(made, guided.tower(side), guided.frames(4, side))
        where, asked = guided.clips([4]), guided.question()
        out = guided.call(made, features, where, asked)
        assert int(out.valid.sum()) == made.num_video_tokens(4)
        weights = np.asarray(guided.weights(made, features, where, asked))
        np.testing.assert_allclose(weights.sum(), made.num_video_tokens(4), rtol=1e-5)


def test_weights_show_what_is_kept():
    made = guided.adapter("prompt_guided", 4, **both(0.6, 1, 0), fast_path=OFF, roi_layout="corrected")
    layout = guided.clips([3], before=1)
    features = guided.encode_media(made, guided.tower(4), guided.frames(4, 4))
    asked = guided.question(2)
    found, weights = guided.picked(made, features, layout, asked), guided.weights(made, features, layout, asked)
    left, top, width, height = np.asarray(found["prompt_boxes"][0, 0])
    expected = np.zeros((4, 4, 4))
    expected[0] = 1  # the image, whole
    expected[1 + int(found["prompt_idx"][0, 0]), top : top + height, 2 * left : 2 * (left + width)] = 0.5
    np.testing.assert_allclose(np.asarray(weights[0]).reshape(4, 4, 4), expected, atol=1e-6)


def test_a_clip_of_another_size_and_grid():
    """Its patches, on a grid of 6 x 6, score places of 4 x 4; its frames are resized for it."""
    vision = {**guided.VISION, "hidden_size": 8, "image_size": 30, "patch_size": 5}
    made = guided.adapter("prompt_guided", 4, clip={**guided.CLIP, "vision": vision}, fast_path=OFF, **both(0.5, 2, 1))
    features = guided.encode_media(made, guided.tower(4), guided.frames(4, 4))
    assert [x.shape for x in features.places] == [(1, 4, 8, 10)]
    out = guided.call(made, features, guided.clips([4]), guided.question())
    assert int(out.valid.sum()) == made.num_video_tokens(4)
    flat = guided.encode_media(made, guided.tower(4), np.full((1, 1, 16, 16, 3), 77, np.uint8))
    same = made.clip.vision_model(jnp.full((1, 1, 30, 30, 3), 77, jnp.uint8), final=True).final
    np.testing.assert_allclose(flat.frames, made.clip.images(made.clip.vision_model, same), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_path": path(3, 0.5, pool="temporal_global_pool")}, r"prompt_path.roi_alpha: temporal_global_pool"),
        ({"prompt_path": path(3, 1.5)}, r"options.prompt_path.roi_alpha: .*less than or equal to 1"),
        ({"dedupe_frames": True, "frame_select": "uniform"}, r"options.dedupe_frames: with frame_select uniform"),
        ({"vision": {"kind": "siglip"}}, r"options.clip.vision: give the CLIP tower's sizes.*siglip"),
        ({"vision": {"kind": "siglip"}, "clip_towers": "shared"}, r"options.clip_towers: shared needs a CLIP tower"),
        (
            {"clip_towers": "shared", "clip": {"vision": {**guided.VISION, "image_size": 8, "patch_size": 4}}},
            r"options.clip.vision: a shared tower is config.model.vision",
        ),
        ({"clip": {**guided.CLIP, "dtype": "bfloat16"}, "clip_towers": "shared"}, r"options.clip.dtype"),
        ({"prompt_path": OFF, "uniform_path": OFF, "fast_path": OFF}, r"no path takes any frames"),
        ({"pool": "max"}, r"config.model.adapter.options.pool: unknown key"),
    ],
)  # fmt: skip
def test_faults_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        guided.abstract("prompt_guided", 24, **changes)


def test_no_guidance_is_a_fault():
    made = guided.adapter("prompt_guided", 4, fast_path=OFF)
    features = guided.encode_media(made, guided.tower(4), guided.frames(2, 4))
    with pytest.raises(ValueError, match="prompt_guided reads the question"):
        guided.call(made, features, guided.clips([2]))
