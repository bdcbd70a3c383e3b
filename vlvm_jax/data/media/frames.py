"""From the path of a clip or image to pixels, resized with PIL. All numpy, for loader workers.

`decode` takes frames out of files, `sampling` has the rules which ones, `containers` knows where bytes lie.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlvm_jax.config import FrameRule, ShortVideo
from vlvm_jax.data.faults import BadSampleError, reading
from vlvm_jax.data.images import stills
from vlvm_jax.data.images.squares import resize
from vlvm_jax.data.media import decode, frame_rules
from vlvm_jax.data.media.containers import frame_names, frame_rate, open_medium
from vlvm_jax.data.media.decode import Taken
from vlvm_jax.workers import release_memory


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames taken from a clip.

    Attributes:
      frames: in time order.
      times: when each frame is first shown, in seconds from the clip's start (from the span's, where a span was taken).
      duration: of the whole clip (or span) in seconds, where known.
    """

    frames: UInt8[np.ndarray, "n S S 3"]
    times: tuple[float, ...]
    duration: float | None = None

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes


def read_clip(
    path: str, count: int, size: int, *, rule: FrameRule = "uniform", fps: float = 1.0, **options
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """At most `count` frames of a clip, in time order, by `resize`; options and errors of `decode_clip`."""
    to_frame = lambda pixels: resize(Image.fromarray(pixels), size)  # noqa: E731
    return decode_clip(path, count, to_frame, rule=rule, fps=fps, **options).frames


def decode_clip(
    path: str,
    count: int,
    to_frame: Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "S S 3"]],
    *,
    span: tuple[float, float] | None = None,
    **options: Any,
) -> Clip:
    """At most `count` frames of a clip, each through `to_frame`; options and errors of `decode_frames`."""
    taken = decode_frames(path, count, to_frame, span=span, **options)
    start, end = decode.part(taken.duration, span)
    return Clip(np.stack(taken.frames), tuple(max(0.0, time - start) for time in taken.times), end - start)


def decode_frames(
    path: str,
    count: int,
    to_frame: Callable[[UInt8[np.ndarray, "H W 3"]], np.ndarray] = lambda pixels: pixels,
    *,
    rule: FrameRule = "uniform",
    fps: float = 1.0,
    seed: Sequence[int] | None = None,
    short_video: ShortVideo = "formula",
    span: tuple[float, float] | None = None,
    folder_fps: float = 1.0,
) -> Taken:
    """At most `count` frames of a clip; each goes through `to_frame`, upright, as soon as it is decoded.

    Frames are chosen by time. Rule `fps` takes what is on screen at every slot of 1/fps seconds, again if it still is
    what was before (its time is then the slot's); if there are more than `count` slots, at the midpoints of `count`
    equal parts. The other rules count in the clip's mean rate if its frames are not equally far apart, and take the
    frame shown at a chosen time, once if it is shown at several.

    Args:
      path: a file or a folder of frames, as `containers` has them.
      rule, fps, seed, short_video: which frames; see `sampling`.
      span: start and end, in seconds, of the part that counts as the clip.
      folder_fps: frames per second of a clip kept as images, where nothing states it.

    Raises:
      BadSampleError: `missing`, `empty`, `no_video`, `corrupt`, `too_large` or `too_slow`.
      StorageError: storage does not answer.
      InputError: storage refuses access.
    """

    def choose(total: int, clip_fps: float) -> list[int]:
        return frame_rules.choose(total, clip_fps, count, rule=rule, fps=fps, seed=seed, short_video=short_video)

    slots = functools.partial(frame_rules.fps_times, fps=fps, cap=count) if rule == "fps" else None
    with reading(path):
        names = frame_names(path)
        if names is not None:
            return _of_images(names, path, choose, to_frame, frame_rate(path) or folder_fps, span, slots)
        with open_medium(path) as file:
            taken = decode.take_frames(file, path, choose, to_frame, at_most=count, span=span, slots=slots)
        release_memory()
    return taken


def _of_images(names: list[str], path: str, choose, to_frame, fps: float, span, slots) -> Taken:
    """A clip whose i-th frame is an image, shown from i / fps seconds on."""
    first, last = decode.within(len(names), fps, span)
    if first >= last:
        raise BadSampleError("empty", f"{path} holds no frame{decode.spoken(span)}")
    duration = len(names) / fps
    if slots is None:
        chosen = [first + index for index in choose(last - first, fps)]
        times = [index / fps for index in chosen]
    else:
        start, end = decode.part(duration, span)
        wanted = [start + time for time in slots(end - start)]
        chosen = [min(last - 1, int(time * fps + 1e-6)) for time in wanted]
        repeated = [number > 0 and index == chosen[number - 1] for number, index in enumerate(chosen)]
        times = [time if again else index / fps for time, index, again in zip(wanted, chosen, repeated, strict=True)]
    frames = {index: to_frame(np.asarray(open_image(names[index]))) for index in dict.fromkeys(chosen)}
    return Taken([frames[index] for index in chosen], times, duration)


def open_image(path: str) -> Image.Image:
    """One image in RGB at its own size, upright and on white; `images.stills` says how.

    Raises:
      BadSampleError: `missing`, `corrupt` or `too_large`.
      StorageError: storage does not answer.
      InputError: storage refuses access.
    """
    with reading(path), open_medium(path) as file, Image.open(file) as image:
        return stills.upright_rgb(image, path)


def image_size(path: str) -> tuple[int, int]:
    """Height and width of the upright image in a file, for most formats by its header alone.

    Raises:
      BadSampleError: `missing`, `corrupt` or `too_large`.
      StorageError: storage does not answer.
      InputError: storage refuses access.
    """
    with reading(path), open_medium(path) as file, Image.open(file) as image:
        return stills.upright_size(image)
