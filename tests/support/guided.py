"""Small models with adapters made of paths, and what they read; for tests of several packages."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from support import hf
from vlvm_jax.config import ModelConfig
from vlvm_jax.models.adapters import build_adapter
from vlvm_jax.models.adapters.base import FrameLayout, Guidance
from vlvm_jax.models.vision import VisionTower

PATCH = 4
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {
    "vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 9,
}  # fmt: skip
CLIP = {"text": TEXT, "projection_dim": 10}
EOS = TEXT["vocab_size"] - 1
WIDTH = 8
OFF = {"num_frames": 0}


def config(name: str, side: int = 24, *, connector="linear", init_from=None, vision=None, **options) -> ModelConfig:
    if name == "prompt_guided":
        options = {"clip": CLIP, **options}
    return ModelConfig(
        vision={**VISION, "image_size": side * PATCH, "patch_size": PATCH, **(vision or {})},
        adapter={"name": name, "connector": {"kind": connector}, "options": options},
        decoder={
            "vocab_size": 16, "hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        },
        dtype="float32",
        init_from=init_from,
    )  # fmt: skip


def adapter(name: str, side: int = 24, seed: int = 1, **options):
    """Random parameters."""
    made = config(name, side, **options)
    return hf.fill(lambda: build_adapter(made, dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=seed)


def abstract(name: str, side: int = 24, **options):
    """Without parameters, to ask how many tokens."""
    made = config(name, side, **options)
    return nnx.eval_shape(lambda: build_adapter(made, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def tower(side: int = 24, **vision):
    cfg = config("frames", side, vision=vision).vision
    return hf.fill(lambda: VisionTower(cfg, dtype=jnp.float32, rngs=nnx.Rngs(0)), seed=2)


def frames(num_frames: int, side: int = 24, batch: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, num_frames, side * PATCH, side * PATCH, 3), dtype=np.uint8)


def question(seed: int = 0, batch: int = 1) -> Guidance:
    """Random words, the end token, padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, EOS, (batch, TEXT["max_position_embeddings"]))
    end = rng.integers(2, ids.shape[1] - 1, batch)
    place = np.arange(ids.shape[1])
    ids[place == end[:, None]] = EOS
    ids[place > end[:, None]] = 0
    return Guidance(jnp.asarray(ids, jnp.int32))


def clips(counts, room: int | None = None, before: int = 0, after: int = 0, frames: int = 0) -> FrameLayout:
    """Rows of images, a clip of that many frames, and images again, padded to one length, to `frames` at least."""
    longest = max(before + max(counts) + after, frames)
    media, video = np.zeros((2, len(counts), longest), int)
    for row, count in enumerate(counts):
        media[row, : before + count + after] = [
            *range(1, before + 1),
            *[before + 1] * count,
            *range(before + 2, before + after + 2),
        ]
        video[row, before : before + count] = 1
    return FrameLayout(jnp.asarray(media), jnp.asarray(video.astype(bool)), room)


@nnx.jit
def encode_media(adapter, encoder, frames):
    return adapter.encode_media(encoder, frames)


@nnx.jit
def connected(adapter, encoder, frames):
    """[B, T, N, C] every frame's tokens, before any path."""
    return adapter.connector(encoder(frames).patches)


@nnx.jit
def call(adapter, features, layout, guidance=None):
    return adapter(features, layout, guidance=guidance)


@nnx.jit
def picked(adapter, features, layout, guidance=None):
    return adapter.picked(features, layout, guidance)


@nnx.jit
def weights(adapter, features, layout, guidance=None):
    return adapter.frame_weights(features, layout, guidance)


def row_tokens(out, row: int = 0) -> np.ndarray:
    return np.asarray(out.tokens[row])[np.asarray(out.valid[row])]
