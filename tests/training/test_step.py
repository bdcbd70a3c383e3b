"""The train step: what moves, what does not, and that meshes and micro-batches change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recipes import small
from support.steps import begin

from vlvm_jax.config import AdapterConfig, MeshConfig
from vlvm_jax.models.batch import Batch, to_device
from vlvm_jax.models.params import Model, whole_path
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.training import step as step_lib
from vlvm_jax.training.partition import Partition

CONFIG = small()
ROWS, FRAMES, LENGTH = 8, 3, 24


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of a clip of two frames, an image, and text, with unequal numbers of learned tokens."""
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(5, 40, (ROWS, LENGTH)).astype(np.int32)
    media_mask = np.zeros((ROWS, LENGTH), bool)
    media_mask[:, :8] = True  # 2 frames x 4 tokens
    media_mask[:, 12:21] = True  # an image's 9
    segment_ids = np.where(np.arange(LENGTH) < 12, 1, 2) * np.ones((ROWS, 1), int)
    lengths = rng.integers(21, LENGTH + 1, ROWS)
    segment_ids = np.where(np.arange(LENGTH) < lengths[:, None], segment_ids, 0)
    return {
        "frames": rng.integers(0, 255, (ROWS, FRAMES, 48, 48, 3)).astype(np.uint8),
        "media": np.tile(np.array([1, 1, 2], np.int32), (ROWS, 1)),
        "is_video": np.tile(np.array([True, True, False]), (ROWS, 1)),
        "token_ids": token_ids,
        "media_mask": media_mask,
        "positions": np.tile(np.concatenate([np.arange(12), np.arange(12)]).astype(np.int32), (ROWS, 1)),
        "segment_ids": segment_ids.astype(np.int32),
        "loss_mask": (rng.random((ROWS, LENGTH)) < 0.5) & ~media_mask & (segment_ids > 0),
    }


def run(steps: int, *, mesh=None, model=CONFIG.model, **changes):
    """Losses of a few steps of a stage, the parameters before and after (segmented), and the functions."""
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    trainable = changes.pop(
        "trainable", (("adapter/**", 1e-3), ("decoder/**", 1e-3), ("encoder/layers/[-3:]/**", 1e-4))
    )
    stage = CONFIG.stages[-1].model_copy(
        update={"trainable": trainable, "batch_size": ROWS, "length": LENGTH, **changes}
    )
    partition, functions, state, frozen, before = begin(model, stage, mesh, steps)
    losses = []
    with jax.set_mesh(mesh):
        for step in range(steps):
            state, metrics = functions.train(state, frozen, to_device(batch(step), mesh))
            losses.append(float(metrics["loss"]))
    after = {path: np.array(value) for path, value in {**state.params, **frozen}.items()}
    return losses, before, after, functions, set(partition.rates)


@pytest.fixture(scope="module")
def plain():
    return run(3)


@pytest.fixture(scope="module")
def on_one_device():
    losses, *_ = run(5, loss_chunks=3)
    return losses


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 1, "fsdp": 2, "tensor": 4},
        {"data": 1, "fsdp": 2, "context": 4},
        {"dcn_data": 2, "fsdp": 4},
    ],
    ids=str,
)
def test_one_and_eight_devices_give_the_same_losses(sizes, on_one_device):
    eight, _, _, functions, _ = run(5, mesh=make_mesh(MeshConfig(**sizes)), loss_chunks=3)
    np.testing.assert_allclose(eight, on_one_device, atol=1e-4)
    assert functions.train._cache_size() == 1
    spread = [s for s in functions.state_shardings.params.values() if not s.is_fully_replicated]
    assert spread  # the mesh is really used


def test_frozen_parameters_do_not_change_by_a_bit_and_trainable_ones_all_do(plain):
    _, before, after, _, trainable = plain
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == trainable
    assert {path for path in before if path.startswith("encoder/layers/segments/0/")}.isdisjoint(changed)


READINGS = {
    "soft_slots": {"prior": "learned_grid"},
    "soft_slots linear values": {"reading": "soft_slots", "value_net": "linear", "key_net": "linear"},
    "scored_topk renorm": {"reading": "scored_topk"},
    "scored_topk sigmoid": {"reading": "scored_topk", "weight": "sigmoid", "merge_rest": True},
    "scored_topk ste": {"reading": "scored_topk", "weight": "ste", "score_net": "mlp"},
    "local_weighted_pool": {"reading": "local_weighted_pool"},
    "temporal": {"temporal_embed": "learned", "placement": "before_connector"},
}


@pytest.mark.parametrize("name", READINGS)
def test_every_sampler_parameter_receives_gradient(name):
    options = {"num_tokens": 4, **READINGS[name]}
    adapter = AdapterConfig(name="weighted_sampler", options=options)
    model = CONFIG.model.model_copy(update={"adapter": adapter})
    # Two steps: a zero-initialised output layer lets gradient through to what is before it only once it has moved.
    _, before, after, _, trainable = run(2, model=model, trainable=(("adapter/**", 1e-3),), weight_decay=0.0)
    still = [whole_path(p) for p in trainable if np.array_equal(before[p], after[p])]
    assert still == []
    assert any("sampler" in path for path in trainable)


