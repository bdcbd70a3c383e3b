"""Manifests: what they notice, and that their checksums are those of whole files."""

import json
import os

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax import manifest
from vlvm_jax.manifest import Damage

FILES = {
    "params/d/a": os.urandom(3000), "params/manifest": b"tree", "data/reader.json": b"{}", "empty": b"", "top": b"{}",
}  # fmt: skip
EXTENTS = {"params/d/a": [(0, 1000, "x/kernel"), (1200, 700, "y/bias"), (1900, 1000, "y/bias")]}
BOTH = ("x/kernel", "y/bias")


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    manifest.write(str(tmp_path), manifest.measure(str(tmp_path), FILES, EXTENTS))
    return tmp_path


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.integers(0, 2**20))
def test_checksums_of_pieces_make_that_of_the_file(pieces, zeros):
    pieces = [*pieces, bytes(zeros)]
    sums = [(len(piece), google_crc32c.value(piece)) for piece in pieces]
    assert manifest._joined(sums) == google_crc32c.value(b"".join(pieces))


@pytest.mark.parametrize("limit", [500, 1 << 30])
def test_large_files_are_read_in_pieces_to_the_same_end(folder, monkeypatch, limit):
    """Tasks of a few bytes and blocks of fewer, on threads."""
    whole = manifest.measure(str(folder), FILES, EXTENTS)
    for name, value in (("_TASK", limit), ("_SMALL", 64), ("_BLOCK", 50)):
        monkeypatch.setattr(manifest, name, value)
    assert manifest.measure(str(folder), FILES, EXTENTS) == whole == manifest.load(manifest.dump(whole))
    assert {name: (entry.size, entry.crc32c) for name, entry in whole.items()} == {
        name: (len(data), google_crc32c.value(data)) for name, data in FILES.items()
    }
    assert manifest.check(str(folder)) == []


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_flipped_byte_is_noticed_and_traced_to_its_array(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest.write(str(folder), manifest.measure(str(folder), FILES, EXTENTS))
    name = data.draw(st.sampled_from([*(name for name in FILES if FILES[name]), manifest.FILE]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    (found,) = manifest.check(str(folder))
    assert found.file == name
    inside = [array for offset, size, array in EXTENTS.get(name, ()) if offset <= place < offset + size]
    assert found.arrays == tuple(inside)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda file: file.unlink(), Damage("params/d/a", "missing", BOTH)),
        (lambda file: file.write_bytes(b""), Damage("params/d/a", "0 bytes, expected 3000", BOTH)),
        (lambda file: os.truncate(file, 2999), Damage("params/d/a", "2999 bytes, expected 3000", BOTH)),
        (lambda file: file.with_name("b").touch(), Damage("params/d/b", "not in the manifest")),
        (lambda file: (file.unlink(), file.mkdir()), Damage("params/d/a", "missing", BOTH)),
    ],
)  # fmt: skip
def test_other_damage(folder, damage, expected):
    damage(folder / "params" / "d" / "a")
    assert manifest.check(str(folder)) == [expected]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:-1],
        lambda lines: lines[:1] + lines[2:],
        lambda lines: lines[1:],
        lambda lines: [],
        lambda lines: [*lines, "\n"],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    ],
)
def test_a_manifest_that_lost_lines_is_damaged_itself(folder, change):
    file = folder / manifest.FILE
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))
    (found,) = manifest.check(str(folder))
    assert found.file == manifest.FILE


def test_a_newer_manifest_is_refused_by_name(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 2)
        manifest.write(str(folder), {})
    (found,) = manifest.check(str(folder))
    assert "another version" in found.problem


def test_what_nothing_reads_may_lie_there(folder):
    (folder / "params" / ".DS_Store").touch()
    (folder / "note").touch()
    assert manifest.check(str(folder), unlisted=("note",)) == []
    (folder / manifest.FILE).unlink()
    assert manifest.check(str(folder)) is None


def test_only_the_content_asked_for_is_read(folder):
    (folder / "top").write_bytes(b"[]")
    assert [found.file for found in manifest.check(str(folder), under=("params",))] == ["top"]  # in no folder
    (folder / "top").write_bytes(FILES["top"])
    (folder / "data" / "reader.json").write_bytes(b"[]")
    assert manifest.check(str(folder), under=("params",)) == []
    assert [found.file for found in manifest.check(str(folder))] == ["data/reader.json"]
    shares = [manifest.check(str(folder), share=(place, 3)) for place in range(3)]
    assert [found.file for share in shares for found in share] == ["data/reader.json"]


def test_many_damaged_files_are_one_line(folder):
    for name in FILES:
        (folder / name).unlink()
    text = manifest.describe(manifest.check(str(folder)))
    assert "\n" not in text
    assert text == ("data/reader.json: missing, and 4 more files (empty, params/d/a, ...); arrays: x/kernel, y/bias")


def test_sealed_values():
    values = {"a": 1, "b": [1.5, None]}
    text = json.dumps(manifest.sealed(values))
    assert manifest.unsealed(text) == values == manifest.unsealed(json.dumps(values))
    for bad in (text.replace("1.5", "1.6"), text[:-1], "[]"):
        with pytest.raises(ValueError, match=r"checksum|JSON|delimiter"):
            manifest.unsealed(bad)
