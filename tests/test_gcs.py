"""`gs://` over an emulator, behind a proxy that makes requests fail."""

import io
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import fsspec
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint._src.serialization import tensorstore_utils
from support import gcs
from support.recipes import small
from support.small import DATA as SIZES

from vlvm_jax import gcs as ours
from vlvm_jax import storage
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.batch import dataset as dataset_lib
from vlvm_jax.data.batch import skipped
from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.sources import mixture
from vlvm_jax.errors import InputError
from vlvm_jax.samples import sample_spec
from vlvm_jax.storage import StorageError
from vlvm_jax.weights import param_store

pytestmark = pytest.mark.slow

DATA = random.Random(0).randbytes(3 * 2**20 + 17)


@pytest.fixture
def root(bucket, request):
    """An empty folder in the bucket; nothing fails yet."""
    bucket.faults = gcs.Faults()
    yield f"{bucket.root}/{re.sub('[^a-z0-9]+', '-', request.node.name)}"
    bucket.faults = gcs.Faults()


@pytest.fixture
def fail(bucket, monkeypatch):
    """Makes requests fail. What stalls does so for a second, and what always fails is given up after one."""
    patient, tries = aiohttp.ClientTimeout(sock_read=30), ours._TRIES

    def fail(*args, **kwargs) -> None:
        bucket.faults = gcs.Faults(*args, **kwargs)
        always, stall = bucket.faults.share == 1, bucket.faults.share > 0 and "stall" in bucket.faults.kinds
        timeout = aiohttp.ClientTimeout(sock_read=1) if stall else patient
        monkeypatch.setattr(fsspec.filesystem("gs"), "requests_timeout", timeout)
        monkeypatch.setattr(ours, "_TRIES", tries.with_timeout(1) if always else tries)

    return fail


def count(bucket, do) -> tuple[object, int]:
    """What `do` gives, and by how many requests."""
    before = len(bucket.requests)
    return do(), len(bucket.requests) - before


def test_files_and_folders(root):
    storage.write_text(f"{root}/a/words.txt", "naïve")
    storage.write_bytes(f"{root}/a/empty", b"")
    assert storage.is_file(f"{root}/a/words.txt") and not storage.is_file(f"{root}/a")
    assert storage.is_dir(f"{root}/a") and not storage.is_dir(f"{root}/a/words.txt") and not storage.is_dir(f"{root}/b")
    assert storage.names(root) == ["a"] and storage.names(f"{root}/a") == ["empty", "words.txt"]
    assert storage.read_text(f"{root}/a/words.txt") == "naïve"
    assert storage.read_bytes(f"{root}/a/empty") == storage.open_binary(f"{root}/a/empty").read() == b""
    before = storage.fingerprint(root)
    assert storage.fingerprint(root) == before
    storage.write_text(f"{root}/a/words.txt", "another")
    assert storage.fingerprint(root) != before
    assert storage.read_text(f"{root}/a/words.txt") == "another"
    for read in (storage.read_bytes, storage.open_binary, storage.names):
        with pytest.raises(FileNotFoundError, match=f"{root}/b$" if read is not storage.names else "b"):
            read(f"{root}/b")
    assert storage.has_bucket(root) and not storage.has_bucket("gs://no-such-bucket/run")


def test_only_what_is_read_is_fetched(root, bucket):
    storage.write_bytes(f"{root}/large", DATA)
    storage.write_bytes(f"{root}/small", DATA[:1000])
    small, requests = count(bucket, lambda: storage.open_binary(f"{root}/small").read())
    assert small == DATA[:1000] and requests == 1
    with storage.open_binary(f"{root}/large") as file:
        assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
        assert file.read() == DATA[-5:] and file.read() == b""
        for place in (0, 10, 2**20 - 3, 2**20, 2 * 2**20 + 5, len(DATA) - 1):
            file.seek(place)
            assert file.read(10) == DATA[place : place + 10]
        file.seek(3)
        rest, requests = count(bucket, file.read)
        assert rest == DATA[3:] and requests == 1  # the first block is there
        file.seek(len(DATA) + 9)
        assert file.read() == b""


