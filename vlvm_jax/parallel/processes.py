"""Several processes that train together: how they find each other, share out batches, and end together."""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax._src import clusters, distributed  # no public name tells a cluster's size, or gives its key-value store
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vlvm_jax.errors import InputError, Interrupted, tell
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import process_rows

_FAILED, _LEFT = "vlvm_jax/failed", "vlvm_jax/left"  # keys: the exit code of the first to fail; who has left since
_LOOK, _PATIENCE = 0.5, 5.0  # seconds between looks for a failure; for which process 0 waits for the others to leave
_ending = threading.Lock()  # of the thread that ends this process, never released: the others must not cut it short


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the other processes of the run, if there are any, and sees to it that all of them end alike.

    Where the first to fail ends, all end, with its exit code; what it says is said once. Must be entered before the
    first question about devices.

    Raises:
      InputError: the environment names a number or place among processes that makes no sense.
    """
    if not _initialize():
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_watch, args=(distributed.global_state.client, ended), daemon=True).start()
    try:
        yield
    except Interrupted as error:
        ended.set()
        if error.at_once:  # perhaps here alone; else all of them have come here
            _fail(distributed.global_state.client, error)
        jax.distributed.shutdown()
        if distributed.global_state.process_id == 0:
            raise
        raise SystemExit(Interrupted.exit_code) from None
    except BaseException as error:
        _fail(distributed.global_state.client, error)
    ended.set()
    jax.distributed.shutdown()


def _initialize() -> bool:
    """Whether there are other processes; this one is connected to them then."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, place = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    if count == 1:
        return False
    if (address, count, place) == (None, None, None):
        cluster = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)
        if cluster[1] in (None, 1):
            return False
    try:
        jax.distributed.initialize(address, count, place)
    except ValueError as error:
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS={address}, JAX_NUM_PROCESSES={count}, JAX_PROCESS_ID={place}: {error}; set all "
            "three, or none where the processes are found by themselves"
        ) from None
    return True


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError(f"{name}={text}: expected a whole number")
    return int(text)


def _watch(client, ended: threading.Event) -> None:
    """Ends this process when another has failed: it may be waiting for that one for ever."""
    while not ended.wait(_LOOK):
        code = _failure(client)
        if code is not None and not ended.is_set():
            _ending.acquire()
            _leave(client, code)


def _failure(client) -> int | None:
    """The exit code of the process that failed first; None for none, and where nobody can tell any more."""
    try:
        return int(client.key_value_try_get(_FAILED))
    except jax.errors.JaxRuntimeError:
        return None


def _fail(client, error: BaseException) -> None:
    """Says what happened, unless another process failed before, and ends this one.

    Items of a checkpoint are written by threads that fail together: the first of them speaks.
    """
    _ending.acquire()
    code = getattr(error, "exit_code", 1)
    try:
        client.key_value_set(_FAILED, str(code))
        first = None
    except jax.errors.JaxRuntimeError:
        first = _failure(client)
    if first is not None:  # what happens here is a consequence
        _leave(client, first)
    if isinstance(error, InputError | Interrupted):
        tell(error)
    else:
        traceback.print_exception(error)
    _leave(client, code)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Around what is done in the background of a run: where it fails, all processes end, as when the run itself fails.

    Nobody would hear of it: the others wait for this process, and it for them, until Orbax gives up after 20 minutes.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        _fail(distributed.global_state.client, error)


def _leave(client, code: int) -> None:
    """Ends this process at once; process 0 as the last, for jax aborts all when its service is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if distributed.global_state.process_id:
            client.key_value_set(f"{_LEFT}/{distributed.global_state.process_id}", "")
        else:
            deadline = time.monotonic() + _PATIENCE
            others = distributed.global_state.num_processes - 1
            while len(client.key_value_dir_get(_LEFT)) < others and time.monotonic() < deadline:
                time.sleep(0.05)
    os._exit(code)


def primary() -> bool:
    """Whether this is the one process that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process is here; `name` tells one such place from another."""
    multihost_utils.sync_global_devices(name)


def any_of_them(here: bool) -> bool:
    """Whether it is so in any process; all ask together."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def first_text(here: str, most: int = 4096) -> str:
    """The text of the first process that has one, cut to `most` bytes; "" if none has. All ask together."""
    data = here.encode()[:most]
    row = np.zeros(most, np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    texts = (bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(row))
    return next(filter(None, texts), "")


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of every batch this process loads, and into how many equal shares the processes divide it.

    Processes whose devices hold the same rows, because `context` or `tensor` lies across them, load the same share.

    Raises:
      InputError: some processes' rows overlap in part.
    """
    rows = process_rows(mesh)
    shares = sorted(set(rows.values()))
    if sum(map(len, shares)) != rules.batch_shards(mesh) or len({len(share) for share in shares}) > 1:
        raise InputError(
            f"config.mesh: {dict(mesh.shape)} gives the {len(rows)} processes rows that overlap in part; context x "
            "tensor must divide the devices of a process, or be a multiple of them"
        )
    return shares.index(rows[jax.process_index()]), len(shares)
