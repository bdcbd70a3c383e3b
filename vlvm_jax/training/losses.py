"""What a stage learns: next-token cross-entropy over the tokens to be learned, with the head run in chunks of the
vocabulary, or what the adapter itself has to learn."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vlvm_jax.models.adapters.base import LearnsByItself
from vlvm_jax.models.batch import Batch, next_tokens
from vlvm_jax.models.video_llm import VideoLLM
from vlvm_jax.parallel import rules


def token_losses(
    model: VideoLLM, hidden: Float[Array, "B L C"], batch: Batch, chunks: int
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Sums over learned tokens: cross-entropy, their number, how many the model would have said. All fp32.

    Sums, not means: micro-batches with different numbers of learned tokens add up exactly. With more than one chunk,
    the head runs over one piece of the vocabulary after the other, forward and backward, so that [B, L, vocab] never
    exists, nor the whole head on one device where it lies split.
    """
    targets, learned = next_tokens(batch)
    if chunks == 1:
        logits = model.decoder.logits(hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        said = jnp.argmax(logits, axis=-1)
    else:
        losses, said = _chunked_losses(hidden, *_pieces(model.decoder.head(), chunks), targets)
    right = (said == targets) & learned
    return jnp.sum(losses * learned), jnp.sum(learned, dtype=jnp.float32), jnp.sum(right, dtype=jnp.float32)


def adapter_losses(model: VideoLLM, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Sums of what the adapter learns by itself: loss, how many it is of, how many are right. No decoder is run."""
    assert isinstance(model.adapter, LearnsByItself)  # `plan.check_adapter` refuses others
    return model.adapter.own_losses(model.encode_media(batch.frames), batch.layout, batch.guidance)


def _pieces(
    head: Float[Array, "C V"], chunks: int
) -> tuple[Float[Array, "chunks C piece"], Int[Array, "chunks piece"]]:
    """The head's columns in pieces, and which token each is; -1 where a piece is filled up.

    Every piece takes its share of each device's columns.
    """
    width, vocab = head.shape
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty or not rules.divided("vocab", vocab, mesh) else rules.width("vocab", mesh)
    spare = -vocab % (shards * chunks)
    tokens = jnp.where(jnp.arange(vocab + spare) < vocab, jnp.arange(vocab + spare), -1)
    columns = jnp.pad(head, ((0, 0), (0, spare))).reshape(width, shards, chunks, -1)
    pieces = jnp.moveaxis(columns, 2, 0).reshape(chunks, width, -1)
    pieces = rules.constrain(pieces, None, "embed", "vocab")
    return pieces, jnp.moveaxis(tokens.reshape(shards, chunks, -1), 1, 0).reshape(chunks, -1)


@jax.custom_vjp
def _chunked_losses(hidden, pieces, tokens, targets) -> tuple[Float[Array, "B L"], Int[Array, "B L"]]:
    """Cross-entropy of every position and the token it would say; the head's pieces are taken one after the other."""
    return _losses_forward(hidden, pieces, tokens, targets)[0]


def _piece_logits(hidden, piece, tokens) -> Float[Array, "B L piece"]:
    logits = jnp.dot(hidden, piece.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jnp.where(tokens >= 0, logits, -jnp.inf)


def _losses_forward(hidden, pieces, tokens, targets):
    def add(carry, inputs):
        largest, total, of_target, said = carry
        piece, tokens = inputs
        logits = _piece_logits(hidden, piece, tokens)
        here = jnp.max(logits, axis=-1)
        said = jnp.where(here > largest, tokens[jnp.argmax(logits, axis=-1)], said)
        now = jnp.maximum(largest, here)
        total = total * jnp.exp(largest - now) + jnp.sum(jnp.exp(logits - now[..., None]), axis=-1)
        of_target += jnp.sum(jnp.where(tokens == targets[..., None], logits, 0), axis=-1)
        return (now, total, of_target, said), None

    zero = jnp.zeros(targets.shape, jnp.float32)
    start = (zero - jnp.inf, zero, zero, jnp.zeros(targets.shape, tokens.dtype))
    (largest, total, of_target, said), _ = jax.lax.scan(add, start, (pieces, tokens))
    normalizer = largest + jnp.log(total)
    return (normalizer - of_target, said), (hidden, pieces, tokens, targets, normalizer)


def _losses_backward(kept, given):
    hidden, pieces, tokens, targets, normalizer = kept
    of_losses = given[0][..., None]

    def add(of_hidden, inputs):
        piece, tokens = inputs
        share = jnp.exp(_piece_logits(hidden, piece, tokens) - normalizer[..., None])
        of_logits = ((share - (tokens == targets[..., None])) * of_losses).astype(hidden.dtype)
        of_hidden += jnp.einsum(
            "blv,cv->blc", of_logits, piece.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        of_piece = jnp.einsum("blc,blv->cv", hidden, of_logits)
        return of_hidden, rules.constrain(of_piece, "embed", "vocab").astype(pieces.dtype)

    start = rules.constrain(jnp.zeros(hidden.shape, jnp.float32), "batch", "length", None)
    of_hidden, of_pieces = jax.lax.scan(add, start, (pieces, tokens))
    return of_hidden.astype(hidden.dtype), of_pieces, None, None


_chunked_losses.defvjp(_losses_forward, _losses_backward)