@pytest.mark.parametrize("kind", gcs.KINDS)
def test_what_fails_sometimes_is_never_noticed(root, bucket, fail, kind):
    fail(0.1 if kind == "stall" else 0.3, (kind,))
    for number in range(8):
        path = f"{root}/{number}/file"
        storage.write_bytes(path, DATA[: 1000 * number])
        assert storage.read_bytes(path) == storage.open_binary(path).read() == DATA[: 1000 * number]
        assert storage.is_file(path) and not storage.is_file(f"{path}2") and storage.is_dir(f"{root}/{number}")
        epath.Path(path).unlink()
        assert not storage.is_file(path)
    with pytest.raises(FileNotFoundError):  # a folder is there as long as something is in it
        storage.names(root)
    assert bucket.faults.done[kind] > 2


def test_large_files_under_faults(root, bucket, fail):
    fail(0.2, gcs.QUICK)
    large = DATA * 2  # more than one block of an upload
    for number in range(8):
        with epath.Path(f"{root}/{number}").open("wb") as file:
            file.write(large)
        with storage.open_binary(f"{root}/{number}") as file:
            assert file.read() == large
    assert sum(bucket.faults.done.values()) > bucket.faults.done["ok"]


@pytest.mark.parametrize("kind", gcs.KINDS)
def test_what_always_fails_is_an_interruption(root, bucket, fail, kind):
    """Nothing that is not known is taken for missing, and nothing that was cut off for short."""
    storage.write_bytes(f"{root}/file", DATA)
    opened = storage.open_binary(f"{root}/file")
    fail(1.0, (kind,))
    opened.seek(2**20 + 7)
    for use in (
        lambda: opened.read(10),
        lambda: storage.read_bytes(f"{root}/file"),
        lambda: storage.is_file(f"{root}/missing"),
        lambda: storage.is_dir(f"{root}/file"),
        lambda: epath.Path(f"{root}/file").exists(),
        lambda: storage.write_bytes(f"{root}/new", b"1"),
        lambda: storage.names(root),
    ):
        with pytest.raises(StorageError, match=r"^gs://vlvm-test\S*: storage does not work \(asked .*\)$") as raised:
            use()
        assert raised.value.exit_code == 75 and "\n" not in str(raised.value)


def test_who_has_given_up_asks_once_until_storage_works_again(root, bucket, fail):
    storage.write_bytes(f"{root}/file", b"1")
    fail(1.0, ("503",))
    with pytest.raises(StorageError, match=r"asked \d+ times"):
        storage.read_bytes(f"{root}/file")
    with pytest.raises(StorageError, match="asked once"):
        storage.read_bytes(f"{root}/file")
    fail()
    assert storage.read_bytes(f"{root}/file") == b"1"
    fail(1.0, ("503",))
    with pytest.raises(StorageError, match=r"asked \d+ times"):
        storage.read_bytes(f"{root}/file")


@pytest.mark.parametrize("status", ["401", "403"])
def test_who_may_not_is_told_so(root, bucket, fail, status):
    fail(1.0, (status,))
    for use in (storage.read_bytes, storage.is_file, storage.is_dir, storage.open_binary, storage.names):
        with pytest.raises(InputError, match=rf"^gs://vlvm-test\S*: no access \(.*{status}.*\); see docs/gcs.md$"):
            use(f"{root}/file")
    assert bucket.faults.done["ok"] == 0


def test_logs_of_a_bucket(root, bucket):
    storage.write_text(f"{root}/metrics.jsonl", "1\n")
    storage.write_text(f"{root}/skipped.1.jsonl", "other\n")
    with storage.Logs(root) as logs:
        logs.fetch("*.jsonl")
        with (logs.folder / "metrics.jsonl").open("a") as file:
            file.write("2\n")
        (logs.folder / "tensorboard").mkdir()
        (logs.folder / "tensorboard" / "events").write_bytes(b"x")
        (logs.folder / "metrics.jsonl.new").write_text("half")
        assert storage.read_text(f"{root}/metrics.jsonl") == "1\n"
        logs.flush()
        assert storage.read_text(f"{root}/metrics.jsonl") == "1\n2\n"
        assert count(bucket, logs.flush)[1] == 0  # nothing has changed
        storage.write_text(f"{root}/skipped.1.jsonl", "other\nanother\n")
        storage.write_text(f"{root}/metrics.jsonl", "not by us")
        logs.fetch("*.jsonl")
        assert (logs.folder / "skipped.1.jsonl").read_text() == "other\nanother\n"
        assert (logs.folder / "metrics.jsonl").read_text() == "1\n2\n"
        (logs.folder / "tensorboard" / "events").write_bytes(b"xy")
    assert storage.names(root) == ["metrics.jsonl", "skipped.1.jsonl", "tensorboard"]
    assert storage.read_bytes(f"{root}/tensorboard/events") == b"xy"
    assert not logs.folder.exists()


