"""Google Cloud Storage through gcsfs, with requests that end: tried anew while that may help, for 40 seconds.

`storage` registers `FileSystem` for `gs://` with fsspec, so that etils and Orbax go through it too. gcsfs alone tries a
request six times, not at all when an answer stalls, and takes some faults for a file that is not there.
"""

import asyncio
import json
import re
from typing import Any, cast
from urllib.parse import unquote

import aiohttp
import google.auth.exceptions
from fsspec import asyn
from gcsfs.core import GCSFile, GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError, is_retriable
from google.api_core.exceptions import RetryError
from google.api_core.retry import AsyncRetry

from vlvm_jax import storage
from vlvm_jax.errors import InputError, brief

_TIMEOUT = aiohttp.ClientTimeout(sock_connect=8, sock_read=8)  # seconds without a byte


class AccessError(InputError, PermissionError):
    """The account may not do this."""


class FileSystem(GCSFileSystem):
    """gcsfs whose requests raise `StorageError` when storage keeps failing and `AccessError` where it refuses.

    A request is tried for 40 seconds, and once only where another has just failed for good. Listings are not cached:
    TensorStore and other hosts write here too.
    """

    def __init__(self, *args, **kwargs):
        settings = {"requests_timeout": _TIMEOUT, "use_listings_cache": False}
        super().__init__(*args, **{**settings, **kwargs})

    async def _request(self, method, path, *args, **kwargs):
        tries, uri = 0, _uri(path, args, kwargs.get("data"))

        async def once():
            nonlocal tries
            tries += 1
            answer = await GCSFileSystem._request.__wrapped__(self, method, path, *args, **kwargs)
            _check_range(answer)
            return answer

        try:
            answer = await cast(Any, _TRIES(once))()
        except FileNotFoundError:
            if method == "DELETE":  # perhaps done by a request whose answer was lost; aiohttp asks again by itself too
                return 204, {}, None, b""
            raise FileNotFoundError(uri) from None
        except RetryError as error:
            raise _failure(uri, error.cause, tries) from None
        except Exception as error:
            if _passes(error):
                raise _failure(uri, error, tries) from None
            if refused := _refused(error):
                raise AccessError(f"{uri}: no access ({refused}); see docs/gcs.md") from None
            raise
        storage.failing.clear()
        return answer

    def _open(self, path, mode="rb", block_size=None, **kwargs):
        return _File(self, path, mode, block_size or self.default_block_size, consistency=self.consistency, **kwargs)

    async def _isfile(self, path):
        try:
            await self._get_object(self._strip_protocol(path))
        except FileNotFoundError:
            return False
        return True

    async def _isdir(self, path):
        try:
            return cast(Any, await self._info(path))["type"] == "directory"
        except FileNotFoundError:
            return False

    async def _read_range(self, path: str, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes [start, stop) of an object and the size of all of it, by one request."""
        head = {"Range": f"bytes={start}-{stop - 1}"}
        try:
            headers, data = cast(Any, await self._call("GET", self.url(path), headers=head))
        except HttpError as error:
            if error.code != 416:
                raise
            return b"", start  # nothing from there on
        if "Content-Range" not in headers:  # all of it: gzipped objects come so
            return data[start:stop], len(data)
        return data, int(headers["Content-Range"].rpartition("/")[2])

    async def _has_bucket(self, path: str) -> bool:
        """Whether there is the bucket; needs no right but to list its objects."""
        try:
            await self._call("GET", "b/{}/o", self.split_path(path)[0], maxResults=1)
        except FileNotFoundError:
            return False
        return True

    read_range = asyn.sync_wrapper(_read_range)
    has_bucket = asyn.sync_wrapper(_has_bucket)


class _File(GCSFile):
    """What fits in one block is written by one request, which can be tried anew; gcsfs makes two."""

    def _initiate_upload(self):
        if self.buffer.tell() >= self.blocksize:
            super()._initiate_upload()

    def _upload_chunk(self, final=False):
        if self.location is not None:
            return super()._upload_chunk(final)
        self._simple_upload()


def _passes(error: Exception) -> bool:
    """Whether the fault may be gone at the next try."""
    passing = TimeoutError, asyncio.TimeoutError, google.auth.exceptions.TransportError
    return is_retriable(error) or isinstance(error, passing)


_TRIES = AsyncRetry(
    lambda error: _passes(error) and not storage.failing.is_set(), initial=0.2, maximum=8, multiplier=2, timeout=40
)


def _check_range(answer: tuple[int, Any, Any, bytes]) -> None:
    """Raises `ChecksumError`, which passes, for fewer bytes than the answer says it holds."""
    _, headers, _, contents = answer
    if match := re.match(r"bytes (\d+)-(-?\d+)/", headers.get("Content-Range", "")):
        promised = int(match[2]) - int(match[1]) + 1
        if len(contents) != promised:
            raise ChecksumError(f"{len(contents)} bytes of {promised}")


def _refused(error: Exception) -> str | None:
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return f"403 {brief(error)}"
    if isinstance(error, HttpError) and error.code in (401, 403):
        return brief(error)
    return None


def _failure(uri: str, error: Exception | None, tries: int) -> storage.StorageError:
    said = "no answer" if isinstance(error, TimeoutError) or error is None else brief(error)
    asked = "once" if tries == 1 else f"{tries} times"
    return storage.StorageError(f"{uri}: storage does not work (asked {asked}, the last time: {said})")


def _uri(path: str, args: tuple, data: Any) -> str:
    """The `gs://` URI that a request is about, for messages. An upload in one request names its object in its body."""
    if args:
        return "gs://" + "/".join(map(str, args[:2]))
    match = re.search(r"/b/([^/?]+)(?:/o/([^?]+))?(?:.*[?&]name=([^&]+))?", path)
    if match is None:
        return path
    parts = [unquote(part) for part in match.groups() if part]
    if (
        len(parts) == 1
        and isinstance(data, bytes)
        and (named := re.search(rb'"name": ("(?:[^"\\]|\\.)*")', data[:4096]))
    ):
        parts.append(json.loads(named[1]))
    return "gs://" + "/".join(parts)
