"""What adapters share that build a clip's tokens from several paths: which frames, pooled how, in which order.

The rules are those of SlowFast-LLaVA's and Free Video-LLM's code (docs/free_video_llm.md). A row holds one clip at
most, and images beside it, which pass as an image model has them: all patches through the connector.
"""

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8
from pydantic import NonNegativeInt, PositiveInt

from vlvm_jax.config import ModelConfig, Settings
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters._pools import GridPool, Pool, grid_pool, over_frames, part_weights
from vlvm_jax.models.adapters._regions import Boxes, Region
from vlvm_jax.models.adapters.base import FrameLayout, Guidance, VideoAdapter, VisualTokens
from vlvm_jax.models.connector import Connector
from vlvm_jax.models.vision import VisionTower

Count = NonNegativeInt | Literal["all"]


class PathOptions(Settings):
    """A path of frames with many tokens each.

    Attributes:
      num_frames: of a clip; 0 leaves the path out, "all" takes each of its frames once.
      pool: within each frame, or, `spatial_temporal_pool` and `temporal_global_pool`, over the path's frames too.
      grid: rows and columns of `adaptive_2d_pool`.
    """

    num_frames: Count
    pool: Pool = "spatial_1d_max_pool"
    grid: tuple[PositiveInt, PositiveInt] | None = None


