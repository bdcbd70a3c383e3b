"""The seam: what every video adapter takes and gives."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlvm_jax.config import ClipConfig, FrameTokens, Settings
from vlvm_jax.models.vision import VisionTower
from vlvm_jax.parallel.rules import ParameterAxes

# What an adapter's `encode_media` gives, a pytree whose arrays begin with [B, T]; by default `VisionFeatures`.
Features = Any
Losses = tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]


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
class Guidance:
    """What is asked, for adapters that look at frames with the question in mind.

    Attributes:
      prompt_ids: [B, P] one question a row, in the tokens of the adapter's own text tower, its end token included;
        what follows the end does not count.
    """

    prompt_ids: Int[Array, "B P"]


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


class VideoAdapter(nnx.Module, abc.ABC):
    """Frame features to visual tokens. Owns the connector, because the systems place it differently.

    Attributes:
      needs_prompt: it reads `guidance`, so that a row holds one sample (`pack: False`).
      one_clip: a row holds one clip at most, beside any images.
      stock: it does with frames what stock VLM classes do, by its options (`frame_tokens`).
      parameter_axes: logical axes of the adapter's own parameters, by the ends of their paths: rows as those of
        `parallel.rules.PARAMETER_AXES`, which has the rows of the parts that adapters share.
    """

    Options: ClassVar[type[Settings]]
    needs_prompt: ClassVar[bool] = False
    one_clip: ClassVar[bool] = False
    stock: ClassVar[bool] = False
    parameter_axes: ClassVar[ParameterAxes] = ()

    @classmethod
    def frame_tokens(cls, options: Settings) -> FrameTokens | None:
        """What the adapter does with frames, if stock VLM classes have terms for it: then an export may be one."""
        del options
        return None

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

    @property
    def clip_config(self) -> ClipConfig | None:
        """Sizes of the CLIP at `adapter/clip`, `vision` None where its tower is the model's; None without one."""
        return None

    @property
    def only_here(self) -> str | None:
        """The option that no PyTorch code of an export computes, and why; None if there is none."""
        return None

    @property
    def prompt_length(self) -> int:
        """P of `Guidance.prompt_ids`; 0 for an adapter that reads no prompt."""
        return 0

    def encode_media(self, encoder: VisionTower, frames: UInt8[Array, "B T H W 3"]) -> Features:
        """All of the image side that does not depend on the question: what is kept of a video for the next one."""
        return encoder(frames)

    @abc.abstractmethod
    def __call__(
        self, features: Any, layout: FrameLayout, *, guidance: Guidance | None = None, rng: jax.Array | None = None
    ) -> VisualTokens:
        """Visual tokens of the rows.

        Args:
        features: what `encode_media` gave; by default the tower's, `patches` [B, T, N, D].
        layout: which frames belong together.
        guidance: the rows' questions, for adapters that need them.
        rng: key for what is random in training; None in evaluation, where nothing may be.
        """

    def frame_weights(
        self, features: Any, layout: FrameLayout, guidance: Guidance | None = None
    ) -> Float[Array, "B T N"] | None:
        """How much of each patch reaches the decoder, for pictures; None where the adapter has no such notion."""
        del features, layout, guidance
        return None

    def path_weights(
        self, features: Any, layout: FrameLayout, guidance: Guidance | None = None
    ) -> dict[str, Float[Array, "B T N"]]:
        """The part that each path has in `frame_weights`, by its name, for pictures; empty where there are no paths."""
        del features, layout, guidance
        return {}

    def picked(self, features: Any, layout: FrameLayout, guidance: Guidance | None = None) -> dict[str, Array]:
        """What was chosen of each row's clip, for pictures and records; empty where nothing is."""
        del features, layout, guidance
        return {}


class LearnsByItself(abc.ABC):
    """What an adapter is too that can be trained without the decoder (`StageConfig.objective`)."""

    @abc.abstractmethod
    def own_losses(self, features: Any, layout: FrameLayout, guidance: Guidance | None = None) -> Losses:
        """Sums over the batch, fp32: the loss, how many it is of, how many are right."""
