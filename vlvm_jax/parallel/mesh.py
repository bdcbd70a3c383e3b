"""The device mesh. One device is the smallest mesh; nothing else in the library treats it as a special case."""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vlvm_jax.config import MeshConfig
from vlvm_jax.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `context`, `tensor` (outermost first) over all devices.

    Slices, which only the data center's network joins, lie along `data`, outermost.

    Raises:
      InputError: the sizes do not multiply to the number of devices, or `dcn_data` is not the number of slices.
    """
    devices = list(jax.devices()) if devices is None else devices
    slices = _slices(config, devices)
    shape = _shape(config, len(devices) // slices, slices)
    if slices > 1 and hasattr(devices[0], "slice_index"):
        grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    else:
        shape = (slices * shape[0], *shape[1:])
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(config: MeshConfig, devices: list[jax.Device]) -> int:
    """How many slices the devices are in. Devices that know of none (CPUs) count as what the config asks for."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    asked = slices if config.dcn_data == -1 else config.dcn_data
    knows = slices > 1 or devices[0].platform == "tpu"
    if (knows and asked != slices) or asked < 1 or len(devices) % asked:
        raise InputError(
            f"config.mesh.dcn_data: {config.dcn_data} slices asked for; the {len(devices)} devices here are in {slices}"
        )
    return asked


def _shape(config: MeshConfig, devices: int, slices: int) -> tuple[int, ...]:
    """Sizes within one slice."""
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(
            f"config.mesh: sizes {dict(zip(AXES, sizes, strict=True))} need positive numbers, one -1 at most"
        )
    known = math.prod(size for size in sizes if size != -1)
    if devices % known or (-1 not in sizes and known != devices):
        where = f"each of the {slices} slices' {devices} devices" if slices > 1 else f"the {devices} devices here"
        raise InputError(
            f"config.mesh: {' x '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))} does not divide {where}; "
            f"the sizes must multiply to {devices}"
        )
    return tuple(devices // known if size == -1 else size for size in sizes)


def process_rows(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """By process: which of the batch's shards its devices hold, in order."""
    held: dict[int, set[int]] = {}
    by_row = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    for row, devices in enumerate(by_row):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    return {process: tuple(sorted(rows)) for process, rows in held.items()}