def test_accumulation_weighs_every_token_alike(plain):
    whole, _, after_whole, *_ = plain
    in_parts = run(3, accumulate=4)
    parts, _, after_parts, *_ = in_parts
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for path in after_whole:
        np.testing.assert_allclose(after_parts[path], after_whole[path], atol=2e-4, err_msg=path)
    # The first micro-batch, rows 0 and 4, has two tokens to learn, the others have dozens.
    uneven = batch()
    few = uneven["loss_mask"][::4]
    few &= np.cumsum(few, axis=1) == 2
    of_parts, of_whole = metrics_of(in_parts, uneven), metrics_of(plain, uneven)
    for name in ("loss", "grad_norm", "token_accuracy", "learned_tokens"):
        np.testing.assert_allclose(of_parts[name], of_whole[name], rtol=1e-4, err_msg=name)


def metrics_of(one_run, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of one step of a run's compiled function from the run's first parameters."""
    _, before, _, functions, trainable = one_run
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = functions.init({path: before[path] for path in trainable}, jax.random.key_data(jax.random.key(0)))
        frozen = {path: jnp.asarray(before[path]) for path in functions.frozen_shardings}
        _, metrics = functions.train(state, frozen, to_device(rows, mesh))
    return {name: float(value) for name, value in metrics.items()}


def test_loss_and_gradient_are_means_over_learned_tokens(plain):
    """Rows that come twice have the means of those that come once, and twice the tokens."""
    rows = batch()
    half = {name: np.concatenate([value[: ROWS // 2]] * 2) for name, value in rows.items()}
    once = {**half, "loss_mask": half["loss_mask"] & (np.arange(ROWS) < ROWS // 2)[:, None]}
    of_once, of_twice = metrics_of(plain, once), metrics_of(plain, half)
    assert of_twice["learned_tokens"] == 2 * of_once["learned_tokens"] > 0
    for name in ("loss", "token_accuracy", "grad_norm"):
        np.testing.assert_allclose(of_twice[name], of_once[name], rtol=1e-4, err_msg=name)


class Dice:
    """In the place of a model: one parameter, and as its hidden states a number drawn with the step's key."""

    def __init__(self, *_):
        pass

    def abstract(self):
        return {"decoder/norm/scale": jax.ShapeDtypeStruct((2,), jnp.float32)}

    def on_mesh(self, abstract, mesh):
        return Model(CONFIG.model).on_mesh(abstract, mesh)

    def bind(self, params):
        return lambda batch, rng: (jax.random.uniform(rng) + 0 * params["decoder/norm/scale"].sum(), None)


def test_steps_and_micro_batches_draw_anew(monkeypatch):
    """Each micro-batch's loss is the square of what it draws: the mean of squares is above the squared mean."""
    monkeypatch.setattr(step_lib, "Model", Dice)
    monkeypatch.setattr(step_lib, "token_losses", lambda model, drawn, *_, **__: (drawn**2, jnp.ones(()), drawn))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    stage = CONFIG.stages[-1].model_copy(update={"accumulate": 4})
    rates = {"decoder/norm/scale": 1e-3}
    functions = step_lib.make_step(CONFIG.model, stage, Partition({}, rates), mesh, 3)
    drawn = []
    with jax.set_mesh(mesh):
        state = functions.init({path: jnp.ones(2) for path in rates}, jax.random.key_data(jax.random.key(0)))
        for _ in range(3):
            state, metrics = functions.train(state, {}, to_device(batch(), mesh))
            assert metrics["loss"] > metrics["token_accuracy"] ** 2 + 1e-3
            drawn.append(float(metrics["loss"]))
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("chunks", [3, 7], ids=["divides the vocabulary or not", "does not"])
def test_chunking_the_head_changes_nothing(chunks, plain):
    losses, _, after, *_ = run(3, loss_chunks=chunks)
    expected, _, after_expected, *_ = plain
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for path in after:
        np.testing.assert_allclose(after[path], after_expected[path], atol=2e-4, err_msg=path)


def test_one_compilation_and_a_donated_state(capfd):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **kwargs: (
            compiled.append(kwargs.get("fun_name", "")) if "backend_compile" in name else None
        )
    )
    *_, functions, _ = run(4)
    assert functions.train._cache_size() == 1
    assert sum("train" in name for name in compiled) <= 1


def test_frozen_parameters_are_kept_in_the_asked_dtype():
    _, before, *_ = run(1, frozen_dtype="bfloat16")
    dtypes = {path: value.dtype for path, value in before.items()}
    assert dtypes["encoder/position_embedding"] == jnp.bfloat16
    assert dtypes["decoder/norm/scale"] == np.float32


def test_bfloat16_computes_in_bfloat16_with_fp32_masters(plain):
    full, *_ = plain
    half, _, after, *_ = run(3, model=CONFIG.model.model_copy(update={"dtype": "bfloat16"}))
    np.testing.assert_allclose(half, full, rtol=0.03)
    assert not np.array_equal(half, full)
    assert {value.dtype for value in after.values()} == {np.dtype(np.float32)}


def test_batch_fields_are_what_the_pipeline_gives():
    """But for those that only images in tiles have, and questions for an adapter."""
    always = {field.name for field in dataclasses.fields(Batch) if field.default is dataclasses.MISSING}
    assert always <= batch().keys()
    assert {field.name for field in dataclasses.fields(Batch)} - always == {
        "visual_index",
        "visual_weight",
        "prompt_ids",
    }
