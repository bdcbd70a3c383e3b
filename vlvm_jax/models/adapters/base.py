"""The seam: what every video adapter takes and gives."""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlvm_jax.config import Settings
from vlvm_jax.models.vision import VisionFeatures


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrameLayout:
    """Which medium each frame of a row belongs to. Packed rows hold frames of several images and clips.

    Attributes:
      media: [B, T] 0 for padding; frames of one image or clip share an id, ids are 1, 2, 3, ... along the row.
      is_video: [B, T] True for frames of a clip, False for images (and padding).
      room: positions of the row, which no row has more visual tokens than; None where that is not known.
    """

    media: Int[Array, "B T"]
    is_video: Bool[Array, "B T"]
    room: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def mask(self) -> Bool[Array, "B T"]:
        return self.media > 0

    @property
    def index_in_medium(self) -> Int[Array, "B T"]:
        """0, 1, 2, ... within each clip."""
        num_frames = self.media.shape[1]
        steps = jnp.arange(num_frames)
        starts = jnp.concatenate([jnp.ones_like(self.media[:, :1], bool), self.media[:, 1:] != self.media[:, :-1]], 1)
        return steps - jax.lax.cummax(jnp.where(starts, steps, 0), axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisualTokens:
    """What the decoder reads in place of the placeholders, in order: the valid ones of `tokens`.

    Attributes:
      tokens: [B, V, C].
      valid: [B, V] False for slots that hold nothing (padding frames, a shorter image among clips).
    """

    tokens: Float[Array, "B V C"]
    valid: Bool[Array, "B V"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """What is asked, for adapters that look at it before they choose.

    Attributes:
      prompt_ids: [B, P] token ids of the raw question for the scoring text encoder, padded.
    """

    prompt_ids: Int[Array, "B P"]


class VideoAdapter(nnx.Module, abc.ABC):
    """Frame features to visual tokens. Owns the connector, because the systems place it differently."""

    Options: ClassVar[type[Settings]]
    needs_prompt: bool = False  # whether it asks for `guidance`

    @abc.abstractmethod
    def num_video_tokens(self, num_frames: int) -> int:
        """Tokens that a clip of `num_frames` frames takes in the sequence. Static: the pipeline lays it out."""

    @abc.abstractmethod
    def num_image_tokens(self) -> int:
        """Tokens that one image takes in the sequence."""

    @property
    def slots_per_frame(self) -> int | None:
        """V / T: slots that each frame has among the tokens this gives, filled or not; None where frames have none of
        their own, and images in tiles cannot be put together."""
        return None

    @abc.abstractmethod
    def __call__(
        self,
        features: VisionFeatures,
        layout: FrameLayout,
        *,
        guidance: Guidance | None = None,
        rng: jax.Array | None = None,
    ) -> VisualTokens:
        """Args:
        features: of the tower, `patches` [B, T, N, D].
        layout: which frames belong together.
        guidance: what is asked, for an adapter that `needs_prompt`; others do not look at it.
        rng: key for what is random in training; None in evaluation, where nothing may be.
        """

    def frame_weights(self, features: VisionFeatures) -> Float[Array, "B T N"] | None:
        """How much of each patch reaches the decoder, for pictures; None where the adapter has no such notion."""
        del features
        return None
