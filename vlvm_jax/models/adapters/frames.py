"""`frames`: every frame is an image; its tokens go to the decoder as they are (T2Vid, and the plain baseline)."""

import jax
import jax.numpy as jnp
from flax import nnx

from vlvm_jax.config import ModelConfig, Settings
from vlvm_jax.models.adapters.base import FrameLayout, VideoAdapter, VisualTokens
from vlvm_jax.models.connector import Connector
from vlvm_jax.models.vision import VisionFeatures


class Adapter(VideoAdapter):
    """Connector per frame: V = T*N."""

    class Options(Settings):
        pass

    def __init__(self, options: Options, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        del options
        vision = config.vision
        self.num_patches = vision.num_patches
        self.connector = Connector(
            config.adapter.connector, vision.hidden_size, config.decoder.hidden_size, dtype=dtype, rngs=rngs
        )

    def num_video_tokens(self, num_frames: int) -> int:
        return num_frames * self.num_patches

    def num_image_tokens(self) -> int:
        return self.num_patches

    def __call__(self, features: VisionFeatures, layout: FrameLayout, *, rng: jax.Array | None = None) -> VisualTokens:
        tokens = self.connector(features.patches)
        batch, num_frames, num_patches, width = tokens.shape
        return VisualTokens(
            tokens.reshape(batch, num_frames * num_patches, width), jnp.repeat(layout.mask, num_patches, axis=1)
        )
