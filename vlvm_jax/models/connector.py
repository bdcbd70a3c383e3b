"""From tower width to decoder width: the projector of the LLaVA family (`multi_modal_projector` in HF)."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from vlvm_jax.config import ConnectorConfig
from vlvm_jax.models.layers import Linear


class Connector(nnx.Module):
    """`linear`: one affine map. `mlp2x_gelu`: affine, exact GELU, affine (LLaVA-1.5).

    Names follow HF's `multi_modal_projector.linear_1` / `linear_2`.
    """

    def __init__(self, config: ConnectorConfig, in_features: int, out_features: int, *, dtype, rngs: nnx.Rngs):
        self.kind = config.kind
        hidden = out_features
        self.linear_1 = Linear(in_features, hidden, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(hidden, out_features, dtype=dtype, rngs=rngs) if config.kind == "mlp2x_gelu" else None

    def __call__(self, features: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
        hidden = self.linear_1(features)
        if self.linear_2 is None:
            return hidden
        return self.linear_2(jax.nn.gelu(hidden, approximate=False))
