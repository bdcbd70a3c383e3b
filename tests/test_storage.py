"""Names and local files; remote ones are tested over an emulator."""

import io
import os

import pytest

from vlvm_jax import storage


@pytest.mark.parametrize("root", ["/data/clips", "/data/clips/", "gs://bucket/clips"])
def test_join_stays_below_its_root(root):
    assert storage.join(root, "a/b.mp4") == f"{root.rstrip('/')}/a/b.mp4"
    assert storage.join(root, f"{root.rstrip('/')}/c.mp4") == f"{root.rstrip('/')}/c.mp4"
    for name in ("../b.mp4", "a/../../b.mp4", "/etc/passwd", "gs://other/b.mp4", f"{root.rstrip('/')}2/b.mp4"):
        with pytest.raises(ValueError, match="leaves"):
            storage.join(root, name)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    """Who has the old one open reads it to its end, and nobody sees a part of the new one."""
    path = tmp_path / "a" / "words.txt"
    storage.write_bytes(str(path), b"the old words")
    with path.open("rb") as opened:
        storage.write_bytes(str(path), b"new")
        assert opened.read() == b"the old words" and path.read_bytes() == b"new"
    with storage.writing(str(path)) as local:
        with open(local, "wb") as file:  # noqa: PTH123
            file.write(b"newer")
        assert path.read_bytes() == b"new" and local.endswith(storage.PARTIAL)
    assert path.read_bytes() == b"newer"
    with pytest.raises(OSError, match="full"), storage.writing(str(path)) as local:
        with open(local, "wb") as file:  # noqa: PTH123
            file.write(b"half of the")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"newer" and storage.names(str(path.parent)) == ["words.txt"]


def test_what_killed_processes_left_is_swept(tmp_path):
    for name in ("a/.words.txt.17.partial", ".b.18.partial", "a/words.txt", "c.partial"):
        storage.write_bytes(f"{tmp_path}/{name}", b"1")
    storage.sweep(str(tmp_path))
    assert sorted(storage.listing(str(tmp_path))) == ["a/words.txt", "c.partial"]


def test_a_fingerprint_tells_another_content(tmp_path):
    seen = set()
    for name, content in (("a", b"1"), ("b/c", b"2"), ("b/c", b"34"), ("b/d", b"2")):
        storage.write_bytes(f"{tmp_path}/{name}", content)
        assert storage.fingerprint(str(tmp_path)) == storage.fingerprint(str(tmp_path))
        seen.add(storage.fingerprint(str(tmp_path)))
    os.utime(tmp_path / "a", (1, 1))
    assert len(seen | {storage.fingerprint(str(tmp_path))}) == 5


def test_local_files(tmp_path):
    file = tmp_path / "a" / "words.txt"
    file.parent.mkdir()
    file.write_bytes(b"na\xefve")
    assert storage.is_dir(str(file.parent)) and storage.is_file(str(file)) and not storage.is_file(str(tmp_path / "b"))
    assert storage.names(str(tmp_path)) == ["a"] and storage.parent(str(file)) == str(file.parent)
    assert storage.read_bytes(str(file)) == b"na\xefve" and storage.read_text(str(file)) == "na�ve"
    with storage.open_binary(str(file)) as opened:
        opened.seek(-2, io.SEEK_END)
        assert opened.read() == b"ve"
    for read in (storage.read_bytes, storage.open_binary, storage.names):
        with pytest.raises(FileNotFoundError):
            read(str(tmp_path / "b"))
