"""One record's bytes and the manifests: what is written is what is read, and damage is said."""

import dataclasses
import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.data.media import shard_record
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.sources import shards
from vlvm_jax.data.sources.shards import Manifest, ShardInfo
from vlvm_jax.errors import InputError

INFO = ShardInfo(
    settings="abc", records=2, sha256="00", bytes=12, kinds=("video", "text"), types=(("a", ""), ("",)),
    ids=("1", "2"), dropped={"missing": 1}, media={"video": 1},
    dropped_records=({"record": 7, "cause": "missing", "detail": "c.mp4"},),
)  # fmt: skip
MANIFEST = Manifest("clips", ("clips-00000-of-00001.array_record",), 2, {"size": 240, "sources": ["a", "b"]}, "ff")

names = st.text(min_size=1, max_size=8)
files = st.builds(StoredMedium, st.sampled_from(["image", "video"]), names, st.binary(min_size=1))
frames = st.builds(
    StoredMedium, st.just("video"), names, st.just(b""),
    st.lists(st.binary(), min_size=1, max_size=4).map(tuple), st.floats(0, 120),
)  # fmt: skip


@given(st.dictionaries(st.text(), st.text()), st.lists(files | frames, max_size=4))
def test_what_is_encoded_is_decoded(record, media):
    assert shard_record.decode(shard_record.encode(record, media)) == (record, media)


def test_the_envelope_is_as_documented():
    media = [StoredMedium("image", "a.jpg", b"\xff\xd8"), StoredMedium("video", "c", frames=(b"x", b"y"), fps=2.0)]
    assert msgpack.unpackb(shard_record.encode({"id": "1"}, media)) == {
        "record": {"id": "1"},
        "media": [
            {"kind": "image", "name": "a.jpg", "data": b"\xff\xd8"},
            {"kind": "video", "name": "c", "frames": [b"x", b"y"], "fps": 2.0},
        ],
    }


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93", b"plain text", msgpack.packb([1]), msgpack.packb({"record": {}}),
     msgpack.packb({"record": {}, "media": [{"kind": "image"}]}), shard_record.encode({"id": "1"}, [])[:-1]],
)  # fmt: skip
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="not a record of a shard"):
        shard_record.decode(data)


def test_manifests_are_read_as_written(tmp_path):
    (tmp_path / "a.json").write_text(shards.to_json(INFO))
    assert shards.read_info(str(tmp_path / "a.json")) == INFO
    (tmp_path / shards.MANIFEST).write_text(shards.to_json(MANIFEST))
    found = shards.read_manifest(str(tmp_path))
    assert dataclasses.replace(found, settings={}) == dataclasses.replace(MANIFEST, settings={})
    assert dict(found.settings) == {"size": 240, "sources": ["a", "b"]}
    assert set(json.loads(shards.to_json(INFO))) == {
        "version", "settings", "records", "sha256", "bytes", "kinds", "types", "ids", "dropped",
        "media", "dropped_records",
    }  # fmt: skip


def test_damage_other_versions_and_unfinished_folders_are_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="not finished; run `python"):
        shards.read_manifest(str(tmp_path))
    file = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        shards.read_info(str(file))
    for text, said in (
        (shards.to_json(INFO)[:-5], "damaged"),
        ("[]", "damaged"),
        ('{"version": 1, "settings": "x"}', "damaged"),
        (shards.to_json(dataclasses.replace(INFO, version=2)), "of version 2; this program reads version 1"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            shards.read_info(str(file))


def test_names():
    name = shards.shard_name("clips", 3, 16)
    assert name == "clips-00003-of-00016.array_record" and shards.info_name(name) == "clips-00003-of-00016.json"
    assert shards.combined(["a", "b"]) != shards.combined(["b", "a"])
