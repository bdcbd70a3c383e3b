"""Vision towers against transformers' CLIP and SigLIP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import hf

from vlvm_jax.config import VisionConfig
from vlvm_jax.models.vision import VisionTower, fractional_positions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WIDTH, LAYERS, SIDE, PATCH = 16, 3, 3, 4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 2, SIDE * PATCH, SIDE * PATCH, 3), dtype=np.uint8)

forward = nnx.jit(lambda tower, frames: tower(frames))


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def config(kind: str, act: str = "quick_gelu", **changes) -> VisionConfig:
    return VisionConfig(
        kind=kind,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
        hidden_act=act,
        layer_norm_eps=1e-5 if kind == "clip" else 1e-6,
        image_mean=MEAN,
        image_std=STD,
        **changes,
    )


def tower(cfg: VisionConfig, **kwargs):
    return lambda: VisionTower(cfg, dtype=jnp.float32, rngs=nnx.Rngs(0), **kwargs)


def hf_pair(cfg: VisionConfig):
    """A random HF tower, ours with its parameters, and what HF's layers give for `FRAMES`."""
    name = {"clip": "CLIP", "siglip": "Siglip"}[cfg.kind]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    theirs_config = getattr(transformers, f"{name}VisionConfig")(
        **{key: getattr(cfg, key) for key in names},
        hidden_act=cfg.hidden_act,
        layer_norm_eps=cfg.layer_norm_eps,
        attn_implementation="eager",
    )
    theirs = hf.randomize(getattr(transformers, f"{name}VisionModel")(theirs_config))
    layers = []
    for module_name, module in theirs.named_modules():
        if module_name.split(".")[-2:-1] == ["layers"]:
            module.register_forward_hook(lambda _m, _i, out: layers.append(out[0] if isinstance(out, tuple) else out))
    pixels = (FRAMES.reshape(-1, *FRAMES.shape[2:]) / 255 - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        out = theirs(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(), output_hidden_states=True, output_attentions=True
        )
        # From transformers 5 on, SigLIP's hidden_states[-1] is normed; the layers' own outputs never are.
        np.testing.assert_array_equal(layers[-2], out.hidden_states[-2])
        hidden = layers[cfg.feature_layer]
        post_norm = dict(theirs.named_modules()).get("post_layernorm") or theirs.vision_model.post_layernorm
        hidden = post_norm(hidden) if cfg.post_norm else hidden
    ours = hf.load(tower(cfg), theirs, ignore=("head.",))
    skip = int(cfg.kind == "clip")
    attentions = [a.numpy() for a in out.attentions]
    return ours, hidden[:, skip:].numpy().reshape(2, 2, SIDE * SIDE, WIDTH), attentions


@pytest.mark.parametrize(
    ("kind", "act", "changes"),
    [
        ("clip", "quick_gelu", {}),
        ("clip", "gelu", {"feature_layer": -1}),
        ("clip", "quick_gelu", {"feature_layer": -3, "post_norm": True}),
        ("siglip", "gelu_pytorch_tanh", {}),
        ("siglip", "gelu", {"feature_layer": -1, "post_norm": True}),
    ],
)
def test_patch_features_equal_transformers(kind, act, changes):
    ours, expected, _ = hf_pair(config(kind, act, **changes))
    out = forward(ours, FRAMES)
    assert out.attention is None
    np.testing.assert_allclose(out.patches, expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "layer"), [("clip", 0), ("clip", -1), ("siglip", 1)])
def test_attention_received_equals_transformers(kind, layer):
    cfg = config(kind, attention_layer=layer)
    ours, expected, attentions = hf_pair(cfg)
    # The layer is an index into the layers that run, and the last of them is not run at feature_layer -2.
    mean = attentions[: cfg.num_used_layers][layer].mean(1)
    received = mean[:, 0, 1:] if kind == "clip" else mean.mean(1)
    out = forward(ours, FRAMES)
    np.testing.assert_allclose(out.attention, received.reshape(2, 2, -1), atol=1e-6)
    np.testing.assert_allclose(out.patches, expected, atol=1e-5)


def test_layers_beyond_the_feature_layer_are_kept_and_not_run():
    cfg = config("clip")
    ours = hf.fill(tower(cfg))
    before = forward(ours, FRAMES)
    kernel = ours.layers.segments[0].mlp.fc1.kernel
    assert kernel.shape[0] == LAYERS
    kernel[...] = kernel[...].at[-1].set(jnp.nan)
    np.testing.assert_array_equal(forward(ours, FRAMES).patches, before.patches)


@pytest.mark.parametrize("splits", [(1,), (1, 2)])
def test_cut_tower_gives_the_same(splits):
    cfg = config("siglip", attention_layer=1)
    whole, cut = hf.fill(tower(cfg)), hf.fill(tower(cfg, splits=splits))
    layers = nnx.state(whole.layers.segments[0])
    for segment, (start, stop) in zip(cut.layers.segments, cut.layers.bounds, strict=True):
        nnx.update(segment, jax.tree.map(lambda p, a=start, b=stop: p[a:b], layers))
    for name in ("patch_embedding", "post_layernorm"):
        nnx.update(getattr(cut, name), nnx.state(getattr(whole, name)))
    cut.position_embedding[...] = whole.position_embedding[...]
    expected, found = forward(whole, FRAMES), forward(cut, FRAMES)
    np.testing.assert_allclose(found.patches, expected.patches, atol=1e-6)
    np.testing.assert_allclose(found.attention, expected.attention, atol=1e-6)


def test_frames_do_not_see_each_other():
    ours = hf.fill(tower(config("clip", attention_layer=0)))
    changed = FRAMES.copy()
    changed[0, 1] = 255 - changed[0, 1]
    before, after = forward(ours, FRAMES), forward(ours, changed)
    for old, new in ((before.patches, after.patches), (before.attention, after.attention)):
        moved = np.abs(np.asarray(new - old)).max(axis=tuple(range(2, old.ndim)))
        assert moved[0, 1] > 1e-3
        np.testing.assert_array_equal(np.delete(moved.ravel(), 1), 0)


def test_bfloat16_is_close():
    cfg = config("clip")
    full = hf.fill(tower(cfg))
    half = hf.fill(lambda: VisionTower(cfg, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    expected, found = forward(full, FRAMES).patches, forward(half, FRAMES).patches
    assert found.dtype == jnp.bfloat16
    assert jax.tree.leaves(nnx.state(half))[0].dtype == jnp.float32
    error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("grid", [1, 2, 7, 19, 25, 26, 27, 29, 31, 32, 38, 40, 64, 100])
def test_fractional_positions_are_those_of_transformers(grid):
    """Also on grids where fp32 rounding moves them."""
    boundaries = torch.arange(1 / grid, 1.0, 1 / grid)
    fractions = torch.clamp(torch.arange(grid, dtype=torch.float32) * (1.0 / torch.tensor(grid)), max=1.0 - 1e-6)
    places = torch.bucketize(fractions, boundaries, right=True)
    expected = (places[:, None] * grid + places[None, :]).reshape(-1).numpy()
    np.testing.assert_array_equal(fractional_positions(grid), expected)
