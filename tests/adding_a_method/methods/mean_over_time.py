"""`mean_over_time`: a clip becomes one frame, the mean of its frames, each scaled by what is learned for its place.

It is here to prove that a method is one file and one recipe; no paper has it.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveInt

from vlvm_jax.config import ModelConfig, Settings
from vlvm_jax.models.adapters.base import FrameLayout, Guidance, VideoAdapter, VisualTokens
from vlvm_jax.models.connector import Connector
from vlvm_jax.models.vision import VisionFeatures


class Adapter(VideoAdapter):
    """Connector per frame, then the mean over a clip's frames. An image is a clip of one frame."""

    class Options(Settings):
        """Attributes:
        max_frames: of a clip.
        """

        max_frames: PositiveInt = 8

    parameter_axes = ((r"frame_scale", ("small", "small")),)

    def __init__(self, options: Options, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        width = config.decoder.hidden_size
        self.connector = Connector(config.adapter.connector, config.vision, width, dtype=dtype, rngs=rngs)
        self.frame_scale = nnx.Param(jnp.ones((options.max_frames, width)))

    def num_video_tokens(self, num_frames: int) -> int:
        return self.connector.num_tokens if num_frames else 0

    def num_image_tokens(self) -> int:
        return self.connector.num_tokens

    def __call__(
        self,
        features: VisionFeatures,
        layout: FrameLayout,
        *,
        guidance: Guidance | None = None,
        rng: jax.Array | None = None,
    ) -> VisualTokens:
        """The tokens of a medium stand in the slots of its first frame."""
        place = layout.index_in_medium
        tokens = self.connector(features.patches)  # [B, T, N, C]
        tokens = tokens * self.frame_scale[...].astype(tokens.dtype)[place][:, :, None]
        same = (layout.media[:, :, None] == layout.media[:, None, :]) & layout.mask[:, None, :]
        share = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
        means = jnp.einsum("btu,bunc->btnc", share.astype(tokens.dtype), tokens)
        batch, frames, patches, width = means.shape
        valid = jnp.repeat(layout.mask & (place == 0), patches, axis=1)
        return VisualTokens(means.reshape(batch, frames * patches, width), valid)
