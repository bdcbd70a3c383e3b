"""A CLIP beside the model's own tower: texts and frames as vectors of one space. Names follow HF's `CLIPModel`."""

import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlvm_jax.config import ClipConfig
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.text_encoder import TextTower
from vlvm_jax.models.vision import VisionTower

TEMPERATURE = 0.07  # with which CLIP begins to train (arXiv 2103.00020, section 2.5)


class Clip(nnx.Module):
    """A CLIP, or its text side beside another tower.

    Args:
    config: `vision` None: the images' side is another module's tower, of `image_width`.
    image_width: width of the tower that gives `final`.
    dtype: of the computation, unless the config has its own.
    """

    def __init__(self, config: ClipConfig, image_width: int, *, dtype, remat: str = "none", rngs: nnx.Rngs):
        self.config = config
        dtype = dtype if config.dtype is None else jnp.dtype(config.dtype)

        def projection(inputs: int) -> Linear:
            init = nnx.initializers.normal(inputs**-0.5)
            return Linear(inputs, config.projection_dim, use_bias=False, dtype=dtype, kernel_init=init, rngs=rngs)

        self.text_model = TextTower(config.text, dtype=dtype, remat=remat, rngs=rngs)
        self.text_projection = projection(config.text.hidden_size)
        self.vision_model = (
            None if config.vision is None else VisionTower(config.vision, dtype=dtype, remat=remat, rngs=rngs)
        )
        self.visual_projection = projection(image_width)
        self.logit_scale = nnx.Param(jnp.asarray(-math.log(TEMPERATURE)))

    def texts(self, token_ids: Int[Array, "B P"]) -> Float[Array, "B E"]:
        """HF's `text_embeds`, not yet of length 1."""
        return self.text_projection(self.text_model(token_ids))

    def images(self, tower: VisionTower, final: Float[Array, "B T M D"]) -> Float[Array, "B T E"]:
        """HF's `image_embeds`, not yet of length 1: the class token after the last layer norm, projected."""
        return self.visual_projection(tower.post_layernorm(final[:, :, 0]))

    def patches(
        self, tower: VisionTower, final: Float[Array, "B T M D"], *, post_norm: bool
    ) -> Float[Array, "B T N E"]:
        """The patches through the same projection, for which CLIP was not trained.

        Args:
          post_norm: with the last layer norm, of which CLIP's training only saw the class token.
        """
        patches = final[:, :, 1:]
        return self.visual_projection(tower.post_layernorm(patches) if post_norm else patches)


def resized(frames: UInt8[Array, "B T H W 3"], size: int) -> UInt8[Array, "B T S S 3"]:
    """The frames for a tower of another image size (bicubic, antialiased); as they are for the same size."""
    if frames.shape[2:4] == (size, size):
        return frames
    shape = (*frames.shape[:2], size, size, 3)
    pixels = jax.image.resize(frames.astype(jnp.float32), shape, "cubic", antialias=True)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


def cosine(text: Float[Array, "B E"], images: Float[Array, "B *K E"], dtype=jnp.float32) -> Float[Array, "B *K"]:
    """Cosine of each row's text with each of its vectors, worked out in `dtype` and given in fp32."""
    text, images = (_unit(x.astype(dtype)) for x in (text, images))
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("be,b...e->b...", text, images, precision=precision).astype(jnp.float32)


def contrastive_losses(
    texts: Float[Array, "B E"], images: Float[Array, "B E"], logit_scale: Float[Array, ""], valid: Bool[Array, "B"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """CLIP's symmetric loss over the pairs of a batch: every image against all texts, every text against all images.

    Returns:
      Sums in fp32 over the valid rows: the mean of a row's two cross-entropies, the number of rows, how many images
      are nearest to their own text.
    """
    texts, images = (_unit(x.astype(jnp.float32)) for x in (texts, images))
    logits = jnp.exp(logit_scale.astype(jnp.float32)) * jnp.einsum(
        "ie,te->it", images, texts, precision=jax.lax.Precision.HIGHEST
    )
    own = jnp.arange(len(logits))
    # A row that is no pair is nobody's alternative; its own losses are left out below.
    logits = jnp.where(valid[None, :] & valid[:, None], logits, jnp.where(jnp.eye(len(own), dtype=bool), 0.0, -jnp.inf))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    right = (jnp.argmax(logits, axis=1) == own) & valid
    return jnp.sum(losses * valid), jnp.sum(valid, dtype=jnp.float32), jnp.sum(right, dtype=jnp.float32)


def _unit(x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    """Of length 1; zero stays zero, and has a gradient of zero."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(x.dtype).tiny))
