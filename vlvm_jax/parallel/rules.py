"""Where every array lives: a table from parameters to logical axes, one from logical axes to mesh axes.

A parameter that matches no row, or more than one, is an error: nothing large is silently replicated.
"""

import math
import re
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlvm_jax.errors import InputError

# Logical axis -> mesh axes. Batches are split over `data` and `fsdp`, the frames and tokens of a row over `context`;
# large parameter axes over `fsdp`, `context` and `tensor`.
MESH_AXES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": "context",
    "frames": ("data", "fsdp", "context"),  # of all rows, one after the other
    "positions": ("data", "fsdp", "context"),  # of a batch's rows, device by device
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    "norm": None,
    "small": None,
    "rank": ("fsdp", "context"),
}

LARGE = 2**20  # elements; a parameter that large must not lie whole on every device

# Parameter path (its end) -> logical axes, of the parts that models are built from; an adapter states the rows of its
# own parameters (`VideoAdapter.parameter_axes`). Stacked layers get a leading "layers" axis by themselves.
ParameterAxes = tuple[tuple[str, tuple[str, ...]], ...]
PARAMETER_AXES: ParameterAxes = (
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)/kernel", ("embed", "heads")),
    (r"(q_proj|k_proj|v_proj|fc1)/bias", ("heads",)),
    (r"(o_proj|out_proj|down_proj|fc2)/kernel", ("heads", "embed")),
    (r"(o_proj|out_proj|fc2)/bias", ("norm",)),
    # Each of a LoRA pair lies along its kernel's axis; where that is not `embed`, the rank is what `fsdp` splits.
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)/lora_a", ("embed", "small")),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|fc1)/lora_b", ("rank", "heads")),
    (r"(o_proj|out_proj|down_proj|fc2)/lora_a", ("heads", "rank")),
    (r"(o_proj|out_proj|down_proj|fc2)/lora_b", ("small", "embed")),
    (r"embed_tokens/embedding", ("vocab", "embed")),
    (r"lm_head/kernel", ("embed", "vocab")),
    (r"token_embedding/embedding", ("vocab", "embed")),
    (r"(text_projection|visual_projection)/kernel", ("embed", "mlp")),
    (r"logit_scale", ()),
    (r"(layernorm|layer_norm1|layer_norm2|layrnorm|norm)/(scale|bias)", ("norm",)),
    (r"(lambda_1|lambda_2)/scale", ("norm",)),
    (r"patch_embedding/kernel", ("small", "embed")),
    (r"patch_embedding/bias", ("norm",)),
    (r"class_embedding", ("norm",)),
    (r"position_embedding", ("small", "embed")),
    (r"adapter/.*linear_1/kernel", ("embed", "mlp")),
    (r"adapter/.*linear_1/bias", ("mlp",)),
    (r"adapter/.*linear_2/kernel", ("mlp", "embed")),
    (r"adapter/.*linear_2/bias", ("norm",)),
    (r"adapter/.*modality_projection/proj/kernel", ("embed", "mlp")),
    (r"resampler/query", ("small", "embed")),
    (r"(kv_proj|output_proj)/kernel", ("embed", "heads")),
)


def logical_axes(path: str, own: ParameterAxes = ()) -> tuple[str, ...]:
    """Logical axes of the parameter at `path` (`decoder/layers/mlp/up_proj/kernel`), without the layer axis.

    Args:
      own: the adapter's own rows.
    """
    matches = [axes for pattern, axes in (*PARAMETER_AXES, *own) if re.search(rf"(^|/|_){pattern}$", path)]
    if len(matches) != 1:
        raise ValueError(
            f"{path}: {len(matches)} rows of parallel.rules.PARAMETER_AXES and of the adapter's own match it; exactly "
            "one must"
        )
    return matches[0]


def parameter_sharding(
    path: str, shape: tuple[int, ...], mesh: Mesh, own: ParameterAxes = (), heads: int | None = None
) -> NamedSharding:
    """The sharding of one parameter. An axis that the mesh does not divide stays whole on that axis.

    Args:
      own: the adapter's own rows.
      heads: how many lie along the axis `heads`, of a projection of attention: no head is cut, so that what counts is
        whether the mesh divides them.
    """
    axes = logical_axes(path, own)
    if len(shape) == len(axes) + 1:
        axes = ("layers", *axes)
    if len(shape) != len(axes):
        raise ValueError(f"{path}: shape {shape} does not fit the logical axes {axes}")
    units = tuple(heads if axis == "heads" and heads else size for axis, size in zip(axes, shape, strict=True))
    return sharding(axes, units, mesh)


def batch_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of one field of a batch, [B, T, ...] or [B, L, ...]."""
    return sharding(("batch", "length"), shape[:2], mesh)


def check_split(placed: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> None:
    """Raises `InputError` for a large parameter that every device would hold whole on a mesh that splits parameters."""
    parts = width("embed", mesh) * width("heads", mesh)
    for path, a in placed.items():
        if parts > 1 and math.prod(a.shape) > LARGE and a.sharding is not None and a.sharding.is_fully_replicated:
            raise InputError(
                f"config.mesh: {path}, {list(a.shape)}, would lie whole on every device: fsdp x context = "
                f"{width('embed', mesh)} and tensor = {width('heads', mesh)} divide neither of its sides"
            )


def sharding(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of an array whose sides are these logical axes."""
    return NamedSharding(mesh, _spec(axes, shape, mesh))


def _spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh) -> PartitionSpec:
    return PartitionSpec(
        *(None if axis is None else divided(axis, size, mesh) for size, axis in zip(shape, axes, strict=True))
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch's rows are split."""
    return width("batch", mesh)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to its logical axes under the current mesh; without a mesh it returns `x` unchanged."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(axes, x.shape, mesh))


def divided(axis: str, size: int, mesh) -> str | tuple[str, ...] | None:
    """The mesh axes that a logical axis of this size is split over: as many of its row, in order, as divide it."""
    names = MESH_AXES[axis]
    names = (names,) if isinstance(names, str) else names or ()
    while names and size % _width(mesh, names):
        names = names[:-1]
    split = tuple(name for name in names if _width(mesh, (name,)) > 1)
    return (split[0] if len(split) == 1 else split) or None


def parts(axis: str, size: int, mesh) -> int:
    """Into how many parts a logical axis of this size is split."""
    names = divided(axis, size, mesh) or ()
    return _width(mesh, (names,) if isinstance(names, str) else names)


def width(axis: str, mesh) -> int:
    """Into how many parts a logical axis is split, sizes permitting."""
    names = MESH_AXES[axis]
    return _width(mesh, (names,) if isinstance(names, str) else names or ())


def _width(mesh, names: tuple[str, ...]) -> int:
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    return math.prod(sizes[name] for name in names)
