"""One attention entry point for the tower and the decoder.

Everything that decides *which* kernel runs lives here, so that a new backend is one branch in one file.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def segment_mask(
    query_segments: Int[Array, "B Q"],
    key_segments: Int[Array, "B S"],
    query_positions: Int[Array, "B Q"] | None = None,
    key_positions: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B 1 Q S"]:
    """True where a query may look: same non-zero segment and, when positions are given, not into the future.

    Segment 0 is padding. A padding query sees nothing; `attention` returns a finite value for it all the same.
    """
    mask = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    if query_positions is not None and key_positions is not None:
        mask &= key_positions[:, None, :] <= query_positions[:, :, None]
    return mask[:, None]


def attention(
    query: Float[Array, "B Q H F"],
    key: Float[Array, "B S G F"],
    value: Float[Array, "B S G F"],
    mask: Bool[Array, "B 1 Q S"] | None = None,
) -> Float[Array, "B Q H F"]:
    """Scaled dot-product attention; H query heads share G key/value heads (H a multiple of G).

    Softmax runs in fp32 whatever the inputs' dtype. Rows that may see nothing give finite values, never NaN.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def attention_received(
    query: Float[Array, "B N H F"], key: Float[Array, "B N H F"], *, from_first: bool
) -> Float[Array, "B N"]:
    """How much attention each token receives, mean over heads: from token 0 (a CLS token), or from all on average.

    fp32; each row sums to 1. Used by the sampler that ranks patches by the tower's own attention.
    """
    scale = query.shape[-1] ** -0.5
    query = query[:, :1] if from_first else query
    logits = jnp.einsum("bqhf,bkhf->bhqk", query, key, preferred_element_type=jnp.float32) * scale
    return jax.nn.softmax(logits, axis=-1).mean(axis=(1, 2))
