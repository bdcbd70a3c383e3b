"""`patch_words`: learns which words say what is at each patch. It makes a tower; it is no paper's system.

An image model that has to find things by their traits needs a tower whose patches tell the traits apart. Questions
teach that slowly: an image of 64 patches has one word of answer. Here each patch has words of its own to learn, and the
decoder is not run. The tower and the connector are kept (`init_from`), the words' layer is not.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float
from pydantic import PositiveInt

from vlvm_jax.config import ModelConfig, Settings
from vlvm_jax.models.adapters.base import (
    FrameLayout,
    Guidance,
    LearnsByItself,
    Losses,
    VideoAdapter,
    VisualTokens,
)
from vlvm_jax.models.connector import Connector
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.vision import VisionFeatures

_PADDING = 0  # the token of a patch that has no word


class Adapter(VideoAdapter, LearnsByItself):
    """Connector per frame, and a layer that says `words` words of each of its tokens."""

    needs_prompt = True
    parameter_axes = ((r"words/kernel", ("embed", "vocab")),)

    class Options(Settings):
        """What is said of a patch.

        Attributes:
          words: how many words; the prompt names the first one of every patch in reading order, then the second ones,
            between its start and its end token.
        """

        words: PositiveInt = 1

    def __init__(self, options: Options, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        self.options = options
        width, self.vocab_size = config.decoder.hidden_size, config.decoder.vocab_size
        self.connector = Connector(config.adapter.connector, config.vision, width, dtype=dtype, rngs=rngs)
        self.num_patches = self.connector.num_tokens
        self.words = Linear(width, options.words * self.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)

    def num_video_tokens(self, num_frames: int) -> int:
        return num_frames * self.num_patches

    def num_image_tokens(self) -> int:
        return self.num_patches

    @property
    def slots_per_frame(self) -> int:
        return self.num_patches

    @property
    def prompt_length(self) -> int:
        return self.options.words * self.num_patches + 2

    def __call__(
        self,
        features: VisionFeatures,
        layout: FrameLayout,
        *,
        guidance: Guidance | None = None,
        rng: jax.Array | None = None,
    ) -> VisualTokens:
        del guidance, rng
        tokens = self.connector(features.patches)
        valid = jnp.broadcast_to(layout.mask[:, :, None], tokens.shape[:3])
        return VisualTokens(tokens.reshape(len(tokens), -1, tokens.shape[-1]), valid.reshape(len(tokens), -1))

    def own_losses(self, features: VisionFeatures, layout: FrameLayout, guidance: Guidance | None = None) -> Losses:
        """Cross-entropy of the words of the patches of each row's first frame.

        A token is read as the decoder's first layer reads it, at unit size: it has to differ in direction.
        """
        if guidance is None:
            raise ValueError("patch_words learns from the prompt: give guidance, in a batch `prompt_ids`")
        said = self._logits(features.patches[:, 0])
        labels = guidance.prompt_ids[:, 1:-1].reshape(len(said), self.options.words, self.num_patches)
        labels = jnp.swapaxes(labels, 1, 2)
        learned = layout.mask[:, :1, None] & (labels != _PADDING)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(said, labels)
        right = (jnp.argmax(said, axis=-1) == labels) & learned
        count = jnp.sum(learned, dtype=jnp.float32)
        return jnp.sum(loss * learned), count, jnp.sum(right, dtype=jnp.float32)

    def _logits(self, patches: Float[Array, "B N D"]) -> Float[Array, "B N words V"]:
        tokens = self.connector(patches).astype(jnp.float32)
        tokens = tokens * jax.lax.rsqrt(jnp.mean(tokens**2, axis=-1, keepdims=True) + 1e-6)
        said: Any = self.words(tokens).astype(jnp.float32)
        return said.reshape(*said.shape[:2], self.options.words, self.vocab_size)
