"""From tower width to decoder width: the projectors of the LLaVA family (HF: `multi_modal_projector`) and others."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlvm_jax.config import ConnectorConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.resampler import Resampler, grid_positions


class Connector(nnx.Module):
    """Features of one frame to tokens in decoder width.

    `linear`: one affine map. `mlp2x_gelu`: affine, exact GELU, affine (LLaVA-1.5). `pixel_shuffle`: each square of
    `scale_factor` x `scale_factor` patches joined to one token, then a linear map (Idefics3, SmolVLM).
    `pixel_shuffle_mlp`: the same squares, a layer norm, affine, exact GELU, affine (InternVL). `resampler`:
    `num_queries` learned queries read the frame by cross-attention (Qwen-VL).

    Names follow HF's `multi_modal_projector.linear_1` / `linear_2` and `connector.modality_projection.proj`.
    """

    def __init__(self, config: ConnectorConfig, vision: VisionConfig, out_features: int, *, dtype, rngs: nnx.Rngs):
        self.kind = config.kind
        self.scale_factor = config.scale_factor
        self.grid = vision.grid
        self.num_tokens = num_tokens(config, vision)
        width = vision.hidden_size

        def linear(inputs):
            return Linear(inputs, out_features, use_bias=config.bias, dtype=dtype, rngs=rngs)

        shuffled = width * config.scale_factor**2
        project = config.kind == "pixel_shuffle"
        self.modality_projection = ModalityProjection(shuffled, out_features, dtype, rngs) if project else None
        resample = config.kind == "resampler"
        self.resampler = (
            Resampler(width, out_features, config.num_queries, dtype=dtype, rngs=rngs) if resample else None
        )
        normed = config.kind == "pixel_shuffle_mlp"
        self.layer_norm = nnx.LayerNorm(shuffled, epsilon=1e-5, dtype=dtype, rngs=rngs) if normed else None
        self.linear_1 = None if project or resample else linear(shuffled if normed else width)
        self.linear_2 = linear(out_features) if config.kind in ("mlp2x_gelu", "pixel_shuffle_mlp") else None

    def __call__(self, features: Float[Array, "*batch N D"]) -> Float[Array, "*batch M C"]:
        """`linear` and `mlp2x_gelu` work token by token, so N may be any number for them."""
        if self.modality_projection is not None:
            return self.modality_projection.proj(self._shuffle(features))
        if self.resampler is not None:
            return self._resample(self.resampler, features)
        assert self.linear_1 is not None
        if self.layer_norm is not None:
            features = self.layer_norm(self._shuffle(features))
        hidden = self.linear_1(features)
        if self.linear_2 is None:
            return hidden
        return self.linear_2(jax.nn.gelu(hidden, approximate=False))

    def _resample(self, resampler: Resampler, features: Float[Array, "*batch N D"]) -> Float[Array, "*batch M C"]:
        *batch, length, width = features.shape
        of = round(resampler.num_queries**0.5)
        places = jnp.asarray(grid_positions(self.grid, resampler.query.shape[-1], of=of))
        tokens = resampler(features.reshape(-1, length, width), places)
        return tokens.reshape(*batch, *tokens.shape[2:])

    def _shuffle(self, features: Float[Array, "*batch N D"]) -> Float[Array, "*batch M E"]:
        """Raster order in and out; within a joined token: rows, then columns, then channels."""
        *batch, _, width = features.shape
        scale, side = self.scale_factor, self.grid // self.scale_factor
        x = features.reshape(-1, side, scale, side, scale, width).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(*batch, side * side, scale * scale * width)


class ModalityProjection(nnx.Module):
    """Idefics3's `modality_projection`: a linear map without bias."""

    def __init__(self, in_features: int, out_features: int, dtype, rngs: nnx.Rngs):
        self.proj = Linear(in_features, out_features, use_bias=False, dtype=dtype, rngs=rngs)


def is_tokenwise(config: ConnectorConfig) -> bool:
    """Whether each feature becomes a token by itself, wherever it lies and however many there are."""
    return config.kind in ("linear", "mlp2x_gelu")


def num_tokens(config: ConnectorConfig, vision: VisionConfig) -> int:
    """Tokens that a frame's patches become.

    Raises:
      InputError: the scale factor does not divide the grid.
    """
    if config.kind == "resampler":
        return config.num_queries
    if not config.shuffles:
        return vision.num_patches
    if vision.grid % config.scale_factor:
        raise InputError(
            f"config.model.adapter.connector.scale_factor: {config.scale_factor} does not divide the tower's grid of "
            f"{vision.grid} x {vision.grid} patches"
        )
    return (vision.grid // config.scale_factor) ** 2
