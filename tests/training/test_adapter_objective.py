"""The contrastive stage: the loss is transformers', over the global batch, and moves what it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import guided
from support.recipes import small
from support.steps import begin
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from vlvm_jax.config import MeshConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.batch import to_device
from vlvm_jax.models.clip import contrastive_losses
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.training import abstract, plan

CONFIG = small()
ROWS, LENGTH, SIDE = 8, 24, 3
GUIDED = guided.config("prompt_guided", SIDE, fast_path=guided.OFF)
SHARED = guided.config("prompt_guided", SIDE, fast_path=guided.OFF, clip_towers="shared")
STAGE = CONFIG.stages[0].model_copy(
    update={
        "objective": "adapter", "pack": False, "batch_size": ROWS, "frames": 1, "length": LENGTH,
        "trainable": (("adapter/clip/**", 3e-3),), "weight_decay": 0.0,
    }
)  # fmt: skip


def batch(rows: int = ROWS, empty: int = 0) -> dict[str, np.ndarray]:
    """An image and its text a row; the last `empty` rows are padding."""
    media = np.ones((rows, 1), np.int32)
    media[rows - empty :] = 0
    text = np.zeros((rows, LENGTH), np.int32)
    return {
        "frames": guided.frames(1, SIDE, batch=rows),
        "media": media,
        "is_video": np.zeros((rows, 1), bool),
        "token_ids": text,
        "media_mask": np.zeros(text.shape, bool),
        "positions": text,
        "segment_ids": text,
        "loss_mask": np.zeros(text.shape, bool),
        "prompt_ids": np.asarray(guided.question(1, batch=rows).prompt_ids),
    }


def run(steps: int, *, model=GUIDED, mesh=None, data=None, **changes):
    """Metrics of the steps, and the parameters before and after."""
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    stage = STAGE.model_copy(update=changes)
    _, functions, state, frozen, before = begin(model, stage, mesh, steps)
    found = []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = functions.train(state, frozen, to_device(batch() if data is None else data, mesh))
            found.append(jax.device_get(metrics))
    assert functions.train._cache_size() == 1
    return found, before, {path: np.array(value) for path, value in {**state.params, **frozen}.items()}


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_loss_is_transformers(rows):
    rng = np.random.default_rng(rows)
    texts, images = rng.standard_normal((2, rows, 5)).astype(np.float32)
    scale = np.float32(1.7)
    one, other = (torch.nn.functional.normalize(torch.from_numpy(x), dim=-1) for x in (texts, images))
    logits = one @ other.T * torch.tensor(scale).exp()
    loss, count, right = contrastive_losses(jnp.asarray(texts), jnp.asarray(images), scale, jnp.ones(rows, bool))
    np.testing.assert_allclose(loss / count, image_text_contrastive_loss(logits), rtol=1e-5)
    assert count == rows and right == int((logits.argmax(0) == torch.arange(rows)).sum())
    # Rows that are no pair change nothing.
    padded = [jnp.asarray(np.concatenate([x, np.ones((3, 5), np.float32)])) for x in (texts, images)]
    valid = jnp.arange(rows + 3) < rows
    value, gradient = jax.value_and_grad(lambda t: contrastive_losses(t, padded[1], scale, valid)[0])(padded[0])
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    assert np.isfinite(gradient).all() and not np.asarray(gradient[rows:]).any()


def test_it_learns_and_moves_only_what_it_should():
    found, before, after = run(30)
    losses = [float(metrics["loss"]) for metrics in found]
    assert losses[-1] < 0.5 * losses[0] and losses[0] > 1
    assert found[0]["learned_tokens"] == ROWS and found[-1]["token_accuracy"] == 1
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith("adapter/clip/")}
    assert "adapter/clip/logit_scale" in changed


def test_a_shared_tower_learns_with_it():
    trainable = (("adapter/clip/**", 1e-3), ("encoder/**", 1e-3))
    _, before, after = run(2, model=SHARED, trainable=trainable)
    still = {path for path in before if path.startswith("encoder/") and np.array_equal(before[path], after[path])}
    assert not still
    last = (
        before["encoder/layers/segments/0/mlp/fc1/kernel"][-1] != after["encoder/layers/segments/0/mlp/fc1/kernel"][-1]
    )
    assert last.any()  # the layer beyond the decoder's features, which CLIP reads


@pytest.mark.parametrize("sizes", [{"data": 4, "fsdp": 2}, {"fsdp": 2, "tensor": 2, "context": 2}], ids=str)
def test_devices_contrast_the_global_batch(sizes):
    one, *_ = run(4)
    many, *_ = run(4, mesh=make_mesh(MeshConfig(**sizes)))
    np.testing.assert_allclose([m["loss"] for m in many], [m["loss"] for m in one], atol=1e-4)


def test_rows_without_an_image_do_not_count():
    found, *_ = run(1, data=batch(empty=3))
    assert found[0]["learned_tokens"] == ROWS - 3
    alone, *_ = run(1, data={name: value[: ROWS - 3] for name, value in batch().items()}, batch_size=ROWS - 3)
    np.testing.assert_allclose(found[0]["loss"], alone[0]["loss"], rtol=1e-5)


def test_micro_batches_are_contrasted_one_by_one():
    found, *_ = run(1, accumulate=2)
    halves = [run(1, data={k: v[i::2] for k, v in batch().items()}, batch_size=4)[0][0]["loss"] for i in range(2)]
    np.testing.assert_allclose(found[0]["loss"], np.mean(halves), rtol=1e-5)
    assert found[0]["learned_tokens"] == ROWS


def recipe(model, **changes):
    stage = STAGE.model_copy(update=changes)
    return CONFIG.model_copy(update={"model": model, "stages": (stage,), "evals": ()})


def test_operations_are_counted_for_both_objectives():
    for model in (GUIDED, SHARED):
        alone = abstract.count_step(recipe(model), STAGE)
        text = STAGE.model_copy(update={"objective": "text", "length": 64})
        whole = abstract.count_step(recipe(model, objective="text"), text)
        assert alone.decoder == 0 < whole.decoder
        assert min(alone.tower, alone.adapter, alone.backward, whole.adapter) > 0


def test_batches_of_a_guided_model_have_questions():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert abstract.abstract_batch(recipe(GUIDED), 2, 1, 8, mesh).prompt_ids.shape == (2, 9)
    plain = recipe(guided.config("slow_fast", 4))
    assert abstract.abstract_batch(plain, 2, 1, 8, mesh).prompt_ids is None


def test_rows_an_adapter_cannot_read_are_refused():
    name = STAGE.name
    plan.check_adapter(recipe(GUIDED))
    with pytest.raises(InputError, match=f"config.stages.{name}.pack: .*'prompt_guided' reads one question a row; set"):
        plan.check_adapter(recipe(GUIDED, pack=True))
    with pytest.raises(InputError, match=f"config.stages.{name}.pack: .*'slow_fast' reads one clip a row; set"):
        plan.check_adapter(recipe(guided.config("slow_fast", 4), pack=True, objective="text"))
    with pytest.raises(InputError, match=f"config.stages.{name}.objective: the adapter 'slow_fast' learns nothing by"):
        plan.check_adapter(recipe(guided.config("slow_fast", 4)))
    held_out = CONFIG.evals[0].model_copy(update={"pack": True})
    with pytest.raises(InputError, match=rf"config.evals.{held_out.name}.pack"):
        plan.check_adapter(recipe(GUIDED).model_copy(update={"evals": (held_out,)}))
