"""Low-rank adapters: what they add, where they stand, and that a stage can train them and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from jax.sharding import PartitionSpec as P
from support.recipes import small

from configs import ftfv
from vlvm_jax.config import Config, LoraConfig, MeshConfig, ModelConfig, build
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import final
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.params import Model, whole_path
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.training.checkpoint import StageCheckpoints
from vlvm_jax.training.partition import resolve
from vlvm_jax.training.step import make_step

PLAIN = small().model
RANK, LAYERS = 4, PLAIN.decoder.num_hidden_layers
LORA = LoraConfig(rank=RANK, alpha=8)
BOTH = LoraConfig(rank=RANK, alpha=8, parts=("decoder", "encoder"))
SIZES = {  # in and out of the tiny decoder's layers
    "q_proj": (96, 96), "k_proj": (96, 96), "v_proj": (96, 96), "o_proj": (96, 96),
    "gate_proj": (96, 240), "up_proj": (96, 240), "down_proj": (240, 96),
}  # fmt: skip


def model_config(lora: LoraConfig | None = LORA) -> ModelConfig:
    return PLAIN.model_copy(update={"lora": lora})


def lora_paths(paths) -> set[str]:
    return {path for path in paths if path.rpartition("/")[2] in ("lora_a", "lora_b")}


def trained(lora: LoraConfig = LORA, **trainable: float):
    stage = small().stages[0].model_copy(update={"trainable": tuple(trainable.items())})
    return stage, resolve(model_config(lora), stage)


@pytest.fixture(scope="module")
def fresh() -> params_lib.Params:
    """Whole parameters of the tiny model with adapters on its decoder."""
    return params_lib.join(jax.jit(lambda: Model(model_config()).init(0))())


# --- the layer


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.04)])
def test_a_layer_adds_the_scaled_product(dtype, tolerance):
    rng = np.random.default_rng(0)
    layer = Linear(6, 5, dtype=dtype, rngs=nnx.Rngs(0))
    layer.add_lora(2, 0.7, rngs=nnx.Rngs(1))
    x, b = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 5))
    layer.lora_b[...] = jnp.asarray(b, jnp.float32)
    out = layer(jnp.asarray(x, dtype))
    kernel = np.asarray(layer.kernel[...]) + 0.7 * np.asarray(layer.lora_a[...]) @ b
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), x @ kernel, atol=tolerance)


def test_fresh_adapters_leave_the_model_as_it_was(fresh):
    plain = params_lib.join(jax.jit(lambda: Model(PLAIN).init(0))())
    assert fresh.keys() - plain.keys() == lora_paths(fresh)
    for path in plain:
        np.testing.assert_array_equal(fresh[path], plain[path], err_msg=path)
    tokens = jnp.arange(12)[None]

    @functools.partial(jax.jit, static_argnums=0)
    def logits(config, whole):
        decoder = Model(config).bind(params_lib.split(whole, {})).decoder
        return decoder.logits(decoder(decoder.embed(tokens), tokens, jnp.ones_like(tokens))[0])

    np.testing.assert_array_equal(logits(model_config(), fresh), logits(PLAIN, plain))


def test_fresh_adapters_are_drawn_as_peft_draws_them(fresh):
    a, b = (np.asarray(fresh[f"decoder/layers/mlp/down_proj/lora_{which}"]) for which in "ab")
    bound = 240**-0.5  # torch's kaiming_uniform_(a=sqrt(5)) on [rank, in]
    assert 0.99 * bound < np.abs(a).max() <= bound
    np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.05)
    assert not np.array_equal(a[0], a[1])
    assert not b.any()


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        (LORA, {f"decoder {name}" for name in SIZES}),
        (
            BOTH,
            {f"decoder {name}" for name in SIZES}
            | {f"encoder {name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")},
        ),
        (BOTH.model_copy(update={"targets": ("v_proj", "fc1")}), {"decoder v_proj", "encoder v_proj", "encoder fc1"}),
        (LORA.model_copy(update={"parts": ("encoder",), "targets": ("fc2",)}), {"encoder fc2"}),
    ],
)
def test_adapters_stand_where_the_config_says(lora, expected):
    paths = lora_paths(map(whole_path, Model(model_config(lora)).abstract()))
    found = {f"{path.split('/')[0]} {path.split('/')[-2]}" for path in paths}
    assert found == expected
    assert len(paths) == 2 * len(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["qproj"]}, "targets: no layer 'qproj' in decoder; there are"),
        ({"targets": ["fc1"]}, "targets: no layer 'fc1' in decoder"),
        ({"targets": ["fc1"], "parts": ["encoder", "decoder"]}, "names no layer of 'decoder'"),
        ({"targets": []}, "names no layer of 'decoder'"),
        ({"parts": []}, "parts"),
        ({"parts": ["connector"]}, "parts"),
        ({"rank": 0}, "rank"),
        ({"dropout": 0.1}, "dropout: unknown key"),
    ],
)
def test_a_setting_that_cannot_be_is_named(options, message):
    with pytest.raises(InputError, match=message):
        build(LoraConfig, {"rank": 4, "alpha": 8, **options}, "config.model.lora")


def test_scale():
    assert LORA.scale == 2
    assert LORA.model_copy(update={"rslora": True}).scale == 4


# --- training


def test_a_stage_trains_the_adapters_alone():
    stage, partition = trained(**{"decoder/**/lora_*": 2e-4})
    assert partition.rates.keys() == lora_paths(Model(model_config()).abstract())
    step = make_step(model_config(), stage, partition, make_mesh(MeshConfig(), jax.devices()[:1]), 1)
    shapes = {path: Model(model_config()).abstract()[path] for path in step.state_shardings.params}
    state = jax.eval_shape(step.init, shapes, jax.ShapeDtypeStruct((2,), jnp.uint32))
    expected = LAYERS * sum(RANK * (inputs + outputs) for inputs, outputs in SIZES.values())
    assert sum(value.size for value in state.params.values()) == expected
    moments = sum(value.size for value in jax.tree.leaves(state.opt_state) if value.ndim)
    assert moments == 2 * expected


def test_adapters_of_some_layers():
    _, partition = trained(BOTH, **{"decoder/layers/[-1:]/**/lora_*": 1e-4, "encoder/layers/[:2]/**/lora_b": 1e-5})
    assert partition.splits == {"encoder": (2,), "decoder": (LAYERS - 1,)}
    assert {path for path in partition.rates if "lora" not in path} == set()
    of_decoder = {path for path in partition.rates if path.startswith("decoder/layers/segments/1/")}
    of_encoder = {path for path in partition.rates if path.startswith("encoder/layers/segments/0/")}
    assert of_decoder | of_encoder == partition.rates.keys()
    assert len(of_decoder) == 2 * len(SIZES)
    assert len(of_encoder) == 6


def test_without_adapters_the_pattern_is_refused():
    with pytest.raises(InputError, match=r"'decoder/\*\*/lora_\*' matches no parameter"):
        trained(None, **{"decoder/**/lora_*": 2e-4})


def test_training_moves_every_adapter_and_leaves_the_base_to_the_bit(fresh, embedded, tmp_path):
    """A stage of the tiny recipe from its records to its checkpoint, on eight devices."""
    config = small(evals=[], model=model_config().model_dump(mode="json"), mesh={"data": 2, "fsdp": 2, "tensor": 2})
    changes = {"trainable": (("decoder/**/lora_*", 1e-2),), "steps": 6, "log_every": 1, "weight_decay": 0.1}
    stage = config.stages[0].model_copy(update=changes)
    workdir = epath.Path(tmp_path) / "run"
    alone = config.model_copy(update={"stages": (stage,)})
    summary = stages.run(alone, workdir, StopSignal(), final.evaluate)["stages"][0]
    checkpoints = StageCheckpoints(workdir / stage.name / "checkpoints", 1)
    grid = make_mesh(MeshConfig(), jax.devices())
    after = checkpoints.restore_params(Model(config.model).on_mesh(jax.eval_shape(lambda: fresh), grid))
    checkpoints.close()
    changed = {path for path in fresh if not np.array_equal(fresh[path], after[path])}
    assert changed == lora_paths(fresh)
    assert summary["last_loss"] < summary["first_loss"] - 0.01
    assert summary["trainable_parameters"] == sum(fresh[path].size for path in changed)


# --- sharding


def test_adapters_lie_along_their_kernels():
    grid = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices())
    for path, abstract in Model(model_config(BOTH)).abstract().items():
        layer, _, leaf = whole_path(path).rpartition("/")
        if leaf != "kernel" or not layer.startswith(("decoder/layers", "encoder/layers")):
            continue
        _, inputs, outputs = rules.parameter_sharding(f"{layer}/kernel", abstract.shape, grid).spec
        _, size_in, size_out = abstract.shape
        a = rules.parameter_sharding(f"{layer}/lora_a", (3, size_in, RANK), grid).spec
        b = rules.parameter_sharding(f"{layer}/lora_b", (3, RANK, size_out), grid).spec
        assert (a[1], b[2]) == (inputs, outputs)
        # The half that lies along `tensor` is split over `fsdp` by its rank.
        assert {a[2], b[1]} == {None, "fsdp"}


def test_no_adapter_is_replicated_at_real_size():
    config = build(Config, ftfv.get_config("vicuna-7b"))
    model = config.model.model_copy(update={"lora": LoraConfig(rank=128, alpha=256, parts=("decoder", "encoder"))})
    grid = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    shapes = {path: a for path, a in Model(model).abstract().items() if "/lora_" in path}
    assert sum(a.size for a in shapes.values()) > 3e8
    for path, abstract in shapes.items():
        assert not rules.parameter_sharding(whole_path(path), abstract.shape, grid).is_fully_replicated, path
    # A rank that the mesh does not divide stays whole.
    place = rules.parameter_sharding("decoder/layers/self_attn/q_proj/lora_b", (32, 6, 4096), grid)
    assert place.spec == P(None, None, None)
