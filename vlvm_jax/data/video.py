"""From a media file to frames: which frames, decoding with PyAV, resizing with PIL. All numpy, for loader workers."""

from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError


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


def read_clip(
    path: str, count: int, size: int, *, rule: Literal["uniform", "fps"] = "uniform", fps: float = 1.0
) -> np.ndarray:
    """At most `count` frames of a clip, uint8 [n, size, size, 3], in time order.

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
            to_pixels = _Converter(size)
            total = 0
            for frame in container.decode(stream):
                if wanted is not None and total in wanted:  # else counted first: all frames may not fit in memory
                    frames[total] = to_pixels(frame)
                total += 1
    except (av.FFmpegError, ValueError, OSError) as error:
        raise BadSampleError("corrupt", f"{path} ({_brief(error)})") from None
    if total == 0:
        raise BadSampleError("empty", f"{path} holds no frame")
    if total != stated:  # the header lied: choose again among what is there
        wanted = set(_choose(total, count, rule, clip_fps, fps))
        if not wanted <= frames.keys():
            return _reread(path, wanted, size)
    assert wanted is not None
    return np.stack([frames[i] for i in sorted(wanted)])


def _choose(total: int, count: int, rule: str, clip_fps: float, fps: float) -> list[int]:
    return uniform_indices(total, count) if rule == "uniform" else fps_indices(total, clip_fps, fps, count)


def _reread(path: str, wanted: set[int], size: int) -> np.ndarray:
    with av.open(path, metadata_errors="ignore") as container:
        to_pixels = _Converter(size)
        return np.stack([to_pixels(frame) for i, frame in enumerate(container.decode(video=0)) if i in wanted])


class _Converter:
    """Decoded frame to pixels. One conversion context for all frames of a clip: making one per frame, as
    `frame.to_image()` does, takes longer than decoding small clips."""

    def __init__(self, size: int):
        self.size = size
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        pixels = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        return resize(Image.fromarray(pixels), self.size)


def read_image(path: str, size: int) -> np.ndarray:
    """One image, uint8 [1, size, size, 3].

    Raises:
      BadSampleError: `missing` or `corrupt`.
    """
    try:
        with Image.open(path) as image:
            return resize(image.convert("RGB"), size)[None]
    except FileNotFoundError:
        raise BadSampleError("missing", path) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSampleError("corrupt", f"{path} ({_brief(error)})") from None


def resize(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's rule: shortest edge to `size` (bicubic), then the centre square. uint8 [size, size, 3]."""
    width, height = image.size
    if (width, height) != (size, size):
        short = min(width, height)
        image = image.resize((width * size // short, height * size // short), Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, np.uint8)


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
