"""Crops of pooled frames: a box of fixed size around the places that score best (docs/free_video_llm.md)."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlvm_jax.models.adapters._pools import GridPool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Boxes:
    """[B, S] first column and first row of each frame's box, in cells of the view."""

    left: Int[Array, "B S"]
    top: Int[Array, "B S"]


@dataclasses.dataclass(frozen=True)
class Region:
    """A box of `height` x `width` cells within a view of `rows` x `columns`, around the mean of the `best` places."""

    rows: int
    columns: int
    height: int
    width: int
    best: int

    @property
    def num_tokens(self) -> int:
        return self.height * self.width

    def around(self, scores: Float[Array, "B S K"]) -> Boxes:
        """Boxes around the mean place, rounded down, of the best-scoring cells; ties to the lower place."""
        places = jax.lax.top_k(scores, self.best)[1]
        # Sums of whole numbers, divided once: what truncating the fp32 mean gives.
        return self.at((places % self.columns).sum(-1) // self.best, (places // self.columns).sum(-1) // self.best)

    def at(self, x: Int[Array, "B S"], y: Int[Array, "B S"]) -> Boxes:
        """Boxes with their centres there, shifted to lie inside."""
        left = jnp.clip(x - self.width // 2, 0, self.columns - self.width)
        return Boxes(left, jnp.clip(y - self.height // 2, 0, self.rows - self.height))

    def centre(self, batch: int, slots: int) -> Boxes:
        """Where the boxes are when every cell counts: a control."""
        zero = jnp.zeros((batch, slots), jnp.int32)
        return self.at(zero + (self.columns - 1) // 2, zero + (self.rows - 1) // 2)

    def random(self, keys: Array, slots: int) -> Boxes:
        """Anywhere inside, evenly: a control.

        Args:
          keys: [B] one a row.
        """

        def row(key):
            return jax.random.randint(
                key, (2, slots), 0, jnp.array([[self.columns - self.width + 1], [self.rows - self.height + 1]])
            )

        drawn = jax.vmap(row)(keys)
        return Boxes(drawn[:, 0], drawn[:, 1])

    def crop(self, tokens: Float[Array, "B S K C"], boxes: Boxes) -> Float[Array, "B S P C"]:
        """The cells inside, row by row."""
        batch, slots, _, width = tokens.shape
        view = tokens.reshape(batch, slots, self.rows, self.columns, width)

        def frame(cells, left, top):
            return jax.lax.dynamic_slice(cells, (top, left, 0), (self.height, self.width, width))

        return jax.vmap(jax.vmap(frame))(view, boxes.left, boxes.top).reshape(batch, slots, -1, width)

    def inside(self, boxes: Boxes) -> Float[Array, "B S K"]:
        """1 for the cells inside."""
        across = jnp.arange(self.columns) - boxes.left[..., None]
        down = jnp.arange(self.rows) - boxes.top[..., None]
        across, down = (across >= 0) & (across < self.width), (down >= 0) & (down < self.height)
        cells = (down[..., :, None] & across[..., None, :]).astype(jnp.float32)
        return cells.reshape(*boxes.left.shape, self.rows * self.columns)


def region(pool: GridPool, alpha: float, layout: Literal["released", "corrected"]) -> Region | None:
    """The region of a pooled frame that keeps about a share `alpha` of it; None for all of it.

    `corrected` takes the grid as it is. `released` takes that of pairs of neighbours within a row, 24 rows of 12, for
    12 rows of 24, as the released code does: what it crops is then no rectangle of the image. No side is less than 1
    cell: ours, for tiny grids.
    """
    if alpha >= 1:
        return None
    rows, columns = len(pool.rows), len(pool.columns)
    if layout == "released" and pool.paired_columns:
        rows, columns = columns, rows
    height, width = (max(1, round(side * math.sqrt(alpha))) for side in (rows, columns))
    return Region(rows, columns, height, width, max(1, int(rows * columns * alpha)))
