"""From a media file to frames: which frames, decoding with PyAV, resizing with PIL. All numpy, for loader workers."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vlvm_jax.data.files import brief


class BadSampleError(Exception):
    """A sample that cannot be used: skipped, counted under `cause` and logged."""

    def __init__(self, cause: str, detail: str):
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


def uniform_indices(total: int, count: int) -> list[int]:
    """Midpoints of `count` equal parts: floor((i + 0.5) * total / count). A clip shorter than `count` gives each
    frame once."""
    if total <= count:
        return list(range(total))
    return [int((i + 0.5) * total / count) for i in range(count)]


def fps_indices(total: int, clip_fps: float, fps: float, cap: int) -> list[int]:
    """A frame every 1/fps seconds from the first on; when that gives more than `cap`, `cap` uniform midpoints."""
    step = clip_fps / fps
    wanted = max(1, int(np.ceil(total / step - 1e-9))) if total else 0
    if wanted > cap:
        return uniform_indices(total, cap)
    return sorted({min(total - 1, int(i * step)) for i in range(wanted)})


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames taken from a clip.

    Attributes:
      frames: in time order.
      times: of each frame, in seconds from the start at the clip's mean rate.
      duration: of the whole clip in seconds, where known.
    """

    frames: UInt8[np.ndarray, "n S S 3"]
    times: tuple[float, ...]
    duration: float | None = None


def read_clip(
    path: str, count: int, size: int, *, rule: Literal["uniform", "fps"] = "uniform", fps: float = 1.0
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """At most `count` frames of a clip, in time order, by `resize`.

    Raises:
      BadSampleError: `missing`, `empty` or `corrupt`.
    """
    return decode_clip(path, count, lambda pixels: resize(Image.fromarray(pixels), size), rule=rule, fps=fps).frames


def decode_clip(
    path: str,
    count: int,
    to_frame: Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "S S 3"]],
    *,
    rule: Literal["uniform", "fps"] = "uniform",
    fps: float = 1.0,
) -> Clip:
    """At most `count` frames of a clip; each goes through `to_frame` as soon as it is decoded.

    Raises:
      BadSampleError: `missing`, `empty` or `corrupt`.
    """
    if not Path(path).is_file():
        raise BadSampleError("missing", path)
    try:
        with av.open(path, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise BadSampleError("corrupt", f"{path} has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise BadSampleError("corrupt", f"{path} has a video stream that nothing here decodes")
            stream.codec_context.thread_count = 1  # workers are the parallelism
            stated, clip_fps = stream.frames, float(stream.average_rate or fps)
            frames: dict[int, np.ndarray] = {}
            wanted = set(_choose(stated, count, rule, clip_fps, fps)) if stated else None
            to_pixels = _Converter()
            total = 0
            for frame in container.decode(stream):
                if wanted is not None and total in wanted:  # else counted first: all frames may not fit in memory
                    frames[total] = to_frame(to_pixels(frame))
                total += 1
    except (av.FFmpegError, ValueError, OSError) as error:
        raise BadSampleError("corrupt", f"{path} ({brief(error)})") from None
    if total == 0:
        raise BadSampleError("empty", f"{path} holds no frame")
    if total != stated:  # the header lied: choose again among what is there
        wanted = set(_choose(total, count, rule, clip_fps, fps))
        if not wanted <= frames.keys():
            frames = _reread(path, wanted, to_frame)
    assert wanted is not None
    chosen = sorted(wanted)
    return Clip(np.stack([frames[i] for i in chosen]), tuple(i / clip_fps for i in chosen), total / clip_fps)


def _choose(total: int, count: int, rule: str, clip_fps: float, fps: float) -> list[int]:
    return uniform_indices(total, count) if rule == "uniform" else fps_indices(total, clip_fps, fps, count)


def _reread(path: str, wanted: set[int], to_frame: Callable) -> dict[int, np.ndarray]:
    with av.open(path, metadata_errors="ignore") as container:
        to_pixels = _Converter()
        decoded = enumerate(container.decode(video=0))
        return {i: to_frame(to_pixels(frame)) for i, frame in decoded if i in wanted}


class _Converter:
    """Decoded frame to pixels. One conversion context for all frames of a clip: making one per frame, as
    `frame.to_image()` does, takes longer than decoding small clips."""

    def __init__(self):
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        return self._reformatter.reformat(frame, format="rgb24").to_ndarray()


def read_image(path: str, size: int) -> UInt8[np.ndarray, "1 {size} {size} 3"]:
    """One image, by `resize`.

    Raises:
      BadSampleError: `missing` or `corrupt`.
    """
    return resize(open_image(path, upright=False), size)[None]


def open_image(path: str, *, upright: bool = True) -> Image.Image:
    """One image in RGB at its own size; `upright` turns it as its EXIF orientation says.

    Raises:
      BadSampleError: `missing` or `corrupt`.
    """
    with _usable(path), Image.open(path) as image:
        return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")


def image_size(path: str) -> tuple[int, int]:
    """Height and width of the upright image in a file; reads its header only.

    Raises:
      BadSampleError: `missing` or `corrupt`.
    """
    with _usable(path), Image.open(path) as image:
        lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if lies else (image.height, image.width)


@contextlib.contextmanager
def _usable(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BadSampleError("missing", path) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSampleError("corrupt", f"{path} ({brief(error)})") from None


def resize(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's rule: shortest edge to `size` (bicubic), then the centre square. uint8 [size, size, 3]."""
    width, height = image.size
    if (width, height) != (size, size):
        short = min(width, height)
        image = image.resize((width * size // short, height * size // short), Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, np.uint8)
