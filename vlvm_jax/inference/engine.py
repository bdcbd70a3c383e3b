"""A model on its devices, as compiled functions of fixed shapes: encode media, prefill, decode.

One mesh, one set of shardings, whatever the devices: a CPU is a mesh of one.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlvm_jax.console import Waiting
from vlvm_jax.models import decoding
from vlvm_jax.models.adapters.base import Features, FrameLayout, Guidance
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoder import CACHE_AXES, KVCache
from vlvm_jax.models.decoding import Limits, Progress, Sampling
from vlvm_jax.models.params import Model, Params
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.cpu_options import compiler_options

CHUNK = 16  # tokens between two looks of the host
_FEWEST = 32  # positions of a bucket
_STEPS = {  # in messages
    "encode_media": "the image encoder",
    "prefill": "the prefill step",
    "decode": "the decode step",
}


class Engine:
    """Runs the model for batches of prompts: encodes media, reads prompts, says tokens.

    Args:
    params: segmented for `model`, in their shardings on `mesh`.
    chunk: tokens that are said in one go.

    Attributes:
      traced: how often each function was traced, and so compiled, by its name and the shapes of its bucket.
    """

    def __init__(self, model: Model, params: Params, mesh: Mesh, chunk: int = CHUNK):
        self.model, self.params, self.mesh, self.chunk = model, params, mesh, chunk
        self.traced: Counter[tuple] = Counter()
        self._functions: dict[tuple, Callable] = {}
        self._compiler_options = compiler_options(mesh, model.config.dtype)

    # --- image side --------------------------------------------------------------------------------------------------

    def encode_media(self, frames: np.ndarray) -> Features:
        """Features of frames uint8 [B, T, H, W, 3]; ready when it returns."""
        encode_media = self._compiled(
            ("encode_media", frames.shape[1]), self._encode_media, out=rules.replicated(self.mesh)
        )
        with jax.set_mesh(self.mesh):
            return jax.block_until_ready(encode_media(self.params, self._put(frames)))

    def _encode_media(self, params: Params, frames) -> Features:
        return self.model.bind(params).encode_media(frames)

    def beside(self, features: Sequence[Features]) -> Features:
        """Features of several rows as those of one batch."""
        if len(features) == 1:
            return features[0]
        with jax.set_mesh(self.mesh):
            return _concatenated(*features)

    def frame_weights(self, features: Features, batch: Batch) -> np.ndarray | None:
        """[B, T, N] how much of each patch reaches the decoder, for pictures; None where the adapter weighs nothing."""
        return jax.device_get(self._of_adapter("frame_weights", features, batch))

    def path_weights(self, features: Features, batch: Batch) -> dict[str, np.ndarray]:
        """The same of each of the adapter's paths, see `VideoAdapter.path_weights`."""
        return jax.device_get(self._of_adapter("path_weights", features, batch))

    def picked(self, features: Features, batch: Batch) -> dict[str, np.ndarray]:
        """What the adapter chose for each row of a batch, see `VideoAdapter.picked`."""
        return jax.device_get(self._of_adapter("picked", features, batch))

    def _of_adapter(self, name: str, features: Features, batch: Batch) -> Any:
        rows, length = batch.token_ids.shape

        def ask(params, features, media, is_video, prompt_ids):
            adapter = self.model.bind(params).adapter
            layout = FrameLayout(media, is_video, room=length)
            return getattr(adapter, name)(features, layout, None if prompt_ids is None else Guidance(prompt_ids))

        key = (name, rows, batch.media.shape[1], length)
        call = self._compiled(key, ask, out=rules.replicated(self.mesh))
        with jax.set_mesh(self.mesh):
            given = jax.tree.map(self._put, (batch.media, batch.is_video, batch.prompt_ids))
            return call(self.params, features, *given)

    # --- text side ---------------------------------------------------------------------------------------------------

    def prefill(
        self, features: Features, batch: Batch, room: int, limits: Limits, sampling: Sampling | None
    ) -> Progress:
        """Reads a batch of prompts and says the first token of each answer.

        Args:
          batch: of numpy arrays; its frames are not looked at.
          room: tokens that answers may have.
        """
        rows, length = batch.token_ids.shape
        slots = length + room
        shardings = self._shardings(rows, slots)
        prefill = self._compiled(
            ("prefill", rows, batch.media.shape[1], length, room, sampling is not None),
            self._prefill,
            out=shardings,
            static_argnames="slots",
        )
        with jax.set_mesh(self.mesh):
            batch, limits, sampling = jax.tree.map(self._put, (batch, limits, sampling))
            return prefill(self.params, features, batch, limits, sampling, slots=slots)

    def _prefill(self, params, features, batch, limits, sampling, *, slots: int) -> Progress:
        return decoding.prefill(self.model.bind(params), batch, slots, limits, sampling, features)

    def decode(
        self, progress: Progress, limits: Limits, sampling: Sampling | None, stopped: np.ndarray
    ) -> tuple[Progress, np.ndarray]:
        """Says the next tokens of a batch, [B, chunk] with `decoding.NOTHING` where an answer has ended.

        Args:
          progress: may not be used again: its memory is.
          stopped: [B] rows that the host has ended.
        """
        rows, slots = progress.token.shape[0], progress.cache.positions.shape[1]
        out = (self._shardings(rows, slots), rules.replicated(self.mesh))
        decode = self._compiled(("decode", rows, slots, sampling is not None), self._decode, out=out, donate_argnums=1)
        with jax.set_mesh(self.mesh):
            limits, sampling, stopped = jax.tree.map(self._put, (limits, sampling, stopped))
            progress, tokens = decode(self.params, progress, limits, sampling, stopped)
        return progress, np.asarray(tokens)

    def _decode(self, params, progress, limits, sampling, stopped):
        progress = dataclasses.replace(progress, done=progress.done | stopped)
        return decoding.decode(self.model.bind(params), progress, self.chunk, limits, sampling)

    # --- placing -----------------------------------------------------------------------------------------------------

    def _compiled(self, key: tuple, function: Callable, out: Any, **options) -> Callable:
        """The function of one bucket, with its own count of traces."""
        if key not in self._functions:

            @functools.wraps(function)
            def counted(*args, **kwargs):
                self.traced[key] += 1
                return function(*args, **kwargs)

            compiled = jax.jit(counted, out_shardings=out, compiler_options=self._compiler_options, **options)
            self._functions[key] = self._told_of(key, compiled)
        return self._functions[key]

    def _told_of(self, key: tuple, function: Callable) -> Callable:
        """Wraps a function so that its first call says what takes so long."""

        def first(*args, **kwargs):
            self._functions[key] = function
            what = _STEPS.get(key[0], f"the adapter's {key[0]}")
            if key[0] == "prefill":
                what = f"{what} for prompts of up to {key[3]} tokens"
            with Waiting(f"compiling {what} and running it for the first time"):
                return jax.block_until_ready(function(*args, **kwargs))

        return first

    def _put(self, array) -> jax.Array:
        shape = np.shape(array)
        sharding = rules.batch_sharding(shape, self.mesh) if len(shape) > 1 else rules.replicated(self.mesh)
        return jax.device_put(array, sharding)

    def _shardings(self, rows: int, slots: int) -> Progress:
        config = self.model.config.decoder
        held = (config.num_hidden_layers, rows, config.num_key_value_heads, slots, config.head_dim)
        shapes = {"key": held, "value": held, "positions": (rows, slots), "segments": (rows, slots), "index": ()}
        of_cache: dict[str, Any] = {
            name: rules.sharding(axes, shapes[name], self.mesh) for name, axes in CACHE_AXES.items()
        }
        whole: Any = rules.replicated(self.mesh)
        return Progress(KVCache(**of_cache), whole, whole, whole, whole)


@jax.jit
def _concatenated(*features: Features) -> Features:
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *features)


# --- buckets ---------------------------------------------------------------------------------------------------------


def length_bucket(tokens: int, longest: int) -> int:
    """The positions of prompts of so many tokens: the next eighth of a power of two, at least `_FEWEST`.

    Prompts are padded by an eighth at most (short ones by more), and few programs are compiled.
    """
    step = max(_FEWEST, 1 << (tokens.bit_length() - 1) >> 3)
    return min(-(-tokens // step) * step, longest)


def power_bucket(count: int, least: int = 1) -> int:
    """The smallest of least, 2 least, 4 least, ... that holds so many."""
    size = least
    while size < count:
        size *= 2
    return size
