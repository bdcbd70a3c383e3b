"""Resampler connector: learned queries read a set of features by cross-attention, once (Qwen-VL's form).

From Qwen-VL's public code (`Resampler` in its visual.py): queries, one attention layer, a map of keys and values to the
decoder's width without bias, layer norms (eps 1e-6) before the attention, fixed sine-cosine positions on queries and
keys but not on values, no residual and no feed-forward part; then a layer norm and a projection. Differs: where the
keys' grid is not the queries', Qwen-VL resizes its table of positions bicubically, here the sines are taken at the
places themselves.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from vlvm_jax.errors import InputError
from vlvm_jax.models.attention import attention
from vlvm_jax.models.layers import Linear

HEAD_DIM = 128  # Qwen-VL's


class Resampler(nnx.Module):
    """N features to `num_queries` tokens.

    Args:
      in_features, out_features: D and C.
      num_queries: a square number; queries lie on a grid of that many places.
    """

    def __init__(self, in_features: int, out_features: int, num_queries: int, *, dtype, rngs: nnx.Rngs):
        self.num_queries, self.dtype = num_queries, dtype
        self.num_heads = max(1, out_features // HEAD_DIM)
        if out_features % (4 * self.num_heads):
            raise InputError(
                f"config.model.decoder.hidden_size: {out_features} is not a multiple of 4 x {self.num_heads} heads, "
                "which a resampler connector needs"
            )

        def linear(inputs, use_bias=True):
            return Linear(inputs, out_features, use_bias=use_bias, dtype=dtype, rngs=rngs)

        def norm():
            return nnx.LayerNorm(out_features, epsilon=1e-6, dtype=dtype, rngs=rngs)

        init = nnx.initializers.truncated_normal(0.02)
        self.query = nnx.Param(init(rngs.params(), (num_queries, out_features)))
        self.kv_proj = linear(in_features, use_bias=False)
        self.q_norm, self.kv_norm, self.post_norm = norm(), norm(), norm()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (linear(out_features) for _ in range(4))
        self.output_proj = linear(out_features, use_bias=False)

    def __call__(
        self,
        features: Float[Array, "B N D"],
        positions: Float[Array, "B N C"] | Float[Array, "N C"],
        sets: Bool[Array, "B G N"] | None = None,
    ) -> Float[Array, "B G M C"]:
        """Reads the features by the learned queries.

        Args:
        positions: of the features, sine-cosine (`grid_positions`, `line_positions`).
        sets: of the features, each read alone; one of all by default. Of an empty one the result is finite and means
          nothing.
        """

        def heads(x):
            return x.reshape(*x.shape[:2], self.num_heads, -1)

        batch, length, _ = features.shape
        width = self.query.shape[-1]
        values = self.kv_norm(self.kv_proj(features))
        keys = values + positions.astype(self.dtype)
        places = jnp.asarray(grid_positions(round(self.num_queries**0.5), width), self.dtype)
        if sets is None:
            sets = jnp.ones((batch, 1, length), bool)
        queries = heads(self.q_proj(self.q_norm(self.query[...]) + places)[None])
        queries = jnp.tile(queries, (batch, sets.shape[1], 1, 1))
        visible = jnp.repeat(sets, self.num_queries, axis=1)[:, None]
        read = attention(queries, heads(self.k_proj(keys)), heads(self.v_proj(values)), visible)
        return self.output_proj(self.post_norm(self.out_proj(read.reshape(*sets.shape[:2], self.num_queries, width))))


def grid_positions(side: int, width: int, *, of: int | None = None) -> Float[np.ndarray, "side*side {width}"]:
    """Fixed positions of a grid in raster order: half of the width says the column, half the row.

    Args:
      of: side of the grid whose coordinates count; the places of another lie evenly over it. Default: `side`.
    """
    of = side if of is None else of
    along = (np.arange(side) + 0.5) * of / side - 0.5
    row, column = np.meshgrid(along, along, indexing="ij")
    return np.concatenate(
        [line_positions(column.reshape(-1), width // 2), line_positions(row.reshape(-1), width // 2)], axis=1
    )


def line_positions(places: Float[np.ndarray, "n"], width: int) -> Float[np.ndarray, "n {width}"]:
    """Fixed positions along a line: sines, then cosines, of frequencies from 1 down to 1/10000."""
    angles = np.asarray(places, np.float64)[:, None] * 10000.0 ** -(np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
