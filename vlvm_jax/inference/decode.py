"""Text from a model: one prefill over prompt and visual tokens, then one compiled loop of single-token steps."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlvm_jax.models.decoder import KVCache, init_cache
from vlvm_jax.models.params import Model, Params
from vlvm_jax.models.video_llm import Batch, VideoLLM


def prefill(model: VideoLLM, batch: Batch, slots: int) -> tuple[Float[Array, "B vocab"], KVCache]:
    """Reads prompts: logits after each row's last token, and a cache of `slots` that holds them.

    Args:
      batch: one prompt a row, `segment_ids` 1 for its tokens and 0 for the padding behind it.
    """
    cache = init_cache(model.decoder.config, len(batch.token_ids), slots, model.decoder.dtype)
    hidden, cache = model(batch, cache=cache)
    assert cache is not None
    lengths = (batch.segment_ids > 0).sum(axis=1)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return model.decoder.logits(last[:, 0]), cache


def decode_step(
    model: VideoLLM, token: Int[Array, "B 1"], positions: Int[Array, "B 1"], cache: KVCache
) -> tuple[Float[Array, "B vocab"], KVCache]:
    """Reads one more token a row: logits after it, and the cache that holds it."""
    hidden, filled = model.decoder(model.decoder.embed(token), positions, jnp.ones_like(token), cache)
    assert filled is not None
    return model.decoder.logits(hidden[:, 0]), filled


class Greedy:
    """Greedy decoding for one model; compiled once per batch shape.

    Args:
      max_new_tokens: steps of the loop, unless every row ends earlier.
      end_ids: token ids that end an answer.
    """

    def __init__(self, model: Model, *, max_new_tokens: int, end_ids: tuple[int, ...] = ()):
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.end_ids = tuple(end_ids)
        self._run = jax.jit(self._decode)

    def __call__(self, params: Params, batch: Batch) -> tuple[Int[Array, "B M"], Int[Array, "B"]]:
        """New token ids, [B, max_new_tokens] padded with 0, and how many of them each row has (its end included).

        Args:
          params: segmented for `model`.
          batch: one prompt a row, `segment_ids` 1 for its tokens and 0 for the padding behind it.
        """
        return self._run(params, batch)

    def _decode(self, params: Params, batch: Batch):
        model = self.model.bind(params)
        rows, length = batch.token_ids.shape
        lengths = (batch.segment_ids > 0).sum(axis=1)
        logits, cache = prefill(model, batch, length + self.max_new_tokens)
        first = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        tokens = jnp.zeros((rows, self.max_new_tokens), jnp.int32).at[:, 0].set(first)
        state = (jnp.int32(1), tokens, self._ends(first), cache)
        body = functools.partial(self._step, model, lengths)
        steps, tokens, done, _ = jax.lax.while_loop(self._goes_on, body, state)
        return self._finish(tokens, steps, done)

    def _goes_on(self, state) -> Bool[Array, ""]:
        step, _, done, _ = state
        return (step < self.max_new_tokens) & ~done.all()

    def _step(self, model, lengths: Int[Array, "B"], state):
        step, tokens, done, cache = state
        previous = jax.lax.dynamic_slice_in_dim(tokens, step - 1, 1, axis=1)
        positions = (lengths + step - 1)[:, None]
        logits, cache = decode_step(model, previous, positions, cache)
        token = jnp.where(done, 0, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        return step + 1, tokens, done | self._ends(token), cache

    def _ends(self, token: Int[Array, "B"]) -> Bool[Array, "B"]:
        return jnp.isin(token, jnp.asarray(self.end_ids, jnp.int32)) if self.end_ids else jnp.zeros(token.shape, bool)

    def _finish(self, tokens: Int[Array, "B M"], steps: Int[Array, ""], done: Bool[Array, "B"]):
        ends = self._ends(tokens.reshape(-1)).reshape(tokens.shape)
        until_end = jnp.argmax(ends, axis=1) + 1
        return tokens, jnp.where(done, until_end, steps)
