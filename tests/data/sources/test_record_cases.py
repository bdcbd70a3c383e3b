"""Annotation files as other projects write them, and files with something wrong: each gives its right value."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipes import ROOT

from vlvm_jax import storage
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data import record as records
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import containers
from vlvm_jax.data.record import Turn
from vlvm_jax.data.sample.turns import split_turns
from vlvm_jax.data.sources import formats, media_keys
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.data.tools import record_bytes
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.clip_files import ClipFiles

CASES = ROOT / "tests" / "data" / "cases" / "records"
CLIP = ("video", f"{CASES}/a.mp4")


def source(name: str, folder: Path = CASES):
    return open_source(MixtureEntry(path=str(folder / name)))


def only(name: str, folder: Path = CASES):
    (found,) = source(name, folder)
    return found


def refusal(name: str, folder: Path = CASES) -> str:
    with pytest.raises(InputError) as caught:
        source(name, folder)
    assert "\n" not in str(caught.value) and "drop" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(*raw, name="notes.json"):
        (tmp_path / name).write_text(json.dumps(raw))
        return tmp_path

    shutil.copy(CASES / "a.mp4", tmp_path / "a.mp4")
    return write


# --- the cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("lf_sharegpt_videos.json", [Turn("<image>\nWhat?", "A.")]),
        ("lf_sharegpt_videos_noph.json", [Turn("<image>\nWhat happens?", "A.")]),
        ("msg_video_span.json", [Turn("<image>\nWhat?", "A.")]),
        ("ph_in_second_turn.json", [Turn("Hi", "Hello"), Turn("<image>\nB?", "2")]),
        ("system_key.json", [Turn("<image>\nA?", "1")]),
    ],
)
def test_records_with_a_clip(name, turns):
    record = only(name)
    assert (record.media, list(record.turns), record.kind) == ((CLIP,), turns, "video")
    assert record.span == ((1.0, 2.0) if "span" in name else None)
    assert record.system == ("Be brief." if "system" in name else "")


@pytest.mark.parametrize("name", ["html_in_q.json", "html_in_text.json"])
def test_tags_in_a_record_of_text_are_text(name):
    record = only(name)
    raw = json.loads((CASES / name).read_text())[0]["conversations"]
    assert record.kind == "text" and record.turns == (Turn(raw[0]["value"], raw[1]["value"]),)


@pytest.mark.parametrize("name", ["html_in_q.json", "html_in_text.json"])
def test_tags_are_still_text_when_questions_are_split_and_after_a_shard(name):
    record = only(name)
    (alone,) = split_turns([record])
    assert alone.turns == record.turns
    raw = record_bytes._as_llava(record, [])
    assert records.parse(raw, record.source, 0, records.below("/")) == record


def test_a_byte_order_mark_is_no_part_of_the_first_record():
    assert [record.turns[0].question for record in source("bom.jsonl")] == [f"<image>\nÜnï {i}?" for i in range(4)]


def test_latin_1_is_refused_where_it_begins():
    assert "latin1.jsonl: record 0: line 1, byte 33: 0xdc is not UTF-8; convert the file" in refusal("latin1.jsonl")


def test_a_bad_first_record_is_one_bad_record():
    found = source("firstbad.jsonl")
    assert len(found) == 201 and list(found.kinds) == ["bad"] + ["video"] * 200
    with pytest.raises(BadSampleError, match=r"bad_record: .*firstbad.jsonl: record 0: a turn must be"):
        found[0]
    assert all(found[index].media == (CLIP,) for index in range(1, 201))


@pytest.mark.parametrize("name", ["typo_key.json", "video_path_key.json"])
def test_keys_that_are_not_read_are_refused_with_the_one_meant(name):
    key = "vdieo" if "typo" in name else "video_path"
    assert f"record 0: {key!r} looks like media, but is no key that is read; did you mean 'video'?" in refusal(name)


def test_msrvtt_finds_the_clip_of_a_number(tmp_path):
    assert "'video_id' 6513: no clip of this id in the media folder (neither 6513.mp4 nor video6513.mp4" in refusal(
        "msrvtt_qa.json"
    )
    shutil.copy(CASES / "msrvtt_qa.json", tmp_path)
    shutil.copy(CASES / "a.mp4", tmp_path / "video6513.mp4")
    record = only("msrvtt_qa.json", tmp_path)
    assert record.media == (("video", f"{tmp_path}/video6513.mp4"),)
    assert record.turns == (Turn("<image>\nwhat are three people sitting on?", "couch"),)
    (note,) = source("msrvtt_qa.json", tmp_path).notes
    assert note.endswith("clips are found by id, such as video6513.mp4 for 6513 (1 in all)")


@pytest.mark.parametrize(("clip", "file"), [
    ("a", "a.MP4"), ("A", "a.mp4"), ("a", "a.webp"), ("a", "a.AVIF"), ("a", "a.apng"), ("7", "Video7.mp4"),
    ("sub/a", "sub/a.mp4"), ("a.mp4", "v_a.avi"), ("x.y", "x.y.mkv"),
])  # fmt: skip
def test_a_clip_is_found_by_id_as_in_lists_of_questions(tmp_path, clip, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    shutil.copy(CASES / "a.mp4", tmp_path / file)
    for raw in ({"video_id": clip, **QA}, {"video_id": clip, "q": "What?", "a": "It."}):
        (tmp_path / "notes.json").write_text(json.dumps([raw]))
        assert only("notes.json", tmp_path).media == (("video", f"{tmp_path}/{file}"),)
    assert ClipFiles(str(tmp_path)).path(clip) == f"{tmp_path}/{file}"


def test_an_id_is_no_guess_and_leads_out_of_no_folder(write):
    folder = write({"video_id": "A", **QA})
    shutil.copy(CASES / "a.mp4", folder / "a.MP4")
    assert "'video_id' 'A': no clip of this id" in refusal("notes.json", folder)
    assert "no clip of this id" in refusal("notes.json", write({"video_id": "../a", **QA}))


# --- the kinds behind them ---------------------------------------------------------------------------------------

QA = {"question": "What?", "answer": "It."}


@pytest.mark.parametrize(
    "raw",
    [
        {"videos": ["a.mp4"], **QA},
        {"videos": "a.mp4", **QA},
        {"video": {"path": "a.mp4", "bytes": None}, "images": [], **QA},
        {"videos": [{"url": "a.mp4"}], **QA},
        {"video": "a.mp4", "videos": ["a.mp4"], "image": None, "audios": [], **QA},
        {"video_name": "a", **QA},
        {"video_id": "a.mp4", **QA},
        {"video": [], "image": "", "video_id": "a", **QA},
        {"video": "", "images": "", "videos": "a.mp4", **QA},
        {"videos": ["a.mp4"], "query": "What?", "response": "It."},
        {"videos": ["a.mp4"], "query": "<video>What?", "response": "It.", "history": []},
        {"videos": ["a.mp4"], "instruction": "What?", "input": "", "output": "It."},
        {"videos": ["a.mp4"], "messages": [{"role": "user", "content": "<video>What?"},
                                           {"role": "assistant", "content": "It."}]},
    ],
)  # fmt: skip
def test_media_keys_of_other_projects(write, raw):
    folder = write(raw)
    record = only("notes.json", folder)
    assert record.media == (("video", f"{folder}/a.mp4"),) and record.turns == (Turn("<image>\nWhat?", "It."),)


def test_history_and_input(write):
    asked = {"system": "Be brief.", "history": [["A?", "1"], ["B?", "2"]]}
    swift = only("notes.json", write({"image": "i.png", "query": "C?", "response": "3", **asked}))
    alpaca = {"image": "i.png", "instruction": "Add", "input": "1 and 2", "output": 3, **asked}
    assert swift.system == "Be brief."
    assert swift.turns == (Turn("<image>\nA?", "1"), Turn("B?", "2"), Turn("C?", "3"))
    assert only("notes.json", write(alpaca)).turns[2] == Turn("Add\n1 and 2", "3")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"audio": "a.wav", **QA}, "'audio' holds sound, which is not read here"),
        ({"audios": ["a"], **QA}, "'audios' holds sound"),
        ({"sources": [{"from": ["x", "b/C.MKV"]}], **QA}, "'sources' looks like media"),
        ({"image_path": "x", **QA}, "did you mean 'image'?"),
        ({"img": "x", **QA}, "did you mean 'image'?"),
        ({"Video": "x", **QA}, "did you mean 'video'?"),
        ({"vedio": "clip 12", **QA}, "did you mean 'video'?"),
        ({"link": "https://x.org/v.mp4?t=3", **QA}, "'link' looks like media"),
        ({"sources": "a.avif", **QA}, "'sources' looks like media"),
        ({"sources": ["a.APNG"], **QA}, "'sources' looks like media"),
        ({"clip": "a.ts", **QA}, "'clip' looks like media"),
        ({"image_id": 12, **QA}, "'image_id' looks like media"),
        ({"frames": ["1", "2"], **QA}, "'frames' looks like media"),
        ({"mp4": "x", **QA}, "'mp4' looks like media"),
        ({"video_category": "b.mp4", **QA}, "'video_category' looks like media"),
        ({"video_category": "sports/b", **QA}, "'video_category' looks like media"),
        ({"image_src": "x", **QA}, "'image_src' looks like media"),
        ({"input_video_path": "x", **QA}, "'input_video_path' looks like media"),
        ({"video_s": "x", **QA}, "'video_s' looks like media"),
        ({"instruction": "Say what it shows", "input": "v.mp4", "output": "It."}, "'input' looks like media"),
        ({"video": {"bytes": "AAAA"}, **QA}, "'video' holds bytes"),
        ({"video": {"duration": 3}, **QA}, "'video' has no 'path'"),
        ({"video": "a.mp4", "videos": ["b.mp4"], **QA}, "'video' and 'videos' name different media"),
        ({"video_id": [3], **QA}, "'video_id' must be a text or a whole number"),
        ({"video": "a.mp4", "start": 1, "video_start": 2, **QA}, "different 'start' and 'video_start'"),
        ({"video": "a.mp4", "system": 3, **QA}, "'system' must be a text"),
        ({"history": "x", "query": "q", "response": "r"}, "'history' must be a list of [question, answer]"),
        ({"candidates": ["x", "y"], "video": "a.mp4", **QA}, "'candidates' holds options"),
        ({"a0": "x", "a1": "y", "video": "a.mp4", **QA}, "'a0' holds options"),
        ({"candidates": ["x", "y"], "video_id": "a", "q": "q", "a": "r"}, "'candidates' holds options"),
        ({"a0": "x", "a1": "y", "video_name": "a", "Q": "q", "A": "r"}, "'a0' holds options"),
        ({"a0": "x", "a1": "y", "video_name": "a", "Q1": "q", "Q2": "s", "A": "r"}, "'a0' holds options"),
        ({"options": ["x", "y"], "video": "a.mp4", "QA": [{"q": "q", "a": "r"}]}, "'options' holds options"),
        ({"options": ["x", "y"], "video": "a.mp4", "conversations": [
            {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "'options' holds options"),
        ({"choices": ["x", "y"], "video": "a.mp4", "messages": [
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "'choices' holds options"),
        ({"images": ["a.png"], "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}, "query": "the <ref-object>?",
          "response": "<bbox>"}, "'objects' is not read, and the text has <bbox>"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]},
         "a turn of the role 'function_call'; calls of tools are not read"),
        ({"system": "x", "conversations": [{"from": "system", "value": "y"}]}, "'system' and a system turn say differ"),
        ({"messages": [{"role": "user", "content": [
            {"type": "video", "video": "a.mp4", "video_start": 1}, {"type": "video", "video": "b.mp4"}]}]},
         "clips with different 'video_start' and 'video_end'"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(write, raw, expected):
    message = refusal("notes.json", write(raw))
    assert expected in message and ": record 0: " in message


@pytest.mark.parametrize("extra", [{"id": "x1"}, {"source": "web"}, {"frames": 8}, {"video": None}, {"videos": []},
                                   {"has_video": False}, {"images": None}, {"image_count": 0}, {"video": []},
                                   {"image": ""}, {"ts": "2024-01-01"}, {"mov": "eax, 1"}, {"file": "main.ts"},
                                   {"choice": "B"}, {"a": "x"}, {"candidate_answers": ["x"]},
                                   {"video_category": "sports"}, {"videoType": "vlog"}, {"video_tag": "x"},
                                   {"image_caption": "A red / blue ball."}, {"movie_genres": ["drama"]}])  # fmt: skip
def test_records_of_text_with_other_keys_stay_text(write, extra):
    assert only("notes.json", write({**extra, **QA})).turns == (Turn("What?", "It."),)


def test_other_media_keys_beside_one_that_is_read_are_named_once(write):
    raw = {"video": "a.mp4", "audio": "a.wav", **QA}
    folder = write(raw, raw, {**raw, "thumbnail": "a.jpg"})
    assert [note.partition(": ")[2] for note in source("notes.json", folder).notes] == [
        "'audio' is not read (3 records have it)",
        "'thumbnail' is not read (1 record has it)",
    ]


def test_the_format_is_that_of_the_first_record_that_can_be_used(write):
    good = {"video": "a.mp4", **QA}
    found = source("notes.json", write({"conversations": []}, {"x": 1}, good, good))
    assert list(found.kinds) == ["bad", "bad", "video", "video"] and found[3].media
    assert "record 0: no 'conversations' list" in refusal("notes.json", write({"conversations": []}, {"x": 1}))


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["A.MP4", "SUB/a.mp4", "sub\\b c.mp4", "Sub\\B C.Mp4", "sub/b%20c.mp4", "file://{}/a.mp4", "cafe\u0301.mp4"]
)
def test_names_that_differ_slightly_from_a_file(write, name):
    folder = write({"video": name.format("."), **QA})
    (folder / "sub").mkdir()
    for other in ("sub/a.mp4", "sub/b c.mp4", "caf\xe9.mp4"):
        shutil.copy(CASES / "a.mp4", folder / other)
    folder = write({"video": name.format(folder), **QA})
    ((_, path),) = only("notes.json", folder).media
    with containers.open_medium(path) as file:
        assert file.read() == (CASES / "a.mp4").read_bytes()


def test_names_that_leave_the_folder_in_another_spelling(write):
    for name in ("..\\a.mp4", "%2e%2e/a.mp4", "file:///etc/a.mp4", "x/..\\..\\..\\a.mp4"):
        assert "leaves the media folder" in refusal("notes.json", write({"video": name, **QA}))


def test_a_name_as_it_is_comes_first_and_one_of_two_alike_is_no_guess(write):
    folder = write({"video": "A.mp4", **QA})
    shutil.copy(CASES / "a.mp4", folder / "A.mp4")
    with containers.open_medium(f"{folder}/A.mp4") as file:
        assert file.name == f"{folder}/A.mp4"
    with pytest.raises(FileNotFoundError):
        containers.open_medium(f"{folder}/a.MP4")


def test_a_folder_is_listed_once_however_many_names_it_has_not(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "a.mp4").touch()
    names = storage.names
    monkeypatch.setattr(storage, "names", lambda folder: asked.append(folder) or names(folder))
    for number in range(20):
        with pytest.raises(FileNotFoundError):
            containers.open_medium(f"{tmp_path}/gone{number}.mp4")
    assert asked == [str(tmp_path)]


# --- any keys ----------------------------------------------------------------------------------------------------

ENDINGS = st.sampled_from([".mp4", ".MKV", ".webm", ".jpg", ".png", ".gif", ".wav"])
NAMES = st.builds(lambda stem, ending: f"{stem}{ending}", st.text("ab/ _", min_size=1, max_size=5), ENDINGS)
VALUES = NAMES | st.lists(NAMES, min_size=1, max_size=2) | st.builds(lambda name: [{"x": [name]}], NAMES)
KEYS = st.text("abcdevioimg_ V0", min_size=1, max_size=8) | st.sampled_from(sorted(media_keys._KNOWN))
TEXTS = st.sampled_from([
    QA, {"query": "q", "response": "r"}, {"instruction": "q", "output": "r"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"QA": [{"q": "q", "a": "a"}]},
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, key=KEYS, value=VALUES)
def test_no_key_with_a_medium_trains_without_it(text, key, value):
    """The record has media, or is refused by the key's name."""
    said = {name for one in formats.FORMATS.values() for name in one.keys} | {"system", "history"}
    if key in said:
        return
    raw = {**text, key: value}
    try:
        name = formats.detect(raw, "f: record 0")
        found = formats.to_llava(raw, name, "f: record 0", lambda clip: None)
    except InputError as error:
        assert repr(key) in str(error) or "no clip of this id" in str(error)
    else:
        assert found.get("video") is not None or found.get("image") is not None
