"""`frames`: every frame is an image; its tokens go to the decoder as they are, or pooled within the frame.

The plain baseline, T2Vid's network, and, by its options (`FrameTokens`), what transformers' VLM classes do with clips;
also LLaVA-Video's way, with a newline after every row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlvm_jax.config import FrameTokens, ModelConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters.base import FrameLayout, Guidance, VideoAdapter, VisualTokens
from vlvm_jax.models.connector import Connector, is_tokenwise
from vlvm_jax.models.vision import VisionFeatures


class Adapter(VideoAdapter):
    """Connector per frame: V = T*N, or T*K when the frames of clips are pooled. Images are never pooled."""

    Options = FrameTokens
    stock = True
    parameter_axes = ((r"image_newline", ("norm",)),)

    def __init__(self, options: FrameTokens, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        self.options = options
        width = config.decoder.hidden_size
        self.connector = Connector(config.adapter.connector, config.vision, width, dtype=dtype, rngs=rngs)
        self.num_patches = self.connector.num_tokens
        before = options.pool_place == "before_connector"
        if before and options.pool != "none" and not is_tokenwise(config.adapter.connector):
            raise InputError(
                "config.model.adapter.options.pool_place: before_connector leaves the "
                f"{config.adapter.connector.kind} connector no grid to read; use after_connector"
            )
        self.num_pooled = pooled_size(options.pool, options.pool_stride, self.num_patches)
        self.newlines = self._newlines_per_frame()
        self.num_tokens = self.num_pooled + self.newlines
        newline = nnx.initializers.normal(width**-0.5)
        self.image_newline = None if options.newline == "none" else nnx.Param(newline(rngs.params(), (width,)))

    @classmethod
    def frame_tokens(cls, options: FrameTokens) -> FrameTokens:
        return options

    def _newlines_per_frame(self) -> int:
        """Of frames of clips; 0 where one newline ends a clip, or none."""
        place = self.options.newline_place
        if place == "end" or self.options.newline not in ("video", "all"):
            return 0
        count = 1 if place == "frame" else _side(self.num_pooled)
        if self.num_pooled + count > self.num_patches + 1:
            raise InputError(
                f"config.model.adapter.options.newline_place: {place!r} gives a frame {self.num_pooled} tokens and "
                f"{count} newlines, more than the {self.num_patches} tokens of an image and one; pool frames"
            )
        return count

    def num_video_tokens(self, num_frames: int) -> int:
        ending = self.options.newline in ("video", "all") and not self.newlines
        return num_frames * self.num_tokens + ending

    def num_image_tokens(self) -> int:
        return self.num_patches + (self.options.newline in ("image", "all"))

    @property
    def slots_per_frame(self) -> int:
        return self.num_patches + (self.image_newline is not None)

    def __call__(
        self,
        features: VisionFeatures,
        layout: FrameLayout,
        *,
        guidance: Guidance | None = None,
        rng: jax.Array | None = None,
    ) -> VisualTokens:
        """Slots of a frame: N for its tokens, of which a pooled one fills the first K, then one for the newline.

        Where clips have newlines within, their frames fill the first slots with tokens and newlines in order.
        """
        tokens = self.connector(features.patches)
        kept = jnp.full(layout.media.shape, self.num_patches)
        if self.options.pool != "none":
            pooled = jnp.pad(self._pooled(features, tokens), ((0, 0), (0, 0), (0, self._spare), (0, 0)))
            tokens = jnp.where(layout.is_video[:, :, None, None], pooled, tokens)
            kept = jnp.where(layout.is_video, self.num_pooled, self.num_patches)
        valid = layout.mask[:, :, None] & (jnp.arange(self.num_patches) < kept[:, :, None])
        if self.image_newline is not None:
            newline = jnp.broadcast_to(self.image_newline[...].astype(tokens.dtype), tokens[:, :, :1].shape)
            tokens = jnp.concatenate([tokens, newline], axis=2)
            valid = jnp.concatenate([valid, self._newline_after(layout)[:, :, None]], axis=2)
        if self.newlines:
            is_video, order = layout.is_video[:, :, None], self._order()
            tokens = jnp.where(is_video[..., None], tokens[:, :, order], tokens)
            taken = layout.mask[:, :, None] & (jnp.arange(len(order)) < self.num_tokens)
            valid = jnp.where(is_video, taken, valid)
        batch, num_frames, slots, width = tokens.shape
        return VisualTokens(tokens.reshape(batch, num_frames * slots, width), valid.reshape(batch, num_frames * slots))

    @property
    def _spare(self) -> int:
        return self.num_patches - self.num_pooled

    def _order(self) -> np.ndarray:
        """[N + 1] slots in the order in which a frame of a clip shows them; the spare ones come last."""
        rows = np.arange(self.num_pooled).reshape(self.newlines, -1)
        shown = np.concatenate([rows, np.full((self.newlines, 1), self.num_patches)], axis=1).reshape(-1)
        return np.pad(shown, (0, self.num_patches + 1 - len(shown)))

    def _pooled(self, features: VisionFeatures, tokens: Float[Array, "B T N C"]) -> Float[Array, "B T K C"]:
        pool, stride = self.options.pool, self.options.pool_stride
        if self.options.pool_place == "before_connector":
            return self.connector(pool_patches(features.patches, pool, stride))
        return pool_patches(tokens, pool, stride)

    def _newline_after(self, layout: FrameLayout) -> Bool[Array, "B T"]:
        following = jnp.pad(layout.media[:, 1:], ((0, 0), (0, 1)))
        last = layout.mask & (layout.media != following)
        kinds = {"image": ~layout.is_video, "video": layout.is_video, "all": True}
        return last & kinds[self.options.newline]


def pooled_size(pool: str, stride: int, num_patches: int) -> int:
    """Tokens of a pooled frame."""
    if pool == "none":
        return num_patches
    side = _side(num_patches)
    pooled = -(-side // stride) if pool == "bilinear" else side // stride
    if not pooled:
        raise InputError(
            f"config.model.adapter.options.pool_stride: {stride} is larger than the grid of {side} x {side} patches"
        )
    return pooled**2


def pool_patches(x: Float[Array, "B T N D"], pool: str, stride: int) -> Float[Array, "B T K D"]:
    """Pools each frame's square grid of patches; raster order in and out."""
    batch, num_frames, num_patches, width = x.shape
    side = _side(num_patches)
    if pool == "bilinear":
        weights = bilinear_weights(side, -(-side // stride))
        return jnp.einsum("kn,btnd->btkd", jnp.asarray(weights, x.dtype), x)
    pooled = side // stride
    squares = x.reshape(batch, num_frames, side, side, width)[:, :, : pooled * stride, : pooled * stride]
    squares = squares.reshape(batch, num_frames, pooled, stride, pooled, stride, width)
    reduce = jnp.mean if pool == "average" else jnp.max
    return reduce(squares, axis=(3, 5)).reshape(batch, num_frames, pooled**2, width)


def bilinear_weights(side: int, resized: int) -> np.ndarray:
    """[K, N] weights of torch's `interpolate(mode="bilinear", align_corners=False)` from side^2 to resized^2 points."""
    centres = np.maximum((np.arange(resized) + 0.5) * side / resized - 0.5, 0)
    low = np.floor(centres).astype(int)
    high = np.minimum(low + 1, side - 1)
    axis = np.zeros((resized, side))
    np.add.at(axis, (np.arange(resized), low), 1 - (centres - low))
    np.add.at(axis, (np.arange(resized), high), centres - low)
    return np.einsum("ab,cd->acbd", axis, axis).reshape(resized**2, side**2).astype(np.float32)


def _side(num_patches: int) -> int:
    return round(num_patches**0.5)  # towers are square, and so is what pixel_shuffle leaves
