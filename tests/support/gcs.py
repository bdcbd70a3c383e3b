"""A bucket to test with: gcp-storage-emulator as a process, and a proxy in front of it that makes requests fail.

What the emulator lacks and clients need, the proxy adds: connections that stay open, the generation of what is read,
preconditions on it, and an answer to a piece of an upload that is sent twice. Neither knows pages of listings or
`moveTo`.
"""

import contextlib
import dataclasses
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

BUCKET = "vlvm-test"
QUICK = ("429", "500", "503", "cut", "lost")
KINDS = (*QUICK, "stall")


@dataclasses.dataclass
class Faults:
    """What goes wrong.

    Attributes:
      share: of requests that fail.
      kinds: how: a status; `cut` ends the answer in its middle; `lost` ends it before, the request being done; `stall`
        answers nothing until the client goes away.
      only: part of the path of requests that may fail.
      done: how often each kind was done, and `ok`.
    """

    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    only: str = ""

    def __post_init__(self):
        self.done: Counter[str] = Counter()
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def draw(self, path: str) -> str:
        with self._lock:
            hit = self._random.random() < self.share and self.only in path
            kind = self._random.choice(self.kinds) if hit else "ok"
            self.done[kind] += 1
            return kind


class Gcs:
    """The running bucket. `gs://vlvm-test` for processes with `environment`."""

    def __init__(self, proxy: "_Proxy"):
        self._proxy = proxy
        self.root = f"gs://{BUCKET}"
        url = f"http://127.0.0.1:{proxy.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "NO_GCE_CHECK": "true",
        }

    @property
    def faults(self) -> Faults:
        return self._proxy.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._proxy.faults = faults

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of all requests so far."""
        return list(self._proxy.requests)

    @property
    def objects(self) -> list[str]:
        """Names of what is in the bucket."""
        return sorted(self._proxy.generations)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.emulator, self.faults, self.turn = port, Faults(), threading.Lock()
        self.requests: list[tuple[str, str]] = []
        self.generations: dict[str, str] = {}
        self.uploaded: dict[tuple, tuple[int, dict[str, str], bytes]] = {}  # answers to pieces of resumable uploads

    def handle_error(self, *_) -> None:
        """A client that goes away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy
    hop_by_hop: ClassVar = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}

    def answer(self) -> None:
        body = self._body()
        self.server.requests.append((self.command, self.path))
        kind = self.server.faults.draw(self.path)
        if kind == "stall":
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # returns when the client has gone
            self.close_connection = True
        elif kind.isdigit():
            self._send(int(kind), {"Content-Type": "text/plain"}, b"an injected fault")
        else:
            status, headers, data = self._ask(body)
            if kind == "ok":
                self._send(status, headers, data)
            else:
                self.close_connection = True
                if kind == "cut":
                    self._send(status, headers, data, cut=len(data) // 2)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {key: value for key, value in self.headers.items() if key.lower() not in self.hop_by_hop}
        with self.server.turn:
            if refused := self._precondition():
                return refused, {}, b""
            piece = self.path, self.headers.get("Content-Range")
            if piece in self.server.uploaded:
                return self.server.uploaded[piece]
            asked = http.client.HTTPConnection("127.0.0.1", self.server.emulator, timeout=60)
            asked.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            response = asked.getresponse()
            data = response.read()
            asked.close()
            answer = {k: v for k, v in response.getheaders() if k.lower() not in self.hop_by_hop}
            self._follow(response.status, answer, data)
            if "upload_id" in self.path and response.status < 400:
                self.server.uploaded[piece] = response.status, answer, data
        return response.status, answer, data

    def _object(self) -> tuple[str | None, dict[str, str]]:
        """The object that the request is about, and the request's parameters."""
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        named = re.search(r"/o/([^/]+)", url.path)
        return (unquote(named[1]) if named else query.get("name")), query

    def _precondition(self) -> int | None:
        name, query = self._object()
        current = self.server.generations.get(str(name), "0")
        if query.get("ifGenerationMatch", current) != current:
            return 412
        return 304 if query.get("ifGenerationNotMatch") == current else None

    def _follow(self, status: int, headers: dict[str, str], data: bytes) -> None:
        """Notes generations, and adds the one of what is read."""
        name, query = self._object()
        if status >= 300:
            return
        if self.command in ("POST", "PUT") and data.startswith(b"{"):
            made = json.loads(data)
            made = made.get("resource", made)
            self.server.generations[made["name"]] = made["generation"]
        elif self.command == "DELETE":
            self.server.generations.pop(str(name), None)
        elif query.get("alt") == "media":
            headers["X-Goog-Generation"] = self.server.generations[str(name)]

    def _send(self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for key, value in (headers | {"Content-Length": str(len(data) or (1 if cut is not None else 0))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[:cut])

    def log_message(self, *_) -> None:
        """Nothing."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Gcs]:
    """A bucket whose objects lie in `folder`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [
        sys.executable, "-m", "gcp_storage_emulator", "-d", str(folder), "start", "--quiet", "--host=127.0.0.1",
        f"--port={port}", f"--default-bucket={BUCKET}",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as emulator:
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert emulator.poll() is None and time.monotonic() < deadline, "the emulator does not start"
                time.sleep(0.05)
            with _Proxy(port) as proxy:
                threading.Thread(target=proxy.serve_forever, daemon=True).start()
                yield Gcs(proxy)
                proxy.shutdown()
        finally:
            emulator.kill()
