"""What a stage learns: next-token cross-entropy over the tokens to be learned, or what the adapter itself has to learn.

The head runs over learned positions only. Each device brings those of its own rows to the front and takes them in
passes of one size, up to the last that has any. Within a pass, the head may run over one piece of the vocabulary after
the other.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlvm_jax.models.adapters.base import LearnsByItself
from vlvm_jax.models.batch import Batch, next_tokens
from vlvm_jax.models.video_llm import VideoLLM
from vlvm_jax.parallel import rules


def token_losses(
    model: VideoLLM, hidden: Float[Array, "B L C"], batch: Batch, *, passes: int, chunks: int
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Sums over learned tokens: cross-entropy, their number, how many the model would have said. All fp32.

    Sums, not means: micro-batches with different numbers of learned tokens add up exactly. Logits exist for one pass at
    a time; with several chunks for one piece of the vocabulary, and then the whole head is on no device where it lies
    split.

    Args:
      passes: into how many a device's positions are divided. Those without learned positions are skipped.
      chunks: pieces of the vocabulary.
    """
    targets, learned = next_tokens(batch)
    loss, right = _learned_losses(passes)(hidden, *_pieces(model.decoder.head(), chunks), targets, learned)
    return loss, jnp.sum(learned, dtype=jnp.float32), right


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
    shards = 1 if mesh.empty else rules.parts("vocab", vocab, mesh)
    spare = -vocab % (shards * chunks)
    tokens = jnp.where(jnp.arange(vocab + spare) < vocab, jnp.arange(vocab + spare), -1)
    columns = jnp.pad(head, ((0, 0), (0, spare))).reshape(width, shards, chunks, -1)
    pieces = jnp.moveaxis(columns, 2, 0).reshape(chunks, width, -1)
    pieces = rules.constrain(pieces, None, "embed", "vocab")
    return pieces, jnp.moveaxis(tokens.reshape(shards, chunks, -1), 1, 0).reshape(chunks, -1)


@functools.cache
def _learned_losses(passes: int) -> Any:
    """Makes (hidden, pieces of the head, their tokens, targets, learned) into the sums of losses and of right tokens.

    The function's gradients are computed in the forward pass, while the logits exist. The losses are summed, so all
    that the backward pass has to do is to scale them.
    """

    @jax.custom_vjp
    def losses(*arguments):
        return _sums_and_gradients(passes, (False, False), *arguments)[0]

    def forward(*arguments):
        wanted = arguments[0].perturbed, arguments[1].perturbed
        return _sums_and_gradients(passes, wanted, *(argument.value for argument in arguments))

    def backward(gradients, given):
        of_hidden, of_pieces = (None if g is None else (g * given[0]).astype(g.dtype) for g in gradients)
        return of_hidden, of_pieces, None, None, None

    losses.defvjp(forward, backward, symbolic_zeros=True)
    return losses


def _sums_and_gradients(passes: int, wanted: tuple[bool, bool], hidden, pieces, tokens, targets, learned):
    """(loss, right tokens) and the loss's gradients by `hidden` and `pieces`, None for one that is not wanted."""
    by_device = _by_device(learned)
    order = jnp.argsort(~by_device, axis=1, stable=True)
    place = jnp.argsort(order, axis=1)  # of each position in that order
    spare = -order.shape[1] % passes

    def split(x: Array) -> Array:
        """[B, L, ...] to [passes, S, K, ...], the learned positions first."""
        x = jnp.pad(_taken(_by_device(x), order), ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], passes, -1, *x.shape[2:]), 1, 0)

    def run(hidden, targets, learned):
        return _one_pass(hidden, pieces, tokens, targets, learned, wanted)

    def skip(*operands):
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run, *operands))

    def add(total, operands):
        sums, of_hidden, of_pieces = jax.lax.cond(jnp.any(operands[2]), run, skip, *operands)
        return jax.tree.map(jnp.add, total, (sums, of_pieces)), of_hidden

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero), jnp.zeros(pieces.shape, jnp.float32) if wanted[1] else None
    (sums, of_pieces), of_hidden = jax.lax.scan(add, start, (split(hidden), split(targets), split(learned)))
    if of_hidden is not None:
        of_hidden = jnp.moveaxis(of_hidden, 0, 1).reshape(len(order), -1, hidden.shape[-1])
        of_hidden = _by_row(_taken(of_hidden, place), hidden.shape)
    return sums, (of_hidden, None if of_pieces is None else of_pieces.astype(pieces.dtype))


