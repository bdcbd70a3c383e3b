"""Vision transformer towers, CLIP- and SigLIP-style. Module names follow HF's `CLIPVisionModel`/`SiglipVisionModel`.

What differs between the two: CLIP has a class token, a layer norm before the layers and no bias in the patch
embedding; SigLIP has none of the first two and has the bias. Idefics3's tower (also SmolVLM's) is SigLIP's but for how
it finds the position of a patch. InternViT has a class token and that bias, scales what each block adds (LayerScale),
and has no layer norm before or after the layers.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vlvm_jax.config import TextConfig, VisionConfig
from vlvm_jax.models.attention import attention, attention_received
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.stack import LayerStack
from vlvm_jax.parallel.rules import constrain

ACTIVATIONS: dict[str, Callable] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionFeatures:
    """What the tower says of every frame.

    Attributes:
      patches: [B, T, N, D] patch features of the chosen layer, raster order.
      attention: [B, T, N] attention each patch receives at the chosen layer (fp32, see `attention_layer` of the
        config), or None when no adapter asked for it.
      final: [B, T, M, D] output of the last layer there is, before the last layer norm and with the class token where
        there is one; None unless asked for.
    """

    patches: Float[Array, "B T N D"]
    attention: Float[Array, "B T N"] | None = None
    final: Float[Array, "B T M D"] | None = None


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, dtype, rngs: nnx.Rngs):
        self.num_heads = config.num_attention_heads
        width = config.hidden_size

        def linear(use_bias: bool = config.attention_bias):
            return Linear(width, width, use_bias=use_bias, dtype=dtype, rngs=rngs)

        self.q_proj, self.k_proj, self.v_proj, self.out_proj = linear(), linear(), linear(), linear(True)
        self.with_attention = config.attention_layer is not None
        self.has_class_token = config.has_class_token

    def __call__(self, x: Float[Array, "B N D"]):
        batch, length, width = x.shape
        q, k, v = (
            proj(x).reshape(batch, length, self.num_heads, width // self.num_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        received = attention_received(q, k, from_first=self.has_class_token) if self.with_attention else None
        return self.out_proj(attention(q, k, v).reshape(batch, length, width)), received


class VisionMLP(nnx.Module):
    def __init__(self, config: VisionConfig | TextConfig, *, dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, dtype=dtype, rngs=rngs)
        self.activation = config.hidden_act

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class VisionLayer(nnx.Module):
    def __init__(self, config: VisionConfig, *, dtype, rngs: nnx.Rngs):
        self.layer_norm1 = nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.self_attn = VisionAttention(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = VisionMLP(config, dtype=dtype, rngs=rngs)
        scaled = config.kind == "internvl"
        self.lambda_1 = LayerScale(config.hidden_size, dtype) if scaled else _as_it_is
        self.lambda_2 = LayerScale(config.hidden_size, dtype) if scaled else _as_it_is

    def __call__(self, x: Float[Array, "B N D"], layer_input=None):
        del layer_input
        out, received = self.self_attn(self.layer_norm1(x))
        x = x + self.lambda_1(out)
        return constrain(x + self.lambda_2(self.mlp(self.layer_norm2(x))), "frames", None, None), received


class LayerScale(nnx.Module):
    """A learned factor for each channel of what a block adds."""

    def __init__(self, width: int, dtype):
        self.scale = nnx.Param(jnp.full(width, 0.1))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return x * self.scale[...].astype(self.dtype)


def _as_it_is(x):
    """In the place of a layer that a tower does not have."""
    return x


class VisionTower(nnx.Module):
    """Frames to patch features.

    Pixels arrive as uint8 and are normalised here, on the device, by the config's `image_mean` and `image_std`:
    a batch crosses from host to device at a quarter of its fp32 size.
    """

    def __init__(self, config: VisionConfig, *, dtype, remat: str = "none", splits=(), rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, num_patches = config.hidden_size, config.num_patches
        clip, token = config.kind == "clip", config.has_class_token
        init = nnx.initializers.normal(width**-0.5)
        self.patch_embedding = Linear(config.patch_size**2 * 3, width, use_bias=not clip, dtype=dtype, rngs=rngs)
        self.class_embedding = nnx.Param(init(rngs.params(), (width,))) if token else None
        place = nnx.initializers.normal(config.position_init or width**-0.5)
        self.position_embedding = nnx.Param(place(rngs.params(), (num_patches + token, width)))
        self.pre_layrnorm = (
            nnx.LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs) if clip else None
        )
        self.layers = LayerStack(
            lambda rngs: VisionLayer(config, dtype=dtype, rngs=rngs),
            config.num_hidden_layers,
            dtype=dtype,
            num_used=config.num_used_layers,
            splits=splits,
            remat=remat,
            rngs=rngs,
        )
        self.post_layernorm = (
            _as_it_is
            if config.kind == "internvl"
            else nnx.LayerNorm(width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)
        )

    def __call__(self, frames: UInt8[Array, "B T H W 3"], *, final: bool = False) -> VisionFeatures:
        """Runs the tower over every frame.

        Args:
        frames: already of the tower's `image_size`.
        final: run the layers beyond the chosen one too, for `VisionFeatures.final`.
        """
        config = self.config
        batch, num_frames = frames.shape[:2]
        x = self.embed(frames.reshape(-1, *frames.shape[2:]))
        x, received = self.layers(x)
        last = None
        if final:
            last = x
            if config.num_used_layers < config.num_hidden_layers:
                last, _ = self.layers(x, start=config.num_used_layers, stop=config.num_hidden_layers)
            last = last.reshape(batch, num_frames, *last.shape[1:])
        if config.post_norm:
            x = self.post_layernorm(x)
        skip = int(config.has_class_token)
        patches = x[:, skip:].reshape(batch, num_frames, config.num_patches, config.hidden_size)
        if received is not None:
            received = received[config.attention_layer][:, skip:].reshape(batch, num_frames, config.num_patches)
        return VisionFeatures(patches, received, last)

    def embed(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B M D"]:
        """Patch tokens (after a class token for CLIP) with positions added."""
        config = self.config
        batch = images.shape[0]
        mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
        pixels = ((images.astype(jnp.float32) / 255 - mean) / std).astype(self.dtype)
        side, patch = config.grid, config.patch_size
        pixels = pixels[:, : side * patch, : side * patch]
        pixels = pixels.reshape(batch, side, patch, side, patch, 3)
        pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, patch * patch * 3)
        x = self.patch_embedding(pixels)
        if self.class_embedding is not None:
            token = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (batch, 1, config.hidden_size))
            x = jnp.concatenate([token, x], axis=1)
        positions = self.position_embedding[...]
        if config.kind == "idefics3":
            positions = positions[fractional_positions(config.grid)]
        x = x + positions.astype(self.dtype)
        return x if self.pre_layrnorm is None else self.pre_layrnorm(x)


def fractional_positions(grid: int) -> np.ndarray:
    """Idefics3's position ids of a full square frame, int32 [grid * grid].

    The rule (transformers, `Idefics3VisionEmbeddings`) looks the fp32 fraction `i / grid` up among fp32 boundaries
    `j / grid`. In exact arithmetic that is `i`; rounding moves it for some grids, and weights are trained with that.
    """
    step = 1 / grid
    index = np.arange(math.ceil((1.0 - step) / step))
    # torch.arange in fp32 on a CPU goes in pairs of blocks of 8 and rounds where each block starts; the rest is exact.
    block = np.where(index < len(index) // 16 * 16, index // 8 * 8, index)
    boundaries = ((step + step * block).astype(np.float32) + step * (index - block)).astype(np.float32)
    fractions = np.arange(grid, dtype=np.float32) * (np.float32(1.0) / np.float32(grid))
    fractions = np.minimum(fractions, np.float32(1.0 - 1e-6))
    index = np.searchsorted(boundaries, fractions, side="right")
    return (index[:, None] * grid + index[None, :]).reshape(-1).astype(np.int32)
