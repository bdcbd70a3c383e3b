"""XLA on a CPU holds no fp32 copy of bf16 weights, and says the same as with one."""

import dataclasses
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlvm_jax.config import Config, MeshConfig, ModelConfig, build
from vlvm_jax.inference import engine as engine_lib
from vlvm_jax.inference.engine import Engine
from vlvm_jax.inference.loading import _splits
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoding import Limits
from vlvm_jax.models.params import Model
from vlvm_jax.parallel import cpu_options, rules
from vlvm_jax.parallel.cpu_options import compiler_options
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.training.abstract import abstract_batch, abstract_step
from vlvm_jax.training.partition import resolve
from vlvm_jax.training.step import make_step

LENGTH, ROOM = 16, 32
MODEL = {
    "vision": {
        "kind": "siglip", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1,
        "image_size": 16, "patch_size": 8,
    },
    "adapter": {"name": "frames"},
    "decoder": {
        "vocab_size": 64, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 12,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 256,
    },
    "dtype": "bfloat16",
}  # fmt: skip
# Without the option; newer ones copy only larger weights (those of SmolLM2-135M, say).
COPIES = importlib.metadata.version("jaxlib").startswith("0.10.")
NO_LICM = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def made(mesh, **changes) -> Engine:
    config = build(ModelConfig, MODEL | changes)
    model = Model(config, _splits(config, mesh))
    params = {
        path: jax.device_put(_values(path, a.shape).astype(config.dtype), rules.replicated(mesh))
        for path, a in model.abstract().items()
    }
    return Engine(model, params, mesh)


def _values(path, shape):
    return np.random.default_rng(len(path)).standard_normal(shape, np.float32) * 0.05


def run(engine: Engine):
    """Tokens of a prompt's answer, and the temporaries of the two compiled steps in bytes."""
    features = engine.encode_media(np.zeros((1, 1, 16, 16, 3), np.uint8))
    none = np.zeros((1, LENGTH), np.int32)
    batch = Batch(
        frames=np.zeros((1, 1, 0, 0, 3), np.uint8), media=np.zeros((1, 1), np.int32), is_video=np.zeros((1, 1), bool),
        token_ids=none + np.arange(LENGTH, dtype=np.int32), media_mask=none.astype(bool),
        positions=none + np.arange(LENGTH, dtype=np.int32), segment_ids=none + 1, loss_mask=none.astype(bool),
    )  # type: ignore[arg-type]  # fmt: skip
    limits = Limits(np.array([-5], np.int32), np.array([ROOM], np.int32))  # type: ignore[arg-type]
    progress = engine.prefill(features, batch, ROOM, limits, None)
    used = {}
    functions = {key[0]: function for key, function in engine._functions.items()}
    with jax.set_mesh(engine.mesh):
        put = jax.tree.map(engine._put, (batch, limits))
        lowered = functions["prefill"].lower(engine.params, features, *put, None, slots=LENGTH + ROOM)  # type: ignore
        used["prefill"] = lowered.compile().memory_analysis().temp_size_in_bytes
    first = int(progress.token[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), progress)
    _, tokens = engine.decode(progress, limits, None, np.zeros(1, bool))
    with jax.set_mesh(engine.mesh):
        function = next(function for key, function in engine._functions.items() if key[0] == "decode")
        stopped = engine._put(np.zeros(1, bool))
        lowered = function.lower(engine.params, shapes, put[1], None, stopped)  # type: ignore
        used["decode"] = lowered.compile().memory_analysis().temp_size_in_bytes
    return [first, *tokens[0].tolist()], used


def layer_bytes(engine: Engine) -> int:
    return sum(value.nbytes for path, value in engine.params.items() if path.startswith("decoder/layers"))


def test_bf16_weights_are_not_copied_to_fp32(mesh, monkeypatch):
    engine = made(mesh)
    tokens, used = run(engine)
    weights = layer_bytes(engine)
    assert weights == 2 * sum(value.size for path, value in engine.params.items() if path.startswith("decoder/layers"))
    assert max(used.values()) < 0.5 * weights, (used, weights)
    monkeypatch.setattr(engine_lib, "compiler_options", lambda mesh, dtype: None)
    without, before = run(made(mesh))
    assert without == tokens and len(set(tokens)) > 1
    assert before["decode"] >= used["decode"]
    if COPIES:
        assert before["decode"] > 2 * weights - 2**16  # the whole stack in fp32


def test_which_programs_have_the_option(mesh):
    assert compiler_options(mesh, "bfloat16") == NO_LICM
    assert compiler_options(mesh, "float32") is None


def test_other_devices_have_none():
    @dataclasses.dataclass(frozen=True)
    class Tpu:
        platform: str = "tpu"

    class Mesh:
        devices = np.array([Tpu()])

    assert compiler_options(Mesh(), "bfloat16") is None  # type: ignore[arg-type]


def test_passes_that_the_user_disables_stay_disabled(mesh, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false --xla_disable_hlo_passes=dce,cse")
    assert compiler_options(mesh, "bfloat16") == {"xla_disable_hlo_passes": "dce,cse,while-loop-invariant-code-motion"}
    monkeypatch.setenv("XLA_FLAGS", "--xla_disable_hlo_passes=while-loop-invariant-code-motion")
    assert compiler_options(mesh, "bfloat16") == NO_LICM


def test_an_option_that_xla_does_not_know_is_left_out():
    assert cpu_options._known("xla_no_such_option", "1") is None
    assert cpu_options._known(*next(iter(NO_LICM.items()))) == NO_LICM


def test_fp32_models_keep_their_layers_apart(mesh):
    fp32 = build(ModelConfig, MODEL | {"dtype": "float32"})
    assert _splits(fp32, mesh) == {"decoder": tuple(range(1, 12))}
    assert _splits(build(ModelConfig, MODEL), mesh) == {}
    assert jnp.dtype(fp32.dtype).itemsize == 4


STAGE = {
    "name": "adapter", "data": [{"path": "none"}], "steps": 5, "batch_size": 1, "frames": 1, "length": LENGTH,
    "trainable": {"adapter/**": 1e-3}, "frozen_dtype": "bfloat16",
}  # fmt: skip


def test_a_train_step_keeps_no_copies_either(mesh):
    values = {"name": "x", "model": MODEL, "data": {"tokenizer": "t", "chat_template": "bare"}, "stages": [STAGE]}
    config = build(Config, values)
    stage = config.stages[0]
    partition = resolve(config.model, stage)
    _, state, frozen = abstract_step(config.model, stage, partition, mesh)
    batch = abstract_batch(config, 1, 1, LENGTH, mesh)
    used = {}
    for name, options in {"with": compiler_options(mesh, "bfloat16"), "without": None}.items():
        functions = make_step(config.model, stage, partition, mesh, 5, options)
        with jax.set_mesh(mesh):
            compiled = functions.train.lower(state, frozen, batch).compile()  # type: ignore[attr-defined]
        used[name] = compiled.memory_analysis().temp_size_in_bytes
    weights = sum(2 * a.size for path, a in frozen.items() if path.startswith("decoder/layers"))
    assert used["with"] < weights
    if COPIES:
        assert used["without"] > 2 * weights
