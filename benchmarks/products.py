"""Matrix products alone, in jax and in PyTorch: what of a ratio belongs to the backends, not to what uses them."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch

Run = Callable[[], float]


def contenders(positions: int, inputs: Sequence[int], outputs: Sequence[int], *, backward: bool) -> tuple[Run, Run]:
    """The same products of linear maps in fp32, in jax and in PyTorch.

    Args:
      positions: rows of every product.
      inputs, outputs: sizes of each map.
      backward: with the two products of each map's backward pass.
    """
    sizes = list(zip(inputs, outputs, strict=True))
    rng = np.random.default_rng(0)
    values = {size: rng.standard_normal((positions, size)).astype(np.float32) for size in {*inputs, *outputs}}
    kernels = {size: rng.standard_normal(size).astype(np.float32) for size in set(sizes)}

    def total_of(values, kernels):
        total = 0.0
        for number, (inner, outer) in enumerate(sizes):
            x = values[inner] + number  # or one product would do for all of a size
            y = x @ kernels[inner, outer]
            total = total + y[0, 0]
            if backward:
                total = total + (y @ kernels[inner, outer].T)[0, 0] + (x.T @ y)[0, 0]
        return total

    compiled = jax.jit(total_of)
    ours = jax.device_put((values, kernels))
    theirs = tuple({key: torch.from_numpy(value) for key, value in part.items()} for part in (values, kernels))
    return lambda: float(compiled(*ours)), lambda: float(total_of(*theirs))


def decoder_sizes(width: int, inner: int, layers: int) -> tuple[list[int], list[int]]:
    """Inputs and outputs of the linear maps of a decoder with as many key/value heads as others, without its head."""
    one = [*[(width, width)] * 4, *[(width, inner)] * 2, (inner, width)]
    return [size for size, _ in one] * layers, [size for _, size in one] * layers
