"""What makes a sample unusable."""

import contextlib
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from vlvm_jax.errors import InputError, Interrupted, brief


class BadSampleError(Exception):
    """A sample that cannot be used: skipped, counted under `cause` and logged.

    The causes: `missing` (no such file), `empty` (no frame in it, or none in the span asked for), `no_video` (sound
    only), `corrupt` (does not decode), `too_large` (its header states more pixels than are worth allocating),
    `too_slow` (more would have to be decoded than is worth one sample), `narrow` (an image that cannot be cut into
    tiles), `too_long` (more tokens than a row has), `too_many_frames` (more frames than a row has), `too_many_clips`
    (more than the model takes in a sample), `bad_record` (a record that does not parse).
    """

    def __init__(self, cause: str, detail: str):
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


_PLAIN = {"Invalid data found when processing input": "not a video, or damaged"}  # FFmpeg's words, and ours


def plain(error: Exception) -> str:
    """What a decoder's error says, without numbers of errors and names that FFmpeg or Pillow gives to open files."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    said = getattr(error, "strerror", None)
    return _PLAIN.get(said, said) if isinstance(said, str) and said else brief(error)


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Names what opening, reading or decoding a medium raises: `missing`, `too_large` or `corrupt`.

    Whatever a decoder raises is blamed on the sample. Errors of storage and access and lack of memory pass through:
    `StorageError`, `InputError`, `MemoryError`.
    """
    try:
        yield
    except (BadSampleError, InputError, Interrupted, MemoryError):
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadSampleError("missing", path) from None
    except Image.DecompressionBombError as error:
        raise BadSampleError("too_large", f"{path} ({brief(error)})") from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's for broken images are among them
        raise BadSampleError("corrupt", f"{path} ({plain(error)})") from None
    except Exception as error:
        raise BadSampleError("corrupt", f"{path} ({type(error).__name__}: {brief(error)})") from None
