"""TPU slices by name: their chips' published figures, and device lists to compile for on a host that has no TPU.

Figures per chip: HBM bandwidth and dense bf16 FLOP/s from cloud.google.com/tpu/docs (system architecture pages),
interconnect per link and direction from "How to Scale Your Model" (jax-ml.github.io/scaling-book, TPU table), HBM from
the compiler's own message to programs that want too much (libtpu 0.0.42): somewhat less than a chip has.
"""

import dataclasses
import math
import os
import re

import jax
import numpy as np

from vlvm_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip.

    Attributes:
      topology: its name in the compiler's topologies.
      hbm: bytes that the compiler lets a program use.
      flops: dense bf16 per second.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second over one link in one direction.
      dimensions: of the torus.
      cores_in_name: TensorCores that the slice's name counts per chip (`v5p-128` is 64 chips).
    """

    name: str
    topology: str
    hbm: float
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int
    cores_in_name: int


CHIPS = {
    "v4": Chip("v4", "v4", 30.75 * GIB, 275e12, 1.228e12, 4.5e10, 3, 2),
    "v5e": Chip("v5e", "v5e", 15.75 * GIB, 197e12, 8.19e11, 4.5e10, 2, 1),
    "v5p": Chip("v5p", "v5", 95.74 * GIB, 459e12, 2.765e12, 9e10, 3, 2),
    "v6e": Chip("v6e", "v6e", 31.25 * GIB, 918e12, 1.64e12, 9e10, 2, 1),
}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}
_NAME = re.compile(r"^(?P<kind>v\d+[a-z]*)-(?P<size>\d+)(x(?P<slices>\d+))?$")


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of `shape` chips each."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    def devices(self) -> list[jax.Device]:
        """Devices to compile for. Needs libtpu (the extra `tpu`), no TPU.

        Raises:
          InputError: libtpu is not installed, or does not know the topology.
        """
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks for a cloud machine's metadata
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is used, so there is none to keep for one
        from jax.experimental import topologies

        rows, columns = (min(2, side) for side in self.shape[:2])
        options: dict = {"chips_per_host_bounds": (rows, columns, 1)}
        if self.chip.cores_in_name == 2:
            options["chip_config_name"] = "megacore"
        if self.slices > 1:
            options["num_slices"] = self.slices
        shape = "x".join(map(str, self.shape))
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.chip.topology}:{shape}", **options
            )
        except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(
                f"--topology={self.name}: the TPU compiler cannot make {self.chip.topology}:{shape} ({text}); is the "
                "extra `tpu` installed?"
            ) from None
        return list(description.devices)


# What a device calls itself (`device.device_kind`) -> dense bf16 FLOP/s. GPUs: NVIDIA's data sheets, SXM versions.
_PEAKS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Published dense bf16 FLOP/s of a device; None for one that is not in the table (a CPU, say)."""
    names = [name for name in _PEAKS if device_kind == name or device_kind.startswith(f"{name} ")]
    return _PEAKS[max(names, key=len)] if names else None


def parse(name: str) -> Topology:
    """`v5e-64`, `v5p-128` (64 chips: the name counts cores), `v6e-256x2` (two slices) -> `Topology`.

    Raises:
      InputError: no such chip, or no slice of that size.
    """
    match = _NAME.match(name)
    kind = match and _ALIASES.get(match["kind"], match["kind"])
    if not match or kind not in CHIPS:
        raise InputError(f"--topology={name}: expected CHIP-SIZE or CHIP-SIZExSLICES with CHIP of {', '.join(CHIPS)}")
    chip, size = CHIPS[kind], int(match["size"])
    chips, rest = divmod(size, chip.cores_in_name)
    shape = None if rest else slice_shape(chips, chip.dimensions)
    if shape is None:
        counted = "cores, two a chip" if chip.cores_in_name == 2 else "chips"
        raise InputError(f"--topology={name}: there is no {kind} slice of {size} ({kind} sizes count {counted})")
    return Topology(name, chip, shape, int(match["slices"] or 1))


def slice_shape(chips: int, dimensions: int) -> tuple[int, ...] | None:
    """The standard slice of so many chips: powers of two, sides as equal as can be; None if there is none.

    `slice_shape(8, 2)` = (2, 4); `slice_shape(32, 3)` = (2, 4, 4); four chips of a 3-D torus are (2, 2, 1).
    """
    if chips < 1 or chips & (chips - 1) or (dimensions == 2 and chips > 256):
        return None
    exponent = chips.bit_length() - 1
    if dimensions == 3 and chips <= 4:
        return {1: (1, 1, 1), 2: None, 4: (2, 2, 1)}[chips]
    if dimensions == 2 and chips == 2:
        return None
    sides = [2 ** (exponent // dimensions + (i < exponent % dimensions)) for i in range(dimensions)]
    return tuple(int(side) for side in np.sort(sides))
