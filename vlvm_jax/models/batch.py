"""A batch of packed rows: its fields, its way to the devices, and what is to be predicted in it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlvm_jax.models.adapters.base import FrameLayout, Guidance
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import process_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of packed rows; every shape is fixed for a stage.

    Attributes:
      frames: [B, T, H, W, 3] uint8.
      media: [B, T] 0 for padding, else the id of the image or clip within the row.
      is_video: [B, T].
      token_ids: [B, L]; visual positions hold any id and are marked in `media_mask`.
      media_mask: [B, L] True where a visual token goes.
      positions: [B, L], from 0 within each packed sample.
      segment_ids: [B, L] 0 for padding, else the sample within the row.
      loss_mask: [B, L] True for tokens to be predicted.
      prompt_ids: [B, P] or None. The row's question in the tokens of the adapter's own text tower, for adapters that
        read it; such rows hold one sample.
      visual_index, visual_weight: [B, L, P] or None. Which of the adapter's V slots make the token at each marked
        position, and how much of each: images tiled as LLaVA-NeXT does are read across their tiles
        (`data/images/anyres.py`). None: the valid slots in order.
    """

    frames: UInt8[Array, "B T H W 3"]
    media: Int[Array, "B T"]
    is_video: Bool[Array, "B T"]
    token_ids: Int[Array, "B L"]
    media_mask: Bool[Array, "B L"]
    positions: Int[Array, "B L"]
    segment_ids: Int[Array, "B L"]
    loss_mask: Bool[Array, "B L"]
    visual_index: Int[Array, "B L P"] | None = None
    visual_weight: Float[Array, "B L P"] | None = None
    prompt_ids: Int[Array, "B P"] | None = None

    @property
    def layout(self) -> FrameLayout:
        return FrameLayout(self.media, self.is_video, room=self.token_ids.shape[1])

    @property
    def guidance(self) -> Guidance | None:
        return None if self.prompt_ids is None else Guidance(self.prompt_ids)


def to_device(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """This process's rows of a batch as global arrays; fields that the data does not have stay None."""
    fields = [field.name for field in dataclasses.fields(Batch) if field.name in batch]
    return Batch(**{name: rows_to_device(batch[name], mesh) for name in fields})


def rows_to_device(local: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's rows (`processes.batch_share`) of an array [B, T, ...] or [B, L, ...] as a global one."""
    held = process_rows(mesh)[jax.process_index()]
    rows = len(local) // len(held)
    shape = (rows * rules.batch_shards(mesh), *local.shape[1:])

    def piece(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        first = held.index(start // rows) * rows
        return local[(slice(first, first + stop - start), *index[1:])]

    return jax.make_array_from_callback(shape, rules.batch_sharding(shape, mesh), piece)


def next_tokens(batch: Batch) -> tuple[Array, Bool[Array, "B L"]]:
    """The token after each position, and whether it is one to be learned within the same packed sample."""
    targets = jnp.roll(batch.token_ids, -1, axis=1)
    same = batch.segment_ids == jnp.roll(batch.segment_ids, -1, axis=1)
    learned = (jnp.roll(batch.loss_mask, -1, axis=1) & same).at[:, -1].set(False)
    return targets, learned
