"""The plain adapter: pooling against torch, and which slots hold what."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from support.hf import fill
from support.recipes import small

from vlvm_jax.config import AdapterConfig, ConnectorConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import build_adapter, frames
from vlvm_jax.models.adapters.base import FrameLayout
from vlvm_jax.models.vision import VisionFeatures

MODEL = small().model
# Two images, a clip of three frames, padding.
MEDIA = np.array([[1, 2, 3, 3, 3, 0]])
IS_VIDEO = np.array([[False, False, True, True, True, False]])


def adapter(side=4, kind="linear", **options):
    vision = MODEL.vision.model_copy(update={"image_size": side * MODEL.vision.patch_size})
    settings = AdapterConfig(name="frames", connector=ConnectorConfig(kind=kind), options=options)
    model = MODEL.model_copy(update={"vision": vision, "adapter": settings})
    return fill(lambda: build_adapter(model, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def features(side, frames=6):
    rng = np.random.default_rng(side)
    return VisionFeatures(jnp.asarray(rng.standard_normal((1, frames, side**2, MODEL.vision.hidden_size)), jnp.float32))


def pooled_by_torch(x, pool, stride):
    """[T, N, D] through torch's own pools."""
    side = round(x.shape[1] ** 0.5)
    image = torch.from_numpy(np.array(x)).reshape(len(x), side, side, -1).permute(0, 3, 1, 2)
    size = (-(-side // stride),) * 2
    out = {
        "average": lambda: torch.nn.functional.avg_pool2d(image, stride),
        "max": lambda: torch.nn.functional.max_pool2d(image, stride),
        "bilinear": lambda: torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=False),
    }[pool]()
    return out.flatten(2).transpose(1, 2).numpy()


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("side", [4, 5, 7])
@pytest.mark.parametrize("pool", ["average", "max", "bilinear"])
def test_pools_are_torchs(pool, side, stride):
    x = features(side).patches
    got = frames.pool_patches(x, pool, stride)[0]
    np.testing.assert_allclose(got, pooled_by_torch(x[0], pool, stride), atol=5e-6)
    assert got.shape[1] == frames.pooled_size(pool, stride, side**2)


@pytest.mark.parametrize("place", ["before_connector", "after_connector"])
def test_clips_are_pooled_and_images_are_not(place):
    module = adapter(pool="average", pool_place=place)
    visual = module(features(4), FrameLayout(jnp.asarray(MEDIA), jnp.asarray(IS_VIDEO)))
    tokens = np.asarray(visual.tokens[0])[np.asarray(visual.valid[0])]
    assert len(tokens) == 2 * module.num_image_tokens() + module.num_video_tokens(3) == 2 * 16 + 3 * 4
    patches = features(4).patches[0]
    np.testing.assert_allclose(tokens[:16], module.connector(patches[0]), atol=1e-5)
    if place == "before_connector":
        expected = module.connector(jnp.asarray(pooled_by_torch(patches[2:3], "average", 2)))[0]
    else:
        expected = pooled_by_torch(module.connector(patches[2:3]), "average", 2)[0]
    np.testing.assert_allclose(tokens[32:36], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("newline", "after"),
    [("none", []), ("image", [0, 1]), ("video", [4]), ("all", [0, 1, 4])],
)
def test_newlines_follow_the_media_of_their_kind(newline, after):
    module = adapter(newline=newline)
    visual = module(features(4), FrameLayout(jnp.asarray(MEDIA), jnp.asarray(IS_VIDEO)))
    slots = module.slots_per_frame
    assert slots == 16 + (newline != "none")
    valid = np.asarray(visual.valid).reshape(6, slots)
    assert valid[:5, :16].all() and not valid[5].any()
    if newline != "none":
        assert list(np.flatnonzero(valid[:, 16])) == after
        held = np.asarray(visual.tokens).reshape(6, slots, -1)[:, 16]
        np.testing.assert_array_equal(held, np.tile(module.image_newline[...], (6, 1)))
    assert visual.valid.sum() == 2 * module.num_image_tokens() + module.num_video_tokens(3)


def test_neighbouring_clips_end_apart():
    module = adapter(newline="video")
    layout = FrameLayout(jnp.asarray([[1, 1, 2, 2, 2, 3]]), jnp.ones((1, 6), bool))
    valid = np.asarray(module(features(4), layout).valid).reshape(6, 17)
    assert list(np.flatnonzero(valid[:, 16])) == [1, 4, 5]


def test_faults_are_named():
    with pytest.raises(InputError, match="pool_stride: 5 is larger than the grid of 4 x 4"):
        adapter(pool="average", pool_stride=5)
    with pytest.raises(InputError, match="pool_place: before_connector"):
        adapter(kind="pixel_shuffle", pool="average", pool_place="before_connector")
