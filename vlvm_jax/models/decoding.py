"""Text from a model: one prefill over prompt and visual tokens, then single-token steps, many in one compiled loop."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from vlvm_jax.models.adapters.base import Features
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoder import KVCache, init_cache
from vlvm_jax.models.video_llm import VideoLLM

NOTHING = -1  # in the place of a token that was not said


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; in its place, None takes the likeliest.

    Attributes:
      temperature: logits are divided by it, > 0.
      top_p: tokens are drawn from the fewest likeliest ones that have this probability together.
      keys: [B, 2] of each row, so that what a row says does not depend on its neighbours.
    """

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    keys: UInt32[Array, "B 2"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
    """When rows end.

    Attributes:
      end_ids: [E] tokens that end an answer.
      most: [B] tokens that each row may have.
    """

    end_ids: Int[Array, "E"]
    most: Int[Array, "B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a batch of answers is.

    Attributes:
      cache: of all that was read.
      token: [B] the last token of each row, which is not yet read.
      position: [B] where it goes.
      count: [B] tokens each row has.
      done: [B].
    """

    cache: KVCache
    token: Int[Array, "B"]
    position: Int[Array, "B"]
    count: Int[Array, "B"]
    done: Bool[Array, "B"]


def prefill_step(
    model: VideoLLM, batch: Batch, slots: int, features: Features | None = None
) -> tuple[Float[Array, "B vocab"], KVCache]:
    """Reads prompts: logits after each row's last token, and a cache of `slots` that holds them.

    Args:
      batch: one prompt a row, `segment_ids` 1 for its tokens and 0 for the padding behind it.
      features: of the batch's frames, where they were encoded before.
    """
    cache = init_cache(model.decoder.config, len(batch.token_ids), slots, model.decoder.dtype)
    hidden, cache = model(batch, cache=cache, features=features)
    assert cache is not None
    last = jnp.take_along_axis(hidden, (_lengths(batch) - 1)[:, None, None], axis=1)
    return model.decoder.logits(last[:, 0]), cache


def decode_step(
    model: VideoLLM, token: Int[Array, "B 1"], positions: Int[Array, "B 1"], cache: KVCache
) -> tuple[Float[Array, "B vocab"], KVCache]:
    """Reads one more token a row: logits after it, and the cache that holds it."""
    hidden, filled = model.decoder(model.decoder.embed(token), positions, jnp.ones_like(token), cache)
    assert filled is not None
    return model.decoder.logits(hidden[:, 0]), filled


def prefill(
    model: VideoLLM,
    batch: Batch,
    slots: int,
    limits: Limits,
    sampling: Sampling | None = None,
    features: Features | None = None,
) -> Progress:
    """Reads prompts and says the first token of each answer. Rows without a prompt are done."""
    logits, cache = prefill_step(model, batch, slots, features)
    lengths = _lengths(batch)
    count = jnp.zeros(len(lengths), jnp.int32)
    token = choose(logits, count, sampling)
    progress = Progress(cache, token, lengths, count + 1, lengths == 0)
    return dataclasses.replace(progress, done=progress.done | _ends(progress, limits))


def decode(
    model: VideoLLM, progress: Progress, steps: int, limits: Limits, sampling: Sampling | None = None
) -> tuple[Progress, Int[Array, "B steps"]]:
    """Says up to `steps` more tokens a row, with `NOTHING` behind the end of an answer; ends when all rows are done."""
    tokens = jnp.full((len(progress.token), steps), NOTHING, jnp.int32)

    def more(state) -> Bool[Array, ""]:
        step, progress, _ = state
        return (step < steps) & ~progress.done.all()

    def body(state):
        step, before, tokens = state
        logits, cache = decode_step(model, before.token[:, None], before.position[:, None], before.cache)
        token = jnp.where(before.done, before.token, choose(logits, before.count, sampling))
        said = (~before.done).astype(jnp.int32)
        after = Progress(cache, token, before.position + 1, before.count + said, before.done)
        after = dataclasses.replace(after, done=after.done | _ends(after, limits))
        shown = jnp.where(before.done, NOTHING, token)
        return step + 1, after, jax.lax.dynamic_update_slice_in_dim(tokens, shown[:, None], step, axis=1)

    _, progress, tokens = jax.lax.while_loop(more, body, (jnp.int32(0), progress, tokens))
    return progress, tokens


def generate(
    model: VideoLLM,
    batch: Batch,
    max_new_tokens: int,
    end_ids: tuple[int, ...] = (),
    sampling: Sampling | None = None,
) -> tuple[Int[Array, "B M"], Int[Array, "B"]]:
    """Whole answers in one program: token ids, `NOTHING` behind them, and how many (their end included)."""
    rows, length = batch.token_ids.shape
    limits = Limits(jnp.asarray(end_ids, jnp.int32), jnp.full(rows, max_new_tokens, jnp.int32))
    start = prefill(model, batch, length + max_new_tokens, limits, sampling)
    end, tokens = decode(model, start, max_new_tokens - 1, limits, sampling)
    return jnp.concatenate([start.token[:, None], tokens], axis=1), end.count


def choose(logits: Float[Array, "B vocab"], count: Int[Array, "B"], sampling: Sampling | None) -> Int[Array, "B"]:
    """The next token of each row.

    Args:
      count: tokens that the rows have; with the row's key it makes what is drawn.
    """
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = nucleus(logits / sampling.temperature, sampling.top_p)
    keys = jax.vmap(jax.random.fold_in)(sampling.keys, count)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


def nucleus(logits: Float[Array, "B vocab"], top_p: Float[Array, ""]) -> Float[Array, "B vocab"]:
    """Top-p sampling (arXiv 1904.09751): minus infinity but for the fewest likeliest tokens that have `top_p` together.

    Of tokens that are equally likely, the ones with the lower ids come first. The likeliest always stays.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ordered = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    keep = (before < top_p).at[:, 0].set(True)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(keep, rank, axis=-1), logits, -jnp.inf)


def _lengths(batch: Batch) -> Int[Array, "B"]:
    return (batch.segment_ids > 0).sum(axis=1)


def _ends(progress: Progress, limits: Limits) -> Bool[Array, "B"]:
    return jnp.isin(progress.token, limits.end_ids) | (progress.count >= limits.most)
