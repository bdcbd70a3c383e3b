"""VideoLLM = tower + adapter + decoder, and the merge of visual tokens into the text."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlvm_jax.config import ModelConfig
from vlvm_jax.models.adapters import build_adapter
from vlvm_jax.models.adapters.base import Features, FrameLayout, Guidance, VisualTokens
from vlvm_jax.models.batch import Batch, next_tokens
from vlvm_jax.models.decoder import Decoder, KVCache
from vlvm_jax.models.lora import attach
from vlvm_jax.models.vision import VisionTower
from vlvm_jax.parallel.rules import constrain


class VideoLLM(nnx.Module):
    """Reads frames and text, gives the decoder's hidden states.

    Args:
      splits: where to cut the layer stacks, `{"encoder": (20,), "decoder": ()}`; see `models.stack`.
    """

    def __init__(self, config: ModelConfig, *, splits: dict[str, tuple[int, ...]] | None = None, rngs: nnx.Rngs):
        splits = splits or {}
        dtype = jnp.dtype(config.dtype)
        self.encoder = VisionTower(
            config.vision, dtype=dtype, remat=config.vision_remat, splits=splits.get("encoder", ()), rngs=rngs
        )
        self.adapter = build_adapter(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            config.decoder, dtype=dtype, remat=config.decoder_remat, splits=splits.get("decoder", ()), rngs=rngs
        )
        if config.lora is not None:
            attach({"encoder": self.encoder, "decoder": self.decoder}, config.lora, rngs=rngs)

    def encode_media(self, frames: UInt8[Array, "B T H W 3"]) -> Features:
        """All of the image side that does not depend on a question, and can be kept for the next one.

        Every array in it has the leading axes B T, so that features of clips can be put side by side.
        """
        return self.adapter.encode_media(self.encoder, frames)

    def visual_tokens(
        self, features: Features, layout: FrameLayout, guidance: Guidance | None = None, rng=None
    ) -> VisualTokens:
        """What the decoder reads of what `encode_media` gave."""
        return self.adapter(features, layout, guidance=guidance, rng=rng)

    def embed(
        self, batch: Batch, rng: jax.Array | None = None, features: Features | None = None
    ) -> Float[Array, "B L C"]:
        """Text embeddings with the visual tokens in their places."""
        features = self.encode_media(batch.frames) if features is None else features
        visual = self.visual_tokens(features, batch.layout, batch.guidance, rng)
        text = self.decoder.embed(jnp.where(batch.media_mask, 0, batch.token_ids))
        if batch.visual_index is not None and batch.visual_weight is not None:
            merged = merge_indexed(text, batch.media_mask, visual, batch.visual_index, batch.visual_weight)
        else:
            merged = merge(text, batch.media_mask, visual)
        return constrain(merged, "batch", "length", None)

    def __call__(
        self,
        batch: Batch,
        *,
        cache: KVCache | None = None,
        features: Features | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[Float[Array, "B L C"], KVCache | None]:
        """Final hidden states of every position (apply `decoder.logits`), and the filled cache if one was given.

        Args:
          cache: an empty one, to be filled.
          features: of `encode_media`; then the batch's frames are not looked at and may be of no size.
        """
        embedded = self.embed(batch, rng, features)
        return self.decoder(embedded, batch.positions, batch.segment_ids, cache, prefill=True)


def merge(text: Float[Array, "B L C"], media_mask: Bool[Array, "B L"], visual: VisualTokens) -> Float[Array, "B L C"]:
    """Puts the i-th valid visual token of a row at the row's i-th marked position.

    A cumulative sum and a gather: static shapes, and the gradient of a gather is exact.
    """
    rank = jnp.cumsum(media_mask, axis=1)
    valid_so_far = jnp.cumsum(visual.valid, axis=1)
    find = jax.vmap(lambda counts, wanted: jnp.searchsorted(counts, wanted, method="scan_unrolled"))
    source = jnp.minimum(find(valid_so_far, rank), visual.tokens.shape[1] - 1)
    gathered = jnp.take_along_axis(visual.tokens, source[..., None], axis=1)
    return jnp.where(media_mask[..., None], gathered.astype(text.dtype), text)


def merge_indexed(
    text: Float[Array, "B L C"],
    media_mask: Bool[Array, "B L"],
    visual: VisualTokens,
    index: Int[Array, "B L P"],
    weight: Float[Array, "B L P"],
) -> Float[Array, "B L C"]:
    """Puts a weighted sum of P slots of `visual` at each marked position."""
    merged = jnp.zeros(text.shape, jnp.float32)
    for tap in range(index.shape[-1]):
        taken = jnp.take_along_axis(visual.tokens, index[..., tap, None], axis=1)
        merged = merged + weight[..., tap, None] * taken.astype(jnp.float32)
    return jnp.where(media_mask[..., None], merged.astype(text.dtype), text)


def right_tokens(model: VideoLLM, hidden: Float[Array, "B L C"], batch: Batch) -> tuple[Array, Array, Array]:
    """Per position: is the next token a learned one, would greedy decoding say it, and what it would say."""
    targets, learned = next_tokens(batch)
    said = jnp.argmax(model.decoder.logits(hidden), axis=-1)
    return learned, (said == targets) & learned, said
