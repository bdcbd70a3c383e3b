"""`weighted_sampler`: FTFV-LVLM's module (arXiv 2406.08024). Few weighted tokens per frame, images left whole.

That the number of tokens of each frame is cut by a weighted token sampler is the paper's abstract; how it weights
is our reading (vlvm_jax/models/adapters/_samplers.py).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from pydantic import PositiveFloat, PositiveInt

from vlvm_jax.config import ModelConfig, Settings
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters import _samplers as samplers
from vlvm_jax.models.adapters.base import FrameLayout, Guidance, VideoAdapter, VisualTokens
from vlvm_jax.models.connector import Connector, is_tokenwise
from vlvm_jax.models.vision import VisionFeatures

Reading = Literal[
    "soft_slots",
    "scored_topk",
    "encoder_attn",
    "local_weighted_pool",
    "mean",
    "block_average",
    "stride",
    "random",
    "none",
]


class Adapter(VideoAdapter):
    """Connector, then K of N tokens per video frame: V = T*K. Frames in time order, a frame's K tokens together."""

    parameter_axes = (
        (r"sampler/(key_proj|value_proj|score/score_in)/kernel", ("embed", "small")),
        (r"sampler/(queries|score/score_out)/kernel", ("small", "small")),
        (r"sampler/(key_proj|score/score_in)/bias", ("norm",)),
        (r"(sampler/prior|temporal_embedding)", ("small", "small")),
    )

    class Options(Settings):
        """The sampler's options.

        Attributes:
        reading: which sampler; the last five are controls.
        num_tokens: K. With K >= N, or `none`, frames keep all N tokens.
        placement: sample after the connector (in decoder width) or before it (in tower width).
        apply_to_images: sample images too; by default they keep all N tokens.
        temporal_embed: `learned` adds a zero-initialised vector per frame index after the sampler.
        The others are arguments of the samplers of the same name.
        """

        reading: Reading = "soft_slots"
        num_tokens: PositiveInt = 32
        placement: Literal["after_connector", "before_connector"] = "after_connector"
        apply_to_images: bool = False
        temporal_embed: Literal["none", "learned"] = "none"
        max_frames: PositiveInt = 64
        hidden: PositiveInt = 64
        tau: PositiveFloat = 1.0
        key_net: Literal["mlp", "linear"] = "mlp"
        value_net: Literal["identity", "linear"] = "identity"
        prior: Literal["none", "grid", "learned_grid"] = "none"
        prior_sigma: PositiveFloat = 1.0
        zero_queries: bool = False
        score_net: Literal["linear", "mlp"] = "linear"
        weight: Literal["renorm", "sigmoid", "ste"] = "renorm"
        merge_rest: bool | None = None
        gumbel: bool = False

    def __init__(self, options: Options, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        vision = config.vision
        self.options = options
        decoder_width = config.decoder.hidden_size
        self.connector = Connector(config.adapter.connector, vision, decoder_width, dtype=dtype, rngs=rngs)
        self.num_patches = self.connector.num_tokens
        self.num_tokens = min(options.num_tokens, self.num_patches)
        width = decoder_width if options.placement == "after_connector" else vision.hidden_size
        _check(options, config)
        self.sampler = _make_sampler(options, width, self.num_patches, dtype=dtype, rngs=rngs)
        if self.sampler is None:
            self.num_tokens = self.num_patches
        self.temporal_embedding = (
            nnx.Param(jnp.zeros((options.max_frames, decoder_width))) if options.temporal_embed == "learned" else None
        )

    def num_video_tokens(self, num_frames: int) -> int:
        return num_frames * self.num_tokens

    def num_image_tokens(self) -> int:
        return self.num_tokens if self.options.apply_to_images else self.num_patches

    @property
    def slots_per_frame(self) -> int:
        return self.num_tokens if self.options.apply_to_images else self.num_patches

    def __call__(
        self,
        features: VisionFeatures,
        layout: FrameLayout,
        *,
        guidance: Guidance | None = None,
        rng: jax.Array | None = None,
    ) -> VisualTokens:
        whole, sampled = self._tokens(features, rng)
        if self.temporal_embedding is not None:
            index = jnp.minimum(layout.index_in_medium, self.options.max_frames - 1)
            sampled = sampled + self.temporal_embedding[...][index][:, :, None].astype(sampled.dtype)
        if self.options.apply_to_images:
            tokens, kept = sampled, jnp.full(layout.media.shape, self.num_tokens)
        else:
            # One slot layout for images and clips: N slots a frame, of which a clip's frame fills the first K.
            padded = jnp.pad(sampled, ((0, 0), (0, 0), (0, self.num_patches - self.num_tokens), (0, 0)))
            tokens = jnp.where(layout.is_video[:, :, None, None], padded, whole)
            kept = jnp.where(layout.is_video, self.num_tokens, self.num_patches)
        batch, num_frames, slots, width = tokens.shape
        valid = layout.mask[:, :, None] & (jnp.arange(slots) < kept[:, :, None])
        return VisualTokens(tokens.reshape(batch, num_frames * slots, width), valid.reshape(batch, num_frames * slots))

    def _tokens(self, features: VisionFeatures, rng) -> tuple[Float[Array, "B T N C"], Float[Array, "B T K C"]]:
        """All tokens of each frame, and the sampled ones, both in decoder width."""
        whole = self.connector(features.patches)
        if self.sampler is None:
            return whole, whole
        if self.options.placement == "after_connector":
            return whole, self.sampler(whole, attention=features.attention, rng=rng)
        sampled = self.sampler(features.patches, attention=features.attention, rng=rng)
        return whole, self.connector(sampled)

    def frame_weights(
        self, features: VisionFeatures, layout: FrameLayout, guidance: Guidance | None = None
    ) -> Float[Array, "B T N"] | None:
        if self.sampler is None:
            return None
        after = self.options.placement == "after_connector"
        x = self.connector(features.patches) if after else features.patches
        return self.sampler.weights(x, attention=features.attention).sum(2)


def _check(options: Adapter.Options, config: ModelConfig) -> None:
    if not is_tokenwise(config.adapter.connector):
        kind = config.adapter.connector.kind
        if options.placement == "before_connector":
            raise InputError(
                f"config.model.adapter.options.placement: before_connector leaves the {kind} connector no grid to "
                "read; use after_connector"
            )
        if options.reading == "encoder_attn":
            raise InputError(
                f"config.model.adapter.options.reading: encoder_attn ranks the tower's patches, which the {kind} "
                "connector joins before they are sampled; use another reading"
            )
    if options.reading == "encoder_attn" and config.vision.attention_layer is None:
        raise InputError(
            "config.model.adapter.options.reading: encoder_attn ranks patches by the tower's attention; set "
            "config.model.vision.attention_layer to the layer to read"
        )
    if (
        options.reading == "scored_topk"
        and options.weight == "renorm"
        and options.num_tokens - bool(options.merge_rest) == 1
    ):
        raise InputError(
            "config.model.adapter.options.weight: renorm gives a single kept token the weight 1 whatever its score, so "
            "the scorer would never learn; use sigmoid or ste, or more num_tokens"
        )
    if options.merge_rest and options.num_tokens < 2:
        raise InputError("config.model.adapter.options.merge_rest: needs num_tokens >= 2, one of which is the rest")


def _make_sampler(options: Adapter.Options, width: int, num_patches: int, *, dtype, rngs) -> samplers.Sampler | None:
    slots = options.num_tokens
    if options.reading == "none" or slots >= num_patches:
        return None
    match options.reading:
        case "soft_slots":
            return samplers.SoftSlots(
                width,
                slots,
                num_patches,
                hidden=options.hidden,
                tau=options.tau,
                key_net=options.key_net,
                value_net=options.value_net,
                prior=options.prior,
                prior_sigma=options.prior_sigma,
                zero_queries=options.zero_queries,
                dtype=dtype,
                rngs=rngs,
            )
        case "scored_topk":
            return samplers.ScoredTopK(
                width,
                slots,
                score_net=options.score_net,
                hidden=options.hidden,
                weight=options.weight,
                merge_rest=bool(options.merge_rest),
                gumbel=options.gumbel,
                dtype=dtype,
                rngs=rngs,
            )
        case "encoder_attn":
            merge = slots > 1 if options.merge_rest is None else options.merge_rest
            return samplers.EncoderAttention(slots, merge_rest=merge)
        case "local_weighted_pool":
            return samplers.LocalWeightedPool(
                width,
                slots,
                num_patches,
                score_net=options.score_net,
                hidden=options.hidden,
                dtype=dtype,
                rngs=rngs,
            )
        case "random":
            return samplers.RandomK(slots)
        case kind:
            return samplers.FixedWeights(kind, slots, num_patches)
