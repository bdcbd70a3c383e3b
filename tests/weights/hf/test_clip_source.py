"""A whole CLIP from transformers: its scores are transformers' own, read through `init_from.clip`."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import Mesh
from support import guided, hf

from vlvm_jax.config import MeshConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.adapters.base import Guidance
from vlvm_jax.models.clip import cosine
from vlvm_jax.models.params import Model
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.weights.initial import Initial

SIDE, TEXTS = 4, 3
EOS = 33  # not the highest id: the two rules differ


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=[2, EOS], ids=["highest-id", "end-id"])
def checkpoint(request, tmp_path_factory):
    """A random CLIP on disk: its folder and the torch model."""
    folder = tmp_path_factory.mktemp("clip")
    text = transformers.CLIPTextConfig(**guided.TEXT, eos_token_id=request.param, bos_token_id=1, pad_token_id=0)
    vision = transformers.CLIPVisionConfig(**guided.VISION, image_size=SIDE * guided.PATCH, patch_size=guided.PATCH)
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=guided.CLIP["projection_dim"]
    )
    model = hf.randomize(transformers.CLIPModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(3.25)
    model.save_pretrained(folder)
    return folder, model, request.param


def settings(eos, **changes):
    return {**guided.CLIP, "text": {**guided.TEXT, "eos_token_id": eos}, **changes}


def opened(folder, eos, **options):
    """A model with that CLIP, everything else fresh."""
    config = guided.config(
        "prompt_guided", SIDE, init_from={"clip": str(folder), **options.pop("parts", {})},
        **{"clip": settings(eos), "fast_path": guided.OFF, **options},
    )  # fmt: skip
    model = Model(config)
    mesh: Mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    initial = Initial(config)
    whole = initial.params(jax.eval_shape(params_lib.join, model.abstract()), mesh, 0)
    return model.bind(params_lib.split(whole, {})), whole


def prompts():
    """Questions with both kinds of end: the highest id, and `EOS`, before and after it."""
    ids = np.array(guided.question(0, batch=TEXTS).prompt_ids)
    ids[ids == EOS] = 5
    ids[0, -1] = EOS
    ids[1:, 1] = EOS
    return ids


def theirs(model, x, ids):
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (_MEAN, _STD))
    pixels = (torch.from_numpy(x[0].transpose(0, 3, 1, 2)).float() / 255 - mean) / std
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(ids).long(), pixel_values=pixels)
        hidden = out.vision_model_output.last_hidden_state[:, 1:]
        post_norm = dict(model.named_modules())["vision_model.post_layernorm"]
        raw, normed = (model.visual_projection(h).numpy() for h in (hidden, post_norm(hidden)))
    scores = (out.logits_per_text / model.logit_scale.exp()).detach().numpy()
    return scores, out.text_embeds.numpy(), raw, normed


_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("towers", ["separate", "shared"])
def test_scores_are_transformers(checkpoint, towers):
    folder, model, eos = checkpoint
    parts = {"encoder": str(folder)} if towers == "shared" else {}
    x, ids = guided.frames(5, SIDE), prompts()
    scores, texts, raw, normed = theirs(model, x, ids)
    for post_norm in (False, True):
        ours, _ = opened(folder, eos, clip_towers=towers, parts=parts, patch_post_ln=post_norm)
        features = jax.jit(lambda m, x: m.encode_media(x))(ours, x)
        found = jax.jit(lambda m, i: m.adapter.clip.texts(i))(ours, ids)
        found = np.asarray(found)
        np.testing.assert_allclose(found / np.linalg.norm(found, axis=-1, keepdims=True), texts, atol=1e-5)
        rows = jnp.broadcast_to(features.frames, (TEXTS, *features.frames.shape[1:]))
        np.testing.assert_allclose(cosine(jnp.asarray(found), rows), scores, atol=1e-5)
        of_patches = normed if post_norm else raw
        paired = of_patches.reshape(5, 8, 2, -1).max(2)  # projected first, then pooled
        expected = paired @ texts[0] / np.linalg.norm(paired, axis=-1)
        got = cosine(jnp.asarray(found[:1]), features.places[0][:, :])
        np.testing.assert_allclose(got[0], expected, atol=1e-5)


def test_mean_patch_is_the_mean_of_projected_patches(checkpoint):
    folder, model, eos = checkpoint
    x, ids = guided.frames(2, SIDE), prompts()
    _, _, raw, _ = theirs(model, x, ids)
    ours, _ = opened(folder, eos, frame_feature="mean_patch")
    np.testing.assert_allclose(ours.encode_media(x).frames[0], raw.mean(1), atol=1e-5)


def test_every_tensor_has_its_place(checkpoint):
    folder, model, eos = checkpoint
    ours, whole = opened(folder, eos)
    held = sum(a.size for path, a in whole.items() if path.startswith("adapter/clip/"))
    assert held == sum(p.numel() for p in model.parameters())
    np.testing.assert_allclose(whole["adapter/clip/logit_scale"], 3.25)
    assert "adapter/clip/text_model/layers/mlp/fc1/kernel" in whole
    assert jax.jit(lambda m, g: m.adapter.clip.texts(g.prompt_ids))(ours, Guidance(jnp.asarray(prompts()))).shape == (
        3,
        10,
    )


def test_shared_leaves_the_tower_where_it_is(checkpoint):
    folder, _, eos = checkpoint
    _, whole = opened(folder, eos, clip_towers="shared")
    assert not any(path.startswith("adapter/clip/vision_model") for path in whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": {"projection_dim": 11}}, r"config.model.adapter.options.clip.projection_dim: 11 here, but 10 in "),
        ({"text": {"num_attention_heads": 3}}, r"clip.text.num_attention_heads: 3 here, but 2 in "),
        ({"text": {"eos_token_id": 7}}, r"clip.text.eos_token_id: 7 here"),
        ({"vision": {"hidden_size": 24}}, r"clip.vision.hidden_size: 24 here, but 16 in "),
    ],
)
def test_other_sizes_are_named(checkpoint, changes, message):
    folder, _, eos = checkpoint
    clip = settings(eos, **changes.get("clip", {}))
    clip["text"] = {**clip["text"], **changes.get("text", {})}
    config = guided.config(
        "prompt_guided", SIDE, init_from={"clip": str(folder)}, clip=clip, fast_path=guided.OFF,
        vision=changes.get("vision"),
    )  # fmt: skip
    with pytest.raises(InputError, match=message):
        Initial(config)


def test_faults_of_the_source_are_named(checkpoint, tmp_path):
    folder, _, eos = checkpoint

    def start(name, where, **rest):
        Initial(guided.config(name, SIDE, init_from={"clip": str(where)}, **rest))

    with pytest.raises(InputError, match=r"init_from.clip: the adapter 'slow_fast' holds no CLIP; leave it out"):
        start("slow_fast", folder)
    ours = {"clip": settings(eos), "fast_path": guided.OFF}
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(InputError, match=r"init_from.clip: .*tower is not a whole CLIP.*'clip_vision_model'"):
        start("prompt_guided", tower, **ours)
    lacking = tmp_path / "lacking"
    shutil.copytree(folder, lacking)
    (lacking / "model.safetensors").unlink()
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, lacking / "model.safetensors")
    with pytest.raises(InputError, match=r"lacking: 1 tensor missing .*text_projection.weight"):
        start("prompt_guided", lacking, **ours)
    with pytest.raises(InputError, match=r"config.model.init_from.clip: 'nowhere' is neither a directory"):
        start("prompt_guided", "nowhere", **ours)
