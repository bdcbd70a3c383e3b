"""The dense layer that every module here is made of."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Linear):
    """`nnx.Linear` that multiplies in two dimensions, and that can carry a low-rank adapter (`add_lora`).

    With [B, L, C] inputs the weight gradient contracts two axes, which XLA's CPU backend runs slower than a plain
    matrix product (benchmarks/linear.py).

    Attributes:
      lora_a, lora_b: [in, rank] and [rank, out], or None; the output gains `lora_scale * (x A) B`.
    """

    def __init__(self, in_features: int, out_features: int, **kwargs):
        super().__init__(in_features, out_features, **kwargs)
        self.lora_a = self.lora_b = nnx.data(None)
        self.lora_scale = 0.0

    def add_lora(self, rank: int, scale: float, *, rngs: nnx.Rngs) -> None:
        """Gives the layer an adapter that changes nothing yet: A as PEFT draws it, B zero.

        A layer of a stack, whose kernel is [layers, in, out], gets stacked ones.
        """
        *stack, inputs, outputs = self.kernel.shape
        bound = inputs**-0.5  # Kaiming uniform with a = sqrt(5)
        draw = jax.random.uniform(rngs.params(), (*stack, inputs, rank), self.param_dtype, -bound, bound)
        self.lora_a = nnx.Param(draw)
        self.lora_b = nnx.Param(jnp.zeros((*stack, rank, outputs), self.param_dtype))
        self.lora_scale = scale

    def __call__(self, inputs: jax.Array) -> jax.Array:
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = super().__call__(rows)
        if self.lora_a is not None and self.lora_b is not None:
            rows, a, b = self.promote_dtype((rows, self.lora_a[...], self.lora_b[...]), dtype=self.dtype)
            outputs += self.lora_scale * (rows @ a) @ b
        return outputs.reshape(*inputs.shape[:-1], -1)
