"""The mesh, and that every parameter has exactly one place on it."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from support.recipes import small

from configs import ftfv
from vlvm_jax.config import AdapterConfig, Config, MeshConfig, build
from vlvm_jax.errors import InputError
from vlvm_jax.models.params import Model
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import make_mesh


def mesh(**sizes: int):
    return make_mesh(MeshConfig(**sizes), jax.devices())


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 1, 2)),
        ({"data": 1, "context": 4, "fsdp": -1}, (1, 2, 4, 1)),
        ({"dcn_data": 2, "fsdp": 2}, (4, 2, 1, 1)),
    ],
)
def test_minus_one_takes_what_is_left(sizes, shape):
    assert mesh(**sizes).devices.shape == shape


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"data": 4, "fsdp": 1, "tensor": 1},
        {"data": -1, "fsdp": -1},
        {"data": 0},
        {"dcn_data": 3},
        {"dcn_data": 2, "fsdp": 8},
    ],
)
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(InputError, match=r"config\.mesh"):
        mesh(**sizes)


def test_a_parameter_lies_where_the_tables_say():
    grid = mesh(data=2, fsdp=2, tensor=2)
    place = rules.parameter_sharding("decoder/layers/mlp/up_proj/kernel", (3, 96, 240), grid)
    assert place.spec == P(None, "fsdp", "tensor")
    assert rules.parameter_sharding("decoder/layers/mlp/down_proj/kernel", (3, 240, 96), grid).spec == P(
        None, "tensor", "fsdp"
    )
    assert rules.parameter_sharding("encoder/layers/self_attn/out_proj/kernel", (3, 96, 96), grid).spec == P(
        None, "tensor", "fsdp"
    )
    assert rules.parameter_sharding("decoder/embed_tokens/embedding", (240, 96), grid).spec == P("tensor", "fsdp")
    assert rules.parameter_sharding("decoder/norm/scale", (96,), grid).spec == P(None)
    # 97 is not divided by 2: that axis stays whole.
    assert rules.parameter_sharding("decoder/lm_head/kernel", (97, 64), grid).spec == P(None, "tensor")


@pytest.mark.parametrize(
    ("size", "split"), [(8, ("fsdp", "context")), (12, ("fsdp", "context")), (6, "fsdp"), (9, None), (1, None)]
)
def test_an_axis_is_split_over_as_many_mesh_axes_as_divide_it(size, split):
    """`embed` over fsdp x context = 2 x 2; what neither divides lies whole, however large."""
    grid = mesh(data=2, fsdp=2, context=2)
    assert rules.divided("embed", size, grid) == split
    assert rules.sharding(("embed", None), (size, 3), grid).spec == P(split, None)


def test_a_parameter_without_a_row_is_an_error():
    with pytest.raises(ValueError, match="0 rows"):
        rules.logical_axes("decoder/something/new")


OPTIONS = [
    {},
    {"value_net": "linear", "prior": "learned_grid", "temporal_embed": "learned"},
    {"reading": "scored_topk", "score_net": "mlp"},
    {"reading": "local_weighted_pool"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_has_one_row(options):
    adapter = AdapterConfig(name="weighted_sampler", options={"num_tokens": 4, **options})
    vision = small().model.vision.model_copy(update={"kind": "clip"})
    decoder = small().model.decoder.model_copy(update={"attention_bias": True, "attention_out_bias": True})
    model = small().model.model_copy(update={"adapter": adapter, "vision": vision, "decoder": decoder})
    cut = Model(model, {"encoder": (1,)})
    assert cut.on_mesh(cut.abstract(), mesh(fsdp=4, tensor=2)).keys() == cut.abstract().keys()


def test_nothing_large_is_replicated_at_real_size():
    config = build(Config, ftfv.get_config("vicuna-7b"))
    grid = mesh(data=1, fsdp=8)
    whole = split = 0
    model = Model(config.model)
    for abstract in model.on_mesh(model.abstract(), grid).values():
        whole += abstract.size if abstract.sharding.is_fully_replicated else 0
        split += abstract.size
    assert split > 6.9e9
    assert whole / split < 0.001


def test_a_large_parameter_that_lies_whole_is_an_error():
    shapes = {"decoder/layers/mlp/up_proj/kernel": (4, 1001, 1001), "decoder/norm/scale": (1001,)}

    def check(grid) -> None:
        placed = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rules.parameter_sharding(path, shape, grid))
            for path, shape in shapes.items()
        }
        rules.check_split(placed, grid)

    with pytest.raises(InputError, match=r"up_proj/kernel, \[4, 1001, 1001\].*fsdp x context = 8"):
        check(mesh(data=1, fsdp=8))
    check(mesh(data=8))  # nothing is meant to be split


@pytest.mark.parametrize(("tensor", "q", "k"), [(2, "tensor", "tensor"), (4, "tensor", None), (8, None, None)])
def test_heads_that_the_mesh_does_not_divide_stay_whole(tensor, q, k):
    """12 heads, 2 of keys and values, of 32 numbers each: no head is ever cut. Towers and decoders alike."""
    config = small().model
    sizes = {"num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 32}
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update=sizes)})
    placed = Model(config).on_mesh(Model(config).abstract(), mesh(data=1, fsdp=-1, tensor=tensor))

    def split(part: str, projections: str, side: int) -> set:
        return {
            a.sharding.spec[side]
            for path, a in placed.items()
            if a.sharding is not None and re.fullmatch(rf"{part}/.*({projections})/kernel", path)
        }

    assert split("decoder", "q_proj", -1) == split("decoder", "o_proj", -2) == {q}
    assert split("decoder", "k_proj|v_proj", -1) == {k}
    assert split("encoder", "q_proj|k_proj|v_proj", -1) == {"tensor" if tensor == 2 else None}  # two heads


def test_constrain_is_nothing_without_a_mesh_and_places_with_one():
    x = jnp.zeros((8, 4))
    assert rules.constrain(x, "batch", None) is x
    with jax.set_mesh(mesh(data=2, fsdp=2, tensor=2)):
        y = jax.jit(lambda x: rules.constrain(x, "batch", None))(x)
    assert y.sharding.spec == P(("data", "fsdp"))