def test_logs_tell_what_failed_behind_their_back(root, bucket, fail, monkeypatch):
    monkeypatch.setattr(storage, "_EVERY", 0.05)
    with pytest.raises(StorageError, match=r"/log\.jsonl: storage does not work"), storage.Logs(root) as logs:
        (logs.folder / "log.jsonl").write_text("1\n")
        while not storage.is_file(f"{root}/log.jsonl"):
            logs.check()
        fail(1.0, ("503",))
        (logs.folder / "log.jsonl").write_text("1\n2\n")
        while True:
            logs.check()


def test_logs_of_a_local_folder_are_the_folder(tmp_path):
    with storage.Logs(str(tmp_path)) as logs:
        assert logs.folder == tmp_path
        logs.fetch("*")
        logs.check()
    assert tmp_path.exists()


def test_parameters_under_faults_and_without_storage(root, bucket, fail, monkeypatch):
    folder = epath.Path(root) / "params"
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    fail(0.2, gcs.QUICK)
    param_store.save(folder, iter([("a/b", value)]))
    np.testing.assert_array_equal(param_store.read(folder, "a/b"), value)
    assert sum(bucket.faults.done.values()) > bucket.faults.done["ok"]
    retries = tensorstore_utils._BASE_TS_CONTEXT["gcs_request_retries"]
    assert retries == tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT["gcs_request_retries"]
    monkeypatch.setitem(retries, "max_retries", 1)
    for only in ("a%2Fb", ""):  # TensorStore's requests alone, and all
        storage.failing.clear()  # once it is known, everything asks once
        fail(1.0, ("503",), only=only)
        with pytest.raises(StorageError, match=r"storage does not work"):
            param_store.read(folder, "a/b")
        assert bucket.faults.done["503"] > 1


class Gone(Sequence):
    """Records of which storage gives none."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        raise StorageError("gs://vlvm-test/records: storage does not work (asked once)")


@pytest.fixture
def batches(root, data_root):
    """Makes batches of some records, or of the embedded images in the bucket, and the log of what is skipped."""
    made = shapes.folder(shapes.ShapesOptions(**SIZES), data_root)
    storage.upload(Path(made), f"{root}/data", last="dataset.json")
    config = small()
    data = config.data.model_copy(update={"tokenizer": f"{root}/data/tokenizer.json"})
    spec = sample_spec(config.model_copy(update={"data": data}), config.stages[0])
    images = mixture.read_mixture([MixtureEntry(path=f"{root}/data/train_arrangements.json")], 0)

    def make(workers: int, records: Sequence = images):
        log = skipped.SkipLog(records, 0.0)
        dataset = dataset_lib.make_dataset(records, spec, rows=4, pack=False, skip_log=log, seed=0, workers=workers)
        return iter(dataset), log

    return make


def test_a_sample_that_storage_does_not_give_is_no_bad_sample(batches, fail):
    found, log = batches(0)
    fail(1.0, ("503",), only="media")
    with pytest.raises(StorageError, match=r"^gs://vlvm-test/\S+\.png: storage does not work"):
        next(found)
    assert log.summary() == {}
    fail()
    found, _ = batches(0)
    assert next(found)["frames"].any()
    found.close()


def test_a_workers_storage_error_is_the_runs(batches):
    """The exception itself, not one of Grain's with the worker's traceback in it."""
    found, log = batches(1, Gone())
    try:
        with pytest.raises(StorageError) as raised:
            next(found)
    finally:
        found.close()
    assert str(raised.value) == "gs://vlvm-test/records: storage does not work (asked once)"
    assert log.summary() == {}


def test_the_embedded_data_set_is_copied_whole_or_is_not_there(root, bucket, fail, tmp_path, data_root, monkeypatch):
    options = shapes.ShapesOptions(**SIZES)
    (tmp_path / "vlvm_jax").symlink_to(data_root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fail(1.0, ("503",), only="upload")
    with pytest.raises(StorageError):
        shapes.ensure(options, root)
    assert not shapes.exists(options, root)
    fail()
    made = shapes.ensure(options, root)
    assert shapes.exists(options, root)
    info = json.loads((made / "dataset.json").read_text())
    assert info["options"]["train_arrangements"] == SIZES["train_arrangements"]
    name = json.loads((made / "train_clips.json").read_text())[-1]["video"]
    local = shapes.folder(options, data_root)
    assert storage.read_bytes(f"{made}/{name}") == (local / name).read_bytes()