class FastOptions(Settings):
    """Many frames with few tokens: `num_frames` of a clip (0: none), each as the means of a coarse `grid`."""

    num_frames: Count = "all"
    grid: tuple[PositiveInt, PositiveInt] = (4, 4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Picks:
    """Frames that a path takes of each row's clip.

    Attributes:
      index: [B, S] frames of the row; any where `valid` is False.
      valid: [B, S], the valid ones first.
    """

    index: Int[Array, "B S"]
    valid: Bool[Array, "B S"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PathFeatures:
    """What the paths take their tokens from.

    Attributes:
    patches: [B, T, N, D] of the tower's chosen layer, None with a fast path.
    tokens: [B, T, N, C] what the connector makes of them, None without a fast path.
    fast: [B, T, F, C] tokens of every frame on the fast path, None without one.
    """

    patches: Float[Array, "B T N D"] | None
    tokens: Float[Array, "B T N C"] | None
    fast: Float[Array, "B T F C"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClipFrames:
    """Where each row's clip lies: its first frame and its number of frames, [B] each; 0 frames where there is none."""

    first: Int[Array, "B"]
    count: Int[Array, "B"]


def clip_frames(layout: FrameLayout) -> ClipFrames:
    return ClipFrames(jnp.argmax(layout.is_video, axis=1), layout.is_video.sum(axis=1))


def slots(wanted: Count, num_frames: int) -> int:
    """Room for a path's frames, of clips of at most that many."""
    return num_frames if wanted == "all" else wanted


def uniform_picks(clip: ClipFrames, wanted: Count, num_frames: int) -> Picks:
    """Frame floor(T j / n), j < n, of a clip of T frames: some twice where T < n. "all" takes each once."""
    slot = jnp.arange(slots(wanted, num_frames))
    if wanted == "all":
        index, valid = jnp.broadcast_to(slot, (len(clip.count), len(slot))), slot < clip.count[:, None]
    else:
        index = clip.count[:, None] * slot // max(wanted, 1)
        valid = jnp.broadcast_to(clip.count[:, None] > 0, index.shape)
    return Picks(jnp.minimum(clip.first[:, None] + index, num_frames - 1), valid)


def few_or_all(clip: ClipFrames, wanted: Count, num_frames: int) -> Picks:
    """Uniform ones of a clip with more frames than wanted, else each of them once."""
    whole = uniform_picks(clip, "all", num_frames)
    if wanted == "all" or wanted >= num_frames:
        return whole
    some, fits = uniform_picks(clip, wanted, num_frames), clip.count[:, None] <= wanted
    index = jnp.where(fits, whole.index[:, :wanted], some.index)
    return Picks(index, jnp.where(fits, whole.valid[:, :wanted], some.valid))


def best_picks(scores: Float[Array, "B T"], wanted: Count) -> Picks:
    """The best-scoring frames in time order, ties to the earlier; frames that score -inf are never taken."""
    num_frames = scores.shape[1]
    best, index = jax.lax.top_k(scores, min(slots(wanted, num_frames), num_frames))
    index = jnp.sort(jnp.where(best > -jnp.inf, index, num_frames), axis=1)
    return Picks(jnp.minimum(index, num_frames - 1), index < num_frames)


def take(x: Float[Array, "B T *rest"], picks: Picks) -> Float[Array, "B S *rest"]:
    """The picked frames' share of `x`; no others are read."""
    return jax.vmap(lambda row, index: row[index])(x, picks.index)


@dataclasses.dataclass(frozen=True)
class Path:
    """One path of frames with many tokens each; all that is known before there are frames.

    Attributes:
      name: `prompt` or `uniform`.
      pool: of each frame.
      region: what is kept of each pooled frame; None for all of it.
    """

    name: str
    num_frames: Count
    pool: GridPool
    region: Region | None = None

    @property
    def tokens_per_frame(self) -> int:
        return self.pool.num_tokens if self.region is None else self.region.num_tokens

    def num_tokens(self, num_frames: int) -> int:
        """Of a clip of which the path takes that many frames."""
        if self.pool.parts is not None:
            num_frames = self.pool.parts if num_frames else 0
        return num_frames * self.tokens_per_frame


def make_path(name: str, options: PathOptions, side: int, where: str) -> Path:
    """A path, by its options.

    Args:
    side: of the grid of tokens that the connector gives.
    where: the key of the options, for messages.
    """
    return Path(name, options.num_frames, grid_pool(options.pool, side, options.grid, where=where))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a path takes of each row's clip: which frames and, where it crops, which box of each."""

    path: Path = dataclasses.field(metadata={"static": True})
    picks: Picks
    boxes: Boxes | None = None

    def tokens(self, pooled: Float[Array, "B S K C"]) -> VisualTokens:
        """The path's tokens: frame by frame, in raster order within each.

        Args:
          pooled: its frames.
        """
        if self.path.region is not None and self.boxes is not None:
            pooled = self.path.region.crop(pooled, self.boxes)
        valid = self.picks.valid
        if self.path.pool.parts is not None:
            pooled, valid = over_frames(pooled, valid, self.path.pool.parts)
        return flat(pooled, valid)

    def patch_shares(self, num_frames: int) -> Float[Array, "B T N"]:
        """Of each patch, its share in the path's tokens; a frame's sum is the number of tokens made of it."""
        weight = self.picks.valid.astype(jnp.float32)
        if self.path.pool.parts is not None:
            weight = part_weights(self.picks.valid, self.path.pool.parts).sum(1)
        kept = jnp.ones((*weight.shape, self.path.pool.num_tokens))
        if self.path.region is not None and self.boxes is not None:
            kept = self.path.region.inside(self.boxes)
        of_slots = weight[..., None] * (kept @ jnp.asarray(self.path.pool.shares()))
        return jnp.einsum("bst,bsn->btn", jax.nn.one_hot(self.picks.index, num_frames), of_slots)

    def report(self, clip: ClipFrames) -> dict[str, Array]:
        """Frames counted from the clip's first (-1: none), and boxes as left, top, width, height in cells."""
        name, region = self.path.name, self.path.region
        arrays = {f"{name}_idx": reported(self.picks, clip)}
        if region is not None and self.boxes is not None:
            size = [jnp.full_like(self.boxes.left, side) for side in (region.width, region.height)]
            arrays[f"{name}_boxes"] = jnp.stack([self.boxes.left, self.boxes.top, *size], axis=-1)
        return arrays


def flat(tokens: Float[Array, "B S K C"], valid: Bool[Array, "B S"]) -> VisualTokens:
    batch, frames, each, width = tokens.shape
    return VisualTokens(tokens.reshape(batch, frames * each, width), jnp.repeat(valid, each, axis=1))


def reported(picks: Picks, clip: ClipFrames) -> Int[Array, "B S"]:
    """Picked frames counted from the clip's first; -1 where there is none."""
    return jnp.where(picks.valid, picks.index - clip.first[:, None], -1)


class PathsAdapter(VideoAdapter):
    """Base of the adapters made of paths. A subclass has `paths` and says which frames each takes."""

    one_clip = True
    paths: tuple[Path, ...]

    def __init__(self, fast: FastOptions, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        kind, width = config.adapter.connector.kind, config.decoder.hidden_size
        if kind == "resampler":
            raise InputError(
                f"config.model.adapter.connector.kind: the adapter {config.adapter.name!r} pools tokens by where they "
                "lie, and a resampler's lie nowhere; use another connector"
            )
        self.connector = Connector(config.adapter.connector, config.vision, width, dtype=dtype, rngs=rngs)
        self.side = round(self.connector.num_tokens**0.5)
        where = "config.model.adapter.options.fast_path"
        # A path that is left out may name any grid.
        self.fast: Path | None = None
        if fast.num_frames != 0:
            pool = grid_pool("adaptive_2d_pool", self.side, fast.grid, where=where)
            self.fast = Path("fast", fast.num_frames, pool)

    def set_paths(self, *paths: Path) -> None:
        """Raises `InputError` when nothing would be left of a clip."""
        self.paths = tuple(path for path in paths if path.num_frames != 0)
        if not self.paths and self.fast is None:
            raise InputError(
                "config.model.adapter.options: no path takes any frames; give one of them num_frames above 0"
            )

    # --- what subclasses say -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def choose(self, features: Any, layout: FrameLayout, guidance: Guidance | None) -> list[Chosen]:
        """What each of `paths` takes."""

    def frames_taken(self, path: Path, num_frames: int) -> int:
        """How many frames a path takes of a clip of `num_frames` > 0; by default the uniform rule's."""
        return num_frames if path.num_frames == "all" else path.num_frames

    def choose_fast(self, fast: Path, features: Any, layout: FrameLayout, guidance: Guidance | None) -> Chosen:
        """Frames of the fast path: evenly many where the clip has more than it takes, else each once."""
        del features, guidance
        return Chosen(fast, few_or_all(clip_frames(layout), fast.num_frames, layout.media.shape[1]))

    # --- how many tokens ---------------------------------------------------------------------------------------------

    def num_video_tokens(self, num_frames: int) -> int:
        if num_frames == 0:
            return 0
        tokens = sum(path.num_tokens(self.frames_taken(path, num_frames)) for path in self.paths)
        if self.fast is not None:
            tokens += self.fast.num_tokens(min(slots(self.fast.num_frames, num_frames), num_frames))
        return tokens

    def num_image_tokens(self) -> int:
        return self.connector.num_tokens

    # --- tokens ------------------------------------------------------------------------------------------------------

    def encode_media(self, encoder: VisionTower, frames: UInt8[Array, "B T H W 3"]) -> Any:
        return self.path_features(encoder(frames).patches)

    def path_features(self, patches: Float[Array, "B T N D"]) -> PathFeatures:
        """A fast path needs every frame to pass the connector: here, once for all questions. Else only those frames
        pass it that a question's paths take."""
        if self.fast is None:
            return PathFeatures(patches, None, None)
        tokens = self.connector(patches)
        return PathFeatures(None, tokens, self.fast.pool(tokens))

    def connected(self, features: PathFeatures, picks: Picks) -> Float[Array, "B S N C"]:
        """The connector's tokens of the picked frames."""
        if features.tokens is not None:
            return take(features.tokens, picks)
        assert features.patches is not None
        return self.connector(take(features.patches, picks))

    def __call__(
        self, features: Any, layout: FrameLayout, *, guidance: Guidance | None = None, rng: jax.Array | None = None
    ) -> VisualTokens:
        """The paths of a row's clip one after the other, the fast one last; images where they stand among the media."""
        del rng
        parts = []
        for chosen in self.choose(features, layout, guidance):
            parts.append(chosen.tokens(chosen.path.pool(self.connected(features, chosen.picks))))
        if self.fast is not None:
            chosen = self.choose_fast(self.fast, features, layout, guidance)
            parts.append(chosen.tokens(take(features.fast, chosen.picks)))
        clip = VisualTokens(
            jnp.concatenate([part.tokens for part in parts], axis=1),
            jnp.concatenate([part.valid for part in parts], axis=1),
        )
        return self._among_images(clip, features, layout)

    def _among_images(self, clip: VisualTokens, features: PathFeatures, layout: FrameLayout) -> VisualTokens:
        """The clip's tokens between those of the images before it and after it.

        Only as many images pass the connector as the row has room for, and none where the batch has none.
        """
        num_frames = layout.media.shape[1]
        each = self.connector.num_tokens
        most = num_frames if layout.room is None else min(num_frames, layout.room // each)
        if most == 0:
            return clip
        is_image = layout.mask & ~layout.is_video
        picks = best_picks(jnp.where(is_image, 0.0, -jnp.inf), most)
        empty = jnp.zeros((len(layout.media), most, each, clip.tokens.shape[2]), clip.tokens.dtype)
        connected = jax.lax.cond(is_image.any(), lambda: self.connected(features, picks), lambda: empty)
        images = flat(connected, picks.valid)
        first = jnp.where(layout.is_video.any(axis=1), jnp.argmax(layout.is_video, axis=1), num_frames)
        before = (is_image & (jnp.arange(num_frames) < first[:, None])).sum(axis=1)[:, None] * each
        # Image slots before the clip, the clip's, the other image slots.
        length = clip.tokens.shape[1]
        slot = jnp.arange(most * each + length)
        of_clip = most * each + slot - before
        source = jnp.where(slot < before, slot, jnp.where(slot < before + length, of_clip, slot - length))
        tokens = jnp.concatenate([images.tokens, clip.tokens], axis=1)
        valid = jnp.concatenate([images.valid, clip.valid], axis=1)
        return VisualTokens(
            jnp.take_along_axis(tokens, source[..., None], axis=1), jnp.take_along_axis(valid, source, axis=1)
        )

    # --- pictures ----------------------------------------------------------------------------------------------------

    def frame_weights(
        self, features: Any, layout: FrameLayout, guidance: Guidance | None = None
    ) -> Float[Array, "B T N"]:
        """Of each token that the connector gives of a frame, its share in the sequence: a frame's sum is the number of
        tokens that it has there."""
        of_images = (layout.mask & ~layout.is_video).astype(jnp.float32)
        weights = jnp.repeat(of_images[:, :, None], self.connector.num_tokens, axis=2)
        return sum(self.path_weights(features, layout, guidance).values(), start=weights)

    def path_weights(
        self, features: Any, layout: FrameLayout, guidance: Guidance | None = None
    ) -> dict[str, Float[Array, "B T N"]]:
        """Of the clip's; what a path crops has none in it."""
        chosen = self._all_chosen(features, layout, guidance)
        return {one.path.name: one.patch_shares(layout.media.shape[1]) for one in chosen}

    def picked(self, features: Any, layout: FrameLayout, guidance: Guidance | None = None) -> dict[str, Array]:
        """What each path takes of each row's clip.

        Returns:
          `<path>_idx` [B, S]: frames counted from the clip's first, -1 for none; `<path>_boxes` [B, S, 4] where that
          path crops: left, top, width, height in cells of its view; `<path>_tokens` [B]. `fast_idx` and `fast_tokens`
          likewise.
        """
        clip = clip_frames(layout)
        picks: dict[str, Array] = {}
        for one in self._all_chosen(features, layout, guidance):
            picks |= one.report(clip)
            frames = one.picks.valid.sum(axis=1)
            if one.path.pool.parts is not None:
                frames = jnp.where(frames > 0, one.path.pool.parts, 0)
            picks[f"{one.path.name}_tokens"] = frames * one.path.tokens_per_frame
        return picks

    def _all_chosen(self, features: Any, layout: FrameLayout, guidance: Guidance | None) -> list[Chosen]:
        chosen = self.choose(features, layout, guidance)
        return chosen if self.fast is None else [*chosen, self.choose_fast(self.fast, features, layout, guidance)]
