"""An image or clip ready for the model, and the arrays of one sample."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vlvm_jax.data.images.anyres import Layout
from vlvm_jax.data.prompt.conversation import Expansion, Tokens
from vlvm_jax.data.record import MediaKind

Sample = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Medium:
    """An image or clip.

    Attributes:
      frames: of a clip in time order; of an image the image itself, or the tiles it is cut into.
      expansion: what its placeholder becomes.
      layout: where its visual tokens come from, when that is not simply its frames' tokens in order.
      times: of a clip's frames, in seconds; empty for an image.
    """

    kind: MediaKind
    frames: UInt8[np.ndarray, "n S S 3"]
    expansion: Expansion
    layout: Layout | None = None
    times: tuple[float, ...] = ()


def assemble(tokens: Tokens, media: Sequence[Medium], image_size: int, *, slots: int = 0, taps: int = 0) -> Sample:
    """One sample, not yet padded: n tokens and T frames, the media in the order in which the text shows them.

    Args:
      slots: S, which each frame has for `Medium.layout` to address.
      taps: P; 0 for no `visual_index` and `visual_weight`.

    Returns:
      `token_ids` int32 [n], `media_mask` and `loss_mask` bool [n]; `frames` uint8 [T, size, size, 3], `media` int32 [T]
      from 1, `is_video` bool [T]; with taps `visual_index` int32 and `visual_weight` float32 [n, P], which count slots
      from the sample's first frame.
    """
    media = [media[i] for i in tokens.order]
    lengths = [len(medium.frames) for medium in media]
    sample = {
        "token_ids": tokens.ids,
        "media_mask": tokens.media_mask,
        "loss_mask": tokens.loss_mask,
        "frames": np.concatenate([np.zeros((0, image_size, image_size, 3), np.uint8), *(m.frames for m in media)]),
        "media": np.repeat(np.arange(1, len(media) + 1, dtype=np.int32), lengths),
        "is_video": np.repeat(np.array([medium.kind == "video" for medium in media], bool), lengths),
    }
    if taps:
        index = np.zeros((len(tokens.ids), taps), np.int32)
        weight = np.zeros((len(tokens.ids), taps), np.float32)
        layouts = [medium.layout for medium in media if medium.layout is not None]
        starts = np.cumsum([0, *lengths[:-1]]) * slots
        if layouts:
            moved = [layout.index + start for layout, start in zip(layouts, starts, strict=True)]
            index[tokens.media_mask] = np.concatenate(moved)
            weight[tokens.media_mask] = np.concatenate([layout.weight for layout in layouts])
        sample |= {"visual_index": index, "visual_weight": weight}
    return sample
