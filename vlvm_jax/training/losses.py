"""Next-token cross-entropy over the tokens to be learned, with the head run in chunks."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from vlvm_jax.models.video_llm import Batch, VideoLLM


def next_tokens(batch: Batch) -> tuple[Array, Bool[Array, "B L"]]:
    """The token after each position, and whether it is one to be learned within the same packed sample."""
    targets = jnp.roll(batch.token_ids, -1, axis=1)
    same = batch.segment_ids == jnp.roll(batch.segment_ids, -1, axis=1)
    learned = (jnp.roll(batch.loss_mask, -1, axis=1) & same).at[:, -1].set(False)
    return targets, learned


def token_losses(
    model: VideoLLM, hidden: Float[Array, "B L C"], batch: Batch, chunks: int
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Sums over learned tokens: cross-entropy, their number, how many the model would have said. All fp32.

    Sums, not means: micro-batches with different numbers of learned tokens add up exactly. The head runs over
    `chunks` pieces of the sequence, each recomputed in the backward pass, so that [B, L, vocab] never exists.
    """
    targets, learned = next_tokens(batch)

    def piece(carry, inputs):
        hidden, targets, learned = inputs
        logits = model.decoder.logits(hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        right = (jnp.argmax(logits, axis=-1) == targets) & learned
        loss, count, rights = carry
        return (loss + jnp.sum(losses * learned), count + jnp.sum(learned), rights + jnp.sum(right)), None

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    zero = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))
    inputs = (hidden, targets, learned)
    if chunks == 1:
        return piece(zero, inputs)[0]
    return jax.lax.scan(jax.checkpoint(piece), zero, jax.tree.map(cut, inputs))[0]


def right_tokens(model: VideoLLM, hidden: Float[Array, "B L C"], batch: Batch) -> tuple[Array, Array, Array]:
    """Per position: is the next token a learned one, would greedy decoding say it, and what it would say."""
    targets, learned = next_tokens(batch)
    said = jnp.argmax(model.decoder.logits(hidden), axis=-1)
    return learned, (said == targets) & learned, said
