"""Words of patches: the loss is the cross-entropy of each patch's own words, padding left out, and a tower learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import guided
from support.recipes import small
from support.steps import begin

from vlvm_jax.config import MeshConfig
from vlvm_jax.models.adapters.base import FrameLayout, Guidance, LearnsByItself
from vlvm_jax.models.batch import to_device
from vlvm_jax.models.vision import VisionFeatures
from vlvm_jax.parallel.mesh import make_mesh

SIDE, WORDS, ROWS = 3, 2, 8
PATCHES, VOCABULARY = SIDE * SIDE, 16
LAYOUT = FrameLayout(jnp.array([[1], [1], [0]]), jnp.zeros((3, 1), bool))


def labels(rows: int, seed: int = 0) -> np.ndarray:
    """[rows, WORDS * PATCHES + 2] with a start and an end; 0 where a patch has no word."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, WORDS * PATCHES + 2)).astype(np.int32)


def test_the_loss_is_of_each_patchs_own_words():
    made = guided.adapter("patch_words", SIDE, words=WORDS)
    assert isinstance(made, LearnsByItself) and made.prompt_length == WORDS * PATCHES + 2
    assert made.num_image_tokens() == PATCHES and made.num_video_tokens(4) == 4 * PATCHES
    patches = jnp.asarray(np.random.default_rng(1).standard_normal((3, 1, PATCHES, 16)), jnp.float32)
    features, ids = VisionFeatures(patches), labels(3)
    with jax.default_matmul_precision("highest"):
        loss, count, right = made.own_losses(features, LAYOUT, Guidance(jnp.asarray(ids)))
        tokens = np.asarray(made(features, LAYOUT).tokens).reshape(3, PATCHES, guided.WIDTH)
    tokens = tokens / np.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-6)
    logits = (tokens @ np.asarray(made.words.kernel[...])).reshape(3, PATCHES, WORDS, VOCABULARY)
    wanted = ids[:, 1:-1].reshape(3, WORDS, PATCHES).swapaxes(1, 2)
    wanted[2] = 0  # the third row has no image
    flat = torch.from_numpy(logits.reshape(-1, VOCABULARY)), torch.from_numpy(wanted.reshape(-1).astype(np.int64))
    np.testing.assert_allclose(
        loss, torch.nn.functional.cross_entropy(*flat, ignore_index=0, reduction="sum"), rtol=1e-5
    )
    assert count == (wanted != 0).sum() and right == ((logits.argmax(-1) == wanted) & (wanted != 0)).sum()


def test_it_needs_the_prompt():
    made = guided.adapter("patch_words", SIDE)
    with pytest.raises(ValueError, match="learns from the prompt"):
        made.own_losses(VisionFeatures(jnp.zeros((3, 1, PATCHES, 16))), LAYOUT)


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_tower_learns_without_the_decoder(sizes):
    stage = small().stages[0].model_copy(
        update={
            "objective": "adapter", "pack": False, "batch_size": ROWS, "frames": 1, "length": 16,
            "trainable": (("encoder/**", 1e-2), ("adapter/**", 1e-2)), "weight_decay": 0.0,
        }
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: 8 if sizes else 1])
    model = guided.config("patch_words", SIDE, words=WORDS)
    _, functions, state, frozen, before = begin(model, stage, mesh, 40)
    text = np.zeros((ROWS, 16), np.int32)
    batch = {
        "frames": guided.frames(1, SIDE, batch=ROWS), "media": np.ones((ROWS, 1), np.int32),
        "is_video": np.zeros((ROWS, 1), bool), "token_ids": text, "media_mask": np.zeros(text.shape, bool),
        "positions": text, "segment_ids": text, "loss_mask": np.zeros(text.shape, bool), "prompt_ids": labels(ROWS),
    }  # fmt: skip
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(40):
            state, metrics = functions.train(state, frozen, to_device(batch, mesh))
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    after = {path: np.array(value) for path, value in {**state.params, **frozen}.items()}
    moved = {path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {"encoder", "adapter"}
