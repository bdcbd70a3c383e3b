"""Records whose media lie with them in shards, Parquet files and TFDS data sets."""

import io
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from support.stored import clip, jpeg, shades, write_shards

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media.containers import frame_names, open_medium
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.record import Turn
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.errors import InputError


def said(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def source_of(path, **options):
    return open_source(MixtureEntry(path=str(path), **options))


def shown(record):
    """Shades of the record's media, of clips kept as frames one by one."""
    found = []
    for _, path in record.media:
        names = frame_names(path)
        found.append([shades(open_medium(name))[0] for name in names] if names else shades(open_medium(path)))
    return found


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        source_of(path, **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# --- shards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    def one(number, *media, **keys):
        names = {kind: [m.name for m in media if m.kind == kind] for kind in ("image", "video")}
        named = {kind: found for kind, found in names.items() if found}
        return {"id": f"r{number}", **named, "conversations": said(f"q{number}", "a"), **keys}, list(media)

    image, video = StoredMedium("image", "i.jpg", jpeg(30)), StoredMedium("video", "v.mp4", clip([10, 200]))
    frames = StoredMedium("video", "last.jpg", frames=(jpeg(40), jpeg(50)), fps=2.0)
    parts = [
        [one(0, image, types=["color"]), one(1, video, start=1, end=2), one(2)],
        [one(3, frames, frames, types=["speed"]), one(4, video, image)],
    ]
    return write_shards(tmp_path / "made", parts)


def test_shards_are_the_records_that_were_put_in(made):
    source = source_of(made)
    assert [record.id for record in source] == ["r0", "r1", "r2", "r3", "r4"]
    assert list(source.kinds) == ["image", "video", "text", "video", "video"]
    assert [record.kind for record in source] == list(source.kinds)
    assert source.types == [("color",), (), (), ("speed",), ()]
    first, second = f"{made}/clips-00000-of-00002.array_record", f"{made}/clips-00001-of-00002.array_record"
    assert source[0].media == (("image", f"{first}#0/0"),) and source[0].turns == (Turn("<image>\nq0", "a", "color"),)
    assert source[0].source == f"{first}: record 0" and source[1].span == (1.0, 2.0)
    assert source[3].media == (("video", f"{second}#0/0"), ("video", f"{second}#0/1"))
    assert shown(source[0]) == [[30]] and shown(source[3]) == [[40, 50], [40, 50]]
    assert [kind for kind, _ in source[4].media] == ["image", "video"]
    image, video = shown(source[4])
    assert image == [30] and video == pytest.approx([10, 200], abs=3)


def test_shards_by_pattern_and_by_name(made):
    assert [r.id for r in source_of(f"{made}/clips-*.array_record")] == ["r0", "r1", "r2", "r3", "r4"]
    assert [r.id for r in source_of(f"{made}/clips-00001-of-00002.array_record")] == ["r3", "r4"]
    assert source_of(made).digest() == source_of(f"{made}/clips-*.array_record").digest()


def test_shards_are_read_in_another_process(made):
    source = source_of(made)
    assert shown(source[0]) == [[30]]  # what is open by now is not pickled
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    script = "import pickle, sys; s = pickle.load(sys.stdin.buffer); print([r.id for r in s], len(s[3].media))"
    done = subprocess.run([sys.executable, "-c", script], input=packed, capture_output=True)
    assert done.stdout.decode().strip() == "['r0', 'r1', 'r2', 'r3', 'r4'] 2", done.stderr


def test_what_is_wrong_with_shards(made):
    shard = made / "clips-00001-of-00002.array_record"
    source = source_of(made)
    data = shard.read_bytes()
    copy = made / "clips-00007-of-00008.array_record"
    copy.write_bytes(data[:300] + bytes(len(data) - 300))
    assert "clips-00007-of-00008.json beside it; shards are made by" in refusal(copy)
    (made / "clips-00007-of-00008.json").write_text((made / "clips-00001-of-00002.json").read_text())
    with pytest.raises(BadSampleError) as caught:
        source_of(copy)[0]
    assert caught.value.cause == "bad_record" and str(copy) in caught.value.detail
    shard.rename(made / "away")
    with pytest.raises(BadSampleError, match="there is no file"):
        source[3]
    assert source[0].id == "r0"
    (made / "manifest.json").unlink()
    assert "a folder with neither manifest.json" in refusal(made)
    assert "these shards are not finished" in refusal(made, format="array_record")


# --- Parquet -----------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    def write(columns, name="t.parquet", **options):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name, **options)
        return tmp_path / name

    return write


def image(shade=None, path=None):
    return {"bytes": None if shade is None else jpeg(shade), "path": path}


IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def test_parquet_of_hf_images(table, tmp_path):
    path = table({
        "id": ["a", "b", "c", "d"],
        "image": pyarrow.array([image(10), image(20), None, image(path="sub/i.jpg")], IMAGE),
        "conversations": [said("<image>\nq", "a")] * 2 + [said("q", "a")] * 2,
        "type": ["x", "y", None, "x"],
    }, row_group_size=2)  # fmt: skip
    source = source_of(path)
    assert list(source.kinds) == ["image", "image", "text", "image"] and source.types == [("x",), ("y",), (), ("x",)]
    assert [(r.id, r.kind, [t.type for t in r.turns]) for r in source] == [
        ("a", "image", ["x"]), ("b", "image", ["y"]), ("c", "text", [""]), ("d", "image", ["x"])]  # fmt: skip
    assert source[1].media == (("image", f"{path}#1/image"),) and source[1].turns[0].question == "<image>\nq"
    assert shown(source[0]) == [[10]] and shown(source[1]) == [[20]]
    assert source[3].media == (("image", f"{tmp_path}/sub/i.jpg"),)
    assert len(pickle.dumps(source)) < 2000


def test_parquet_of_messages_with_lists_of_images(table):
    parts = [{"type": "image", "text": None}, {"type": "image", "text": None}, {"type": "text", "text": "q"}]
    answer = [{"type": "text", "text": "a"}]
    path = table({
        "images": pyarrow.array([[image(10), image(20)], []], pyarrow.list_(IMAGE)),
        "messages": [[{"role": "user", "content": parts}, {"role": "assistant", "content": answer}],
                     [{"role": "user", "content": parts[2:]}, {"role": "assistant", "content": answer}]],
    })  # fmt: skip
    both, none = source_of(path)
    assert shown(both) == [[10], [20]] and both.turns == (Turn("<image>\n<image>\nq", "a"),)
    assert none.media == () and list(source_of(path).kinds) == ["image", "text"]


def test_parquet_of_clips_as_bytes_frames_and_paths(table, tmp_path):
    clips = [clip([10, 200]), clip([90])]
    path = table({"video": clips, "q": ["q0", "q1"], "a": ["a0", "a1"]}, name="bytes.parquet")
    first, second = source_of(path, fields={"question": "q", "answer": "a"})
    assert first.turns == (Turn("<image>\nq0", "a0"),) and second.media == (("video", f"{path}#1/video"),)
    assert shown(first) == [pytest.approx([10, 200], abs=3)] and shown(second) == [pytest.approx([90], abs=3)]

    qa = [json.dumps([{"i": "", "q": "q", "a": "a"}])] * 2
    path = table({"video": [[jpeg(1), jpeg(2)], [jpeg(3)]], "QA": qa}, name="frames.parquet")
    assert [shown(record) for record in source_of(path)] == [[[1, 2]], [[3]]]
    path = table({"video": [clips, clips[:1]], "QA": qa}, name="lists.parquet")
    assert [len(record.media) for record in source_of(path)] == [2, 1]
    assert source_of(path)[0].media[1] == ("video", f"{path}#0/video/1")
    assert shown(source_of(path)[0])[1] == pytest.approx([90], abs=3)
    path = table({"video": ["v.mp4", "w.mp4"], "QA": qa}, name="paths.parquet")
    assert source_of(path, media_root="gs://bucket/x")[1].media == (("video", "gs://bucket/x/w.mp4"),)


def test_only_the_row_group_that_is_asked_for_is_read(table):
    noise = [np.random.default_rng(i).bytes(10_000) for i in range(40)]
    path = table({"image": noise, "conversations": [said("q", "a")] * 40}, row_group_size=10)
    file = pyarrow.parquet.ParquetFile(path)
    start = file.metadata.row_group(2).column(0).dictionary_page_offset
    start = start or file.metadata.row_group(2).column(0).data_page_offset
    source = source_of(path)
    data = bytearray(path.read_bytes())
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)
    damaged = source_of(path)
    assert damaged[5].id == "5" and damaged[35].id == "35"
    for index in (20, 29):
        with pytest.raises(BadSampleError) as caught:
            damaged[index]
        assert caught.value.cause == "bad_record" and "row group 2" in caught.value.detail
    assert len(source) == 40


def test_several_parquet_files(table, tmp_path):
    for number in range(2):
        table({"conversations": [said(f"q{number}", "a")]}, name=f"part-{number}.parquet")
    assert [record.turns[0].question for record in source_of(f"{tmp_path}/part-*.parquet")] == ["q0", "q1"]


def test_what_is_wrong_with_parquet(table, tmp_path):
    path = table({"conversations": [said("q", "a")], "text": ["x"]})
    assert "fields: no column 'absent'; there are conversations, text" in refusal(path, fields={"video": "absent"})
    assert "fields: no key 'clip'; there are image, video, id" in refusal(path, fields={"clip": "text"})
    assert "no 'conversations' list" in refusal(table({"text": ["x"]}, name="other.parquet"))
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but not really")
    assert "not a Parquet file" in refusal(tmp_path / "no.parquet")
    assert "no such Parquet file" in refusal(tmp_path / "absent.parquet")
    bad = table({"conversations": [said("q", "a"), said("<image> q", "a")]}, name="bad.parquet")
    with pytest.raises(BadSampleError, match=r"bad\.parquet: record 1: a placeholder but neither"):
        source_of(bad)[1]


def test_parquet_with_values_nested_too_deep_is_a_bad_record(table):
    """As JSON in a text column, and as lists of lists, whose depth the file's own schema states."""
    good = json.dumps(said("what ?", "that"))
    source = source_of(table({"conversations": ["[" * 100_000, "[" * 500 + "]" * 500, good]}))
    for index in (0, 1):
        with pytest.raises(BadSampleError, match="nested more than 100 levels deep"):
            source[index]
    assert source[2].turns == (Turn("what ?", "that"),)
    deep = "text"
    for _ in range(300):
        deep = [deep]
    source = source_of(table({"conversations": [deep]}))
    with pytest.raises(BadSampleError) as caught:
        source[0]
    assert len(str(caught.value)) < 1000


def test_a_column_that_looks_like_media_is_not_left_out(table, tmp_path):
    asked = {"query": ["what?"], "response": ["it"], "system": ["Be brief."]}
    path = table({"video_path": ["v.mp4"], **asked})
    message = refusal(path)
    assert "the column 'video_path' looks like media, but is not read; rename it to 'video', or set fields=" in message
    (record,) = source_of(path, fields={"video": "video_path"})
    assert record.media == (("video", f"{tmp_path}/v.mp4"),) and record.system == "Be brief."
    assert record.turns == (Turn("<image>\nwhat?", "it"),)


# --- TFDS --------------------------------------------------------------------------------------------------------


class Clips(tfds.core.GeneratorBasedBuilder):
    """Three records of every kind of feature that may hold media."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict({
            "name": features.Text(),
            "picture": features.Image(encoding_format="jpeg"),
            "frames": features.Sequence(features.Image(encoding_format="jpeg")),
            "file": features.Tensor(shape=(), dtype=np.object_),
            "path": features.Text(),
            "asked": features.Text(),
            "answered": features.Text(),
            "said": features.Sequence({"from": features.Text(), "value": features.Text()}),
            "sort": features.Text(),
            "begin": np.float32,
        }))  # fmt: skip

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            yield (
                i,
                {
                    "name": f"n{i}",
                    "picture": io.BytesIO(jpeg(10 * i)),
                    "frames": [io.BytesIO(jpeg(10 * i + k)) for k in range(i + 1)],
                    "file": clip([50 * i]),
                    "path": f"{i}.mp4",
                    "asked": f"q{i}",
                    "answered": "a",
                    "said": said(f"s{i}", "a"),
                    "sort": "ab"[i % 2],
                    "begin": 0.5 * i,
                },
            )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    builder = Clips(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


ASKED = {"id": "name", "question": "asked", "answer": "answered"}


def by_id(source):
    return {record.id: record for record in source}


def test_tfds_of_images(dataset):
    source = source_of(f"{dataset}@train", fields={**ASKED, "image": "picture", "type": "sort"})
    assert len(source) == 3 and list(source.kinds) == ["image"] * 3
    found = by_id(source)
    assert found.keys() == {"n0", "n1", "n2"} and found["n2"].turns == (Turn("<image>\nq2", "a", "a"),)
    assert [shown(found[f"n{i}"]) for i in range(3)] == [[[0]], [[10]], [[20]]]
    assert [record.turns[0].type for record in source] == [one for (one,) in source.types]


def test_tfds_of_clips_as_frames_files_and_paths(dataset):
    frames = by_id(source_of(f"{dataset}@train", fields={**ASKED, "video": "frames", "start": "begin"}))
    assert [shown(frames[f"n{i}"]) for i in range(3)] == [[[0]], [[10, 11]], [[20, 21, 22]]]
    assert frames["n1"].span[0] == 0.5
    files = by_id(source_of(f"{dataset}@train", fields={**ASKED, "video": "file"}))
    assert [shown(files[f"n{i}"])[0][0] for i in range(3)] == pytest.approx([0, 50, 100], abs=3)
    paths = by_id(source_of(f"{dataset}@train", fields={**ASKED, "video": "path"}, media_root="/clips"))
    assert paths["n1"].media == (("video", "/clips/1.mp4"),)


def test_tfds_of_conversations(dataset):
    source = source_of(f"{dataset}@train", fields={"id": "name", "conversations": "said", "image": "picture"})
    assert by_id(source)["n2"].turns == (Turn("<image>\ns2", "a"),)


def test_tfds_types_filter(dataset):
    fields = {**ASKED, "type": "sort", "video": "frames"}
    entry = MixtureEntry(path=f"{dataset}@train", fields=fields, types=("b",))
    from vlvm_jax.data.sources.mixture import read_mixture

    assert [record.id for record in read_mixture([entry], 0)] == ["n1"]


TRAIN = """
import pickle, sys
from vlvm_jax.data.media.containers import open_medium
source = pickle.load(sys.stdin.buffer)
print([len(open_medium(record.media[0][1]).read()) > 100 for record in source], "tensorflow" in sys.modules)
"""


def test_tfds_is_read_in_another_process_without_tensorflow(dataset):
    source = source_of(f"{dataset}@train", fields={**ASKED, "image": "picture"})
    assert len(source[0].turns) == 1
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    done = subprocess.run([sys.executable, "-c", TRAIN], input=packed, capture_output=True)
    assert done.stdout.decode().strip() == "[True, True, True] False", done.stderr


def test_what_is_wrong_with_tfds(dataset, tmp_path):
    assert "name the split too" in refusal(dataset)
    assert "no split 'test'; there are train" in refusal(f"{dataset}@test")
    assert "no 'conversations' list" in refusal(f"{dataset}@train", fields={"image": "picture"})
    assert "fields: no column 'absent'" in refusal(f"{dataset}@train", fields={"image": "absent"})
    assert "not a TFDS data set" in refusal(f"{tmp_path}@train", format="tfds")


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
@pytest.mark.parametrize("place", ["top", "feature", "legacy"])
def test_code_that_a_tfds_data_set_names_is_not_imported(dataset, tmp_path, monkeypatch, key, place):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tfds_tripwire.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path / "code")
    folder = shutil.copytree(dataset, tmp_path / "set" / "1.0.0")
    features = json.loads((folder / "features.json").read_text())
    trap = {key: "tfds_tripwire.Feature", "text": {}}
    if place == "legacy":
        inner = {"type": "tfds_tripwire.Feature", "content": {}}
        features = {"type": features["pythonClassName"], "content": json.dumps({"name": inner})}
    elif place == "top":
        features = {"featuresDict": features["featuresDict"]} | trap
    else:
        features["featuresDict"]["features"]["name"] = trap
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=r"features.json: .*'tfds_tripwire.Feature' is no feature of TFDS"):
        source_of(f"{folder}@train")
    assert not (tmp_path / "sprung").exists()