def _one_pass(hidden, pieces, tokens, targets, learned, wanted: tuple[bool, bool]):
    """(loss, right tokens) and gradients of K positions of each of S devices."""
    if len(pieces) == 1:
        logits = _logits(hidden, pieces[0], tokens[0])
        statistics = _add_logits(_no_logits(targets, tokens.dtype), logits, tokens[0], targets)
    else:

        def see(statistics, piece):
            return _add_logits(statistics, _logits(hidden, *piece), piece[1], targets), None

        statistics, _ = jax.lax.scan(see, _no_logits(targets, tokens.dtype), (pieces, tokens))
    largest, total, of_target, said = statistics
    normalizer = largest + jnp.log(total)
    loss = jnp.sum((normalizer - of_target) * learned)
    sums = loss, jnp.sum((said == targets) & learned, dtype=jnp.float32)

    def gradients(logits, piece, tokens):
        share = jnp.exp(logits - normalizer[..., None]) - (tokens == targets[..., None])
        of_logits = (share * learned[..., None]).astype(hidden.dtype)
        of_hidden = of_piece = None
        if wanted[0]:
            of_hidden = jnp.einsum(
                "skv,cv->skc", of_logits, piece.astype(hidden.dtype), preferred_element_type=jnp.float32
            )
        if wanted[1]:
            of_piece = jnp.einsum("skc,skv->cv", hidden, of_logits, preferred_element_type=jnp.float32)
            of_piece = rules.constrain(of_piece, "embed", "vocab")
        return of_hidden, of_piece

    if len(pieces) == 1:
        of_hidden, of_piece = gradients(logits, pieces[0], tokens[0])
        of_pieces = None if of_piece is None else of_piece[None]
    else:

        def add(of_hidden, piece):
            more, of_piece = gradients(_logits(hidden, *piece), *piece)
            return jax.tree.map(jnp.add, of_hidden, more), of_piece

        start = jnp.zeros(hidden.shape, jnp.float32) if wanted[0] else None
        of_hidden, of_pieces = jax.lax.scan(add, start, (pieces, tokens))
    return sums, None if of_hidden is None else of_hidden.astype(hidden.dtype), of_pieces


def _logits(hidden, piece, tokens) -> Float[Array, "S K piece"]:
    logits = jnp.dot(hidden, piece.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jnp.where(tokens >= 0, logits, -jnp.inf)


def _no_logits(targets: Int[Array, "S K"], dtype: Any) -> tuple[Array, ...]:
    """What is known of logits before any: the largest, the sum of their exponentials relative to it, the target's, and
    the token of the largest."""
    zero = jnp.zeros(targets.shape, jnp.float32)
    return zero - jnp.inf, zero, zero, jnp.zeros(targets.shape, dtype)


def _add_logits(known: tuple[Array, ...], logits, tokens, targets) -> tuple[Array, ...]:
    largest, total, of_target, said = known
    here = jnp.max(logits, axis=-1)
    said = jnp.where(here > largest, tokens[jnp.argmax(logits, axis=-1)], said)
    now = jnp.maximum(largest, here)
    total = total * jnp.exp(largest - now) + jnp.sum(jnp.exp(logits - now[..., None]), axis=-1)
    of_target += jnp.sum(jnp.where(tokens == targets[..., None], logits, 0), axis=-1)
    return now, total, of_target, said


# --- positions by device ---------------------------------------------------------------------------------------------


def _by_device(x: Array) -> Array:
    """[B, L, ...] to [S, N, ...]: the N positions that each of S devices holds."""
    down, across = _parts(x.shape)
    x = x.reshape(down, x.shape[0] // down, across, x.shape[1] // across, *x.shape[2:])
    x = jnp.swapaxes(x, 1, 2).reshape(down * across, -1, *x.shape[4:])
    return rules.constrain(x, "positions", *(None,) * (x.ndim - 1))


def _by_row(x: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_by_device`; `shape` is [B, L, ...]."""
    down, across = _parts(shape)
    x = x.reshape(down, across, shape[0] // down, shape[1] // across, *shape[2:])
    x = jnp.swapaxes(x, 1, 2).reshape(shape)
    return rules.constrain(x, "batch", "length", *(None,) * (x.ndim - 2))


def _parts(shape: tuple[int, ...]) -> tuple[int, int]:
    """Into how many parts the mesh splits the rows and the length of an array [B, L, ...]."""
    mesh = jax.sharding.get_abstract_mesh()
    return (1, 1) if mesh.empty else (rules.parts("batch", shape[0], mesh), rules.parts("length", shape[1], mesh))


def _taken(x: Array, order: Int[Array, "S N"]) -> Array:
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)
