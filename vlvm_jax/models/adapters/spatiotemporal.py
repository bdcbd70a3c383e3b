"""`spatiotemporal`: RED-VILLM's plug-in (arXiv 2404.11865), two blocks of tokens for a clip.

The mean over time keeps its space: N tokens through the image model's own connector. The mean over space keeps its
time: T tokens through a connector of their own beside it.

That there are two average poolings and two alignment modules side by side is from public summaries of the paper (its
body was not readable for us); the order of the two blocks, how the temporal module begins and what it is beside a
resampler are our readings (docs/red_villm.md). With `temporal` "shared" this is Video-ChatGPT's network
(mbzuai-oryx/Video-ChatGPT, video_chatgpt/eval/model_utils.py).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from pydantic import PositiveInt

from vlvm_jax.config import ModelConfig, Settings
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters.base import FrameLayout, Guidance, VideoAdapter, VisualTokens
from vlvm_jax.models.connector import Connector, is_tokenwise
from vlvm_jax.models.layers import Linear
from vlvm_jax.models.resampler import Resampler, line_positions
from vlvm_jax.models.vision import VisionFeatures

Join = Literal["time_first", "space_first", "add", "space_only", "time_only"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Media:
    """The media of each row, of which there is room for M.

    Attributes:
      frames: [B, M, T] which frames are theirs.
      is_video: [B, M].
      index: [B, T] of each frame within its medium.
    """

    frames: Bool[Array, "B M T"]
    is_video: Bool[Array, "B M"]
    index: Int[Array, "B T"]

    @property
    def num_frames(self) -> Int[Array, "B M"]:
        return self.frames.sum(-1)


class Adapter(VideoAdapter):
    """N space tokens and T time tokens of a clip; an image is its own space tokens."""

    class Options(Settings):
        """The branch's options.

        Attributes:
        join: the order of the two blocks; `add` sums them, token by token, where they are equally many; `..._only`
          leaves one out.
        temporal: what aligns the time features. `same`: a second connector of the image connector's kind (reading A
          for a resampler: as many tokens as that has, whatever the number of frames); `linear`: a layer norm and one
          affine map, a token a frame (reading B for a resampler); `shared`: the image connector itself.
        pad_frames: clips are filled up to this many frames with time features of zero, which the connector maps to
          its bias and the decoder sees, as Video-ChatGPT does (100). None: a time token for each frame there is.
        """

        join: Join = "time_first"
        temporal: Literal["same", "linear", "shared"] = "same"
        pad_frames: PositiveInt | None = None

    def __init__(self, options: Options, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        _check(options, config)
        self.options = options
        vision, width = config.vision, config.decoder.hidden_size
        connector = config.adapter.connector
        self.connector = Connector(connector, vision, width, dtype=dtype, rngs=rngs)
        self.num_space = self.connector.num_tokens
        temporal: Connector | FrameConnector | None = None
        if options.temporal == "same":
            temporal = Connector(connector, vision, width, dtype=dtype, rngs=rngs)
        elif options.temporal == "linear":
            temporal = FrameConnector(vision.hidden_size, width, dtype=dtype, rngs=rngs)
        self.temporal_connector = temporal

    # --- how many tokens ---------------------------------------------------------------------------------------------

    def num_video_tokens(self, num_frames: int) -> int:
        padded = self.options.pad_frames
        if padded is not None and num_frames > padded:
            raise InputError(
                f"config.model.adapter.options.pad_frames: clips of {num_frames} frames are longer than {padded}; "
                "raise it, or lower the stage's frames"
            )
        space, time = self.num_space, self._num_time(num_frames)
        return {"space_only": space, "time_only": time, "add": space}.get(self.options.join, space + time)

    def num_image_tokens(self) -> int:
        return self.num_space

    def _num_time(self, num_frames):
        """Time tokens of clips of that many frames (an int or an array)."""
        resampler = self._time_resampler
        if resampler is not None:
            return resampler.num_queries
        return num_frames if self.options.pad_frames is None else self.options.pad_frames

    @property
    def _time_resampler(self) -> Resampler | None:
        connector = self.connector if self.options.temporal == "shared" else self.temporal_connector
        return connector.resampler if isinstance(connector, Connector) else None

    # --- tokens ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        features: VisionFeatures,
        layout: FrameLayout,
        *,
        guidance: Guidance | None = None,
        rng: jax.Array | None = None,
    ) -> VisualTokens:
        """The tokens of a row's media one after the other, packed to the front."""
        media = self._media(layout)
        of_space, of_time = pool(features.patches, media.frames)
        space = self.connector(of_space)
        time = self._time_tokens(of_time, media)
        if self.options.join == "add":
            space = jnp.where(media.is_video[:, :, None, None], space + time, space)
        return self._in_order(space, time, media, self._most_tokens(layout))

    def _media(self, layout: FrameLayout) -> Media:
        most = layout.media.shape[1]
        if layout.room is not None:
            fewest = 1 if self.options.join == "time_only" else self.num_space
            most = max(1, min(most, layout.room // fewest))
        frames = layout.media[:, None, :] == jnp.arange(1, most + 1)[:, None]
        return Media(frames, (frames & layout.is_video[:, None, :]).any(-1), layout.index_in_medium)

    def _most_tokens(self, layout: FrameLayout) -> int:
        """Slots for the tokens of a row: as if each frame were a medium, or what the row has room for."""
        most = layout.media.shape[1] * max(self.num_space, self.num_video_tokens(1))
        return most if layout.room is None else min(most, layout.room)

    def _time_tokens(
        self, features: Float[Array, "B T D"], media: Media
    ) -> Float[Array, "B S C"] | Float[Array, "B M Q C"]:
        """One of each frame and, last, one of a frame that is not there; or those of each medium's queries."""
        resampler = self._time_resampler
        if resampler is None:
            align = self.connector if self.temporal_connector is None else self.temporal_connector
            return align(jnp.pad(features, ((0, 0), (0, 1), (0, 0))))
        places = jnp.asarray(line_positions(np.arange(features.shape[1]), resampler.query.shape[-1]))[media.index]
        return resampler(features, places, media.frames)

    def _in_order(
        self,
        space: Float[Array, "B M N C"],
        time: Float[Array, "B S C"] | Float[Array, "B M Q C"],
        media: Media,
        slots: int,
    ) -> VisualTokens:
        """Takes for each slot the token that belongs there. All that moves is the tokens that are read."""
        batch, most, num_space, width = space.shape
        join, num_frames = self.options.join, media.num_frames
        with_time = media.is_video & (join not in ("space_only", "add"))
        with_space = (num_frames > 0) & ~(media.is_video & (join == "time_only"))
        times = jnp.where(with_time, self._num_time(num_frames), 0)
        spaces = jnp.where(with_space, num_space, 0)
        ends = jnp.cumsum(times + spaces, axis=1)

        slot = jnp.arange(slots)
        medium = jnp.minimum((slot[:, None] >= ends[:, None, :]).sum(-1), most - 1)

        def of_medium(x: Int[Array, "B M"]) -> Int[Array, "B V"]:
            return jnp.take_along_axis(x, medium, axis=1)

        place = slot - of_medium(ends - times - spaces)
        if join == "space_first":
            in_space, in_time = place, place - of_medium(spaces)
        else:
            in_space, in_time = place - of_medium(times), place
        is_time = (in_time >= 0) & (in_time < of_medium(times))
        if time.ndim == 4:
            time_index = medium * time.shape[2] + in_time
        else:
            first = jnp.argmax(media.frames, axis=-1)
            none = time.shape[1] - 1
            time_index = jnp.where(in_time < of_medium(num_frames), of_medium(first) + in_time, none)
        table = jnp.concatenate([time.reshape(batch, -1, width), space.reshape(batch, -1, width)], axis=1)
        space_index = table.shape[1] - most * num_space + medium * num_space + in_space
        index = jnp.clip(jnp.where(is_time, time_index, space_index), 0, table.shape[1] - 1)
        return VisualTokens(jnp.take_along_axis(table, index[..., None], axis=1), slot < ends[:, -1:])


class FrameConnector(nnx.Module):
    """Layer norm (eps 1e-6) and one affine map: a token from each frame's mean."""

    def __init__(self, in_features: int, out_features: int, *, dtype, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(in_features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.linear_1 = Linear(in_features, out_features, dtype=dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
        return self.linear_1(self.norm(features))


def pool(
    patches: Float[Array, "B T N D"], frames: Bool[Array, "B M T"]
) -> tuple[Float[Array, "B M N D"], Float[Array, "B T D"]]:
    """Means over the frames of each medium, zero where it has none, and over the patches of each frame; fp32 sums."""
    share = frames / jnp.maximum(frames.sum(-1, keepdims=True), 1)
    space = jnp.einsum("bmt,btnd->bmnd", share, patches, preferred_element_type=jnp.float32)
    return space.astype(patches.dtype), patches.mean(2, dtype=jnp.float32).astype(patches.dtype)


def _check(options: Adapter.Options, config: ModelConfig) -> None:
    connector = config.adapter.connector
    where = "config.model.adapter.options"
    per_frame = options.temporal == "linear" or connector.kind != "resampler"
    if options.temporal != "linear" and not is_tokenwise(connector) and connector.kind != "resampler":
        raise InputError(
            f"{where}.temporal: {options.temporal!r} needs a connector that maps a single feature, which "
            f"{connector.kind} does not; use 'linear'"
        )
    if options.join == "add" and per_frame:
        raise InputError(
            f"{where}.join: add sums as many time tokens as space tokens, which only a resampler connector with "
            "temporal 'same' or 'shared' gives; use time_first"
        )
    if options.pad_frames is not None and not per_frame:
        raise InputError(f"{where}.pad_frames: a resampler gives as many tokens for any number of frames; drop it")
