"""The dense layer that every module here is made of."""

import jax
from flax import nnx


class Linear(nnx.Linear):
    """`nnx.Linear` that multiplies in two dimensions.

    With [B, L, C] inputs the weight gradient contracts two axes, which XLA's CPU backend runs slower than a plain
    matrix product (benchmarks/linear.py).
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return super().__call__(inputs.reshape(-1, inputs.shape[-1])).reshape(*inputs.shape[:-1], -1)
