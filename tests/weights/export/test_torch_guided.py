"""The PyTorch code of `prompt_guided` against the JAX adapter: the same frames, boxes and tokens, for every option."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from support import hf, torch_export

from vlvm_jax.config import AdapterConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.adapters import build_adapter
from vlvm_jax.models.adapters.base import FrameLayout, Guidance
from vlvm_jax.models.vision import VisionTower
from vlvm_jax.weights.torch_model.names import adapter_rules

FRAMES, SIZE, LENGTH = 6, 16, 7
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE,
    "patch_size": 4, "hidden_act": "quick_gelu", "feature_layer": -1,
}  # fmt: skip
TEXT = {
    "vocab_size": 40, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": LENGTH, "eos_token_id": 39,
}  # fmt: skip
CLIP = {"text": TEXT, "vision": TOWER | {"hidden_size": 12}, "projection_dim": 10}


def path(frames, alpha=0.5, **rest) -> dict:
    return {"num_frames": frames, "roi_alpha": alpha, **rest}


FAST = {"num_frames": "all", "grid": (2, 2)}
BOTH = {"prompt_path": path(2), "uniform_path": path(3), "fast_path": FAST}
CASES = {
    "both paths": BOTH,
    "corrected": BOTH | {"roi_layout": "corrected"},
    "whole frames": {"prompt_path": path(2, 1.0), "uniform_path": path(1, 1.0), "fast_path": FAST},
    "prompt alone": {"prompt_path": path(3), "uniform_path": path(0), "fast_path": FAST | {"num_frames": 0}},
    "all frames": {"prompt_path": path("all"), "uniform_path": path(0), "fast_path": FAST},
    "dedupe": BOTH | {"dedupe_frames": True},
    "change": BOTH | {"frame_select": "change"},
    "uniform": BOTH | {"frame_select": "uniform"},
    "centre": BOTH | {"roi_box": "centre"},
    "mean patch": BOTH | {"frame_feature": "mean_patch"},
    "post norm": BOTH | {"patch_post_ln": True},
    "picked fast": BOTH | {"fast_path": FAST | {"num_frames": 2}},
    "uniform fast": BOTH | {"fast_path": FAST | {"num_frames": 2, "select": "uniform"}},
    "half": BOTH | {"score_dtype": "float16"},
    "grid": {
        "prompt_path": path(2, pool="adaptive_2d_pool", grid=(3, 2)), "uniform_path": path(0), "fast_path": FAST,
    },
    "other grid": BOTH | {"clip": CLIP | {"vision": TOWER | {"hidden_size": 12, "patch_size": 8}}},
    "other size": BOTH | {"clip": CLIP | {"vision": TOWER | {"hidden_size": 12, "image_size": 24, "patch_size": 6}}},
    "shared": BOTH | {"clip_towers": "shared", "clip": {"text": TEXT, "projection_dim": 10}},
}  # fmt: skip


def config(options: dict) -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(kind="clip", **TOWER),
        adapter=AdapterConfig(name="prompt_guided", options={"clip": CLIP} | options),
        decoder=DecoderConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, head_dim=8,
        ),
        dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def state_of(adapter, prefix: str) -> dict[str, torch.Tensor]:
    """The adapter's parameters as tensors of an export, without the prefix of the model's."""
    flat = {"adapter/" + "/".join(map(str, p)): np.array(v[...]) for p, v in nnx.to_flat_state(nnx.state(adapter))}
    whole = {path: np.asarray(value) for path, value in params_lib.join(flat).items()}
    state = {}
    for rule in adapter_rules(whole, adapter.clip_config):
        for layer, name in enumerate(rule.tensors()):
            value = whole[rule.path] if rule.layers is None else whole[rule.path][layer]
            if rule.transform == "transpose":
                value = value.T
            elif rule.transform == "patches":
                side = round((len(value) // 3) ** 0.5)
                value = value.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
            state[name.removeprefix(prefix)] = torch.from_numpy(np.ascontiguousarray(value))
    return state


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    modules = ("video_adapter", "connector", "configuration_vlvm")
    return [torch_export.import_code("prompt_guided", folder, module) for module in modules]


@pytest.mark.parametrize("name", CASES)
def test_same_visual_tokens(code, name):
    made = config(CASES[name])
    ours = hf.fill(lambda: build_adapter(made, dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=1)
    tower = hf.fill(lambda: VisionTower(made.vision, dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=2)
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (2, FRAMES, SIZE, SIZE, 3), np.uint8)
    counts = [FRAMES, 4]
    ids = rng.integers(1, 38, (2, LENGTH))
    ids[:, -2:] = 39
    is_video = np.arange(FRAMES) < np.array(counts)[:, None]

    @nnx.jit
    def run(ours, tower, frames, is_video, ids):
        features = ours.encode_media(tower, frames)
        found = ours(features, FrameLayout(is_video.astype(int), is_video), guidance=Guidance(ids))
        return found, tower(frames, final=True)

    found, seen = run(ours, tower, frames, is_video, ids)
    video_adapter, connector, configuration = code
    settings = configuration.VlvmConfig(**torch_export.config_json(made, "llama"))
    theirs = video_adapter.VideoAdapter(settings, connector.Connector(settings)).eval()
    missing, unexpected = theirs.load_state_dict(state_of(ours, "model.adapter."), strict=False)
    assert not unexpected and not [key for key in missing if "position_ids" not in key]
    mean, std = (np.asarray(values) for values in (made.vision.image_mean, made.vision.image_std))
    pixels = ((frames / 255 - mean) / std).transpose(0, 1, 4, 2, 3).astype(np.float32)
    norm = torch.nn.LayerNorm(made.vision.hidden_size, eps=made.vision.layer_norm_eps)
    norm.weight.data, norm.bias.data = (
        torch.from_numpy(np.array(getattr(tower.post_layernorm, part)[...])) for part in ("scale", "bias")
    )
    shown = torch.nn.Module()
    shown.post_layernorm = norm
    taken = [torch.from_numpy(np.array(x)[is_video]) for x in (pixels, seen.patches, seen.final)]
    guide = SimpleNamespace(pixel_values=taken[0], prompt_ids=torch.from_numpy(ids), tower=shown, final=taken[2])
    with torch.no_grad():
        tokens = theirs(taken[1], None, counts, True, guide)
    expected = np.concatenate([np.asarray(found.tokens)[row][np.asarray(found.valid)[row]] for row in range(2)])
    assert len(tokens) == sum(theirs.num_video_tokens(count) for count in counts) == len(expected)
    assert [ours.num_video_tokens(count) for count in counts] == [theirs.num_video_tokens(count) for count in counts]
    np.testing.assert_allclose(tokens.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("key", ["frame_select", "roi_box"])
def test_what_only_jax_draws_is_refused(code, key):
    made = config(BOTH | {key: "random"})
    settings = code[2].VlvmConfig(**torch_export.config_json(made, "llama"))
    with pytest.raises(ValueError, match=f"adapter.options.{key} is 'random', which only vlvm_jax draws"):
        code[0].VideoAdapter(settings, code[1].Connector(settings))
