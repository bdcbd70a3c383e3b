"""The device mesh. One device is the smallest mesh; nothing else in the library treats it as a special case."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from vlvm_jax.config import MeshConfig
from vlvm_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `tensor` (outermost first) over all devices.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    unknown = sizes.count(-1)
    known = int(np.prod([size for size in sizes if size != -1]))
    if unknown > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(
            f"config.mesh: sizes {dict(zip(AXES, sizes, strict=True))} need positive numbers, one -1 at most"
        )
    if (unknown and len(devices) % known) or (not unknown and known != len(devices)):
        raise InputError(
            f"config.mesh: {' x '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))} does not divide the "
            f"{len(devices)} devices here; the sizes must multiply to {len(devices)}"
        )
    shape = tuple(len(devices) // known if size == -1 else size for size in sizes)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
