"""LLaVA annotations to records: what is accepted, how it is normalised, and what each refusal says."""

import contextlib
import json
import math
import socket

import pytest

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.record import Record, Turn, evenly
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.errors import InputError


def qa(*texts):
    """Turns of a conversation, human first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def write(tmp_path):
    def write(content, name="notes.json"):
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(file)

    return write


def read_llava(path, media_root=None):
    return list(open_source(MixtureEntry(path=path, media_root=media_root)))


def refusal(path):
    with pytest.raises(InputError) as caught:
        open_source(MixtureEntry(path=path))
    message = str(caught.value)
    assert "\n" not in message and path in message
    return message


# --- what is accepted --------------------------------------------------------------------------------------------


def test_json_list_of_all_kinds(write, tmp_path):
    path = write(
        [
            {"id": "a", "image": "i.png", "conversations": qa("<image>\nwhat ?", "cat")},
            {"id": 7, "video": "clips/v.mp4", "conversations": qa("<video>\nwhat ?", "dog")},
            {"conversations": qa("hello", "hi", "bye", "ciao")},
        ]
    )
    image, video, text = read_llava(path)
    assert (image.id, image.kind, image.media) == ("a", "image", (("image", str(tmp_path / "i.png")),))
    assert (video.id, video.kind, video.media) == ("7", "video", (("video", str(tmp_path / "clips" / "v.mp4")),))
    assert (text.id, text.kind, text.media) == ("2", "text", ())
    assert image.source == f"{path}: record 0" and text.source == f"{path}: record 2"
    assert image.turns == (Turn("<image>\nwhat ?", "cat"),)
    assert text.turns == (Turn("hello", "hi"), Turn("bye", "ciao"))


def test_jsonl_is_read_line_by_line(write):
    lines = [json.dumps({"image": f"{i}.png", "conversations": qa("q", f"a{i}")}) for i in range(3)]
    records = read_llava(write(f"{lines[0]}\n\n{lines[1]}\r\n{lines[2]}", "notes.jsonl"))
    assert [r.turns[0].answer for r in records] == ["a0", "a1", "a2"]
    assert [r.id for r in records] == ["0", "1", "2"]


def test_jsonl_keeps_unicode_line_separators_inside_strings(write):
    raw = [{"conversations": qa("q\u2028r", "a\x85b")}, {"conversations": qa("q", "a")}]
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in raw)
    first, second = read_llava(write(text, "notes.jsonl"))
    assert first.turns == (Turn("q\u2028r", "a\x85b"),) and second.turns == (Turn("q", "a"),)


def test_openai_style_keys(write):
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read_llava(write([{"conversations": said}]))[0].turns == (Turn("q", "a"),)


def test_media_root_replaces_the_files_folder(write, tmp_path):
    raw = [{"image": "i.png", "conversations": qa("q", "a")}]
    assert read_llava(write(raw), str(tmp_path / "media"))[0].media == (("image", str(tmp_path / "media" / "i.png")),)


def test_list_of_images_in_order_with_placeholders_left_in_place(write, tmp_path):
    raw = [{"image": ["b.png", "a.png"], "conversations": qa("<image> or <video> ?", "first")}]
    record = read_llava(write(raw))[0]
    assert [path for _, path in record.media] == [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    assert record.turns == (Turn("<image> or <image> ?", "first"),)


def test_image_and_video_in_one_record_count_as_video(write):
    record = read_llava(write([{"video": "v.mp4", "image": "i.png", "conversations": qa("q", "a")}]))[0]
    assert [kind for kind, _ in record.media] == ["image", "video"] and record.kind == "video"


def test_leading_answer_is_dropped(write):
    raw = [{"conversations": [{"from": "gpt", "value": "ignored"}, *qa("q", "a")]}]
    assert read_llava(write(raw))[0].turns == (Turn("q", "a"),)


@pytest.mark.parametrize(
    "role", [{"from": "system", "value": " Be brief. "}, {"role": "system", "content": "Be brief."}]
)
def test_a_system_turn(write, role):
    raw = [{"image": "i.png", "conversations": [role, *qa("q", "a", "r", "b")], "types": ["x", "y"]}, GOOD]
    first, second = read_llava(write(raw))
    assert (first.system, second.system) == ("Be brief.", "")
    assert first.turns == (Turn("<image>\nq", "a", "x"), Turn("r", "b", "y"))


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("placeholder", ["<image>", "<video>"])
def test_either_placeholder_is_normalised_for_either_medium(write, kind, placeholder):
    raw = [{kind: "m", "conversations": qa(f"{placeholder}\nwhat ?", "a")}]
    assert read_llava(write(raw))[0].turns == (Turn("<image>\nwhat ?", "a"),)


@pytest.mark.parametrize("question", ["what ?", "what ?\n<image>", "<image>what ?", " <video> what ? "])
def test_one_placeholder_goes_to_the_front_of_the_first_question(write, question):
    raw = [{"video": "v.mp4", "conversations": qa(question, "a", "more ?", "b")}]
    assert read_llava(write(raw))[0].turns == (Turn("<image>\nwhat ?", "a"), Turn("more ?", "b"))


def test_a_placeholder_in_a_later_turn_stays_there(write):
    raw = [{"image": "i.png", "conversations": qa("hello", "hi", "what ?\n<image>", "cat")}]
    assert read_llava(write(raw))[0].turns == (Turn("hello", "hi"), Turn("<image>\nwhat ?", "cat"))


def test_missing_placeholders_are_inserted_one_per_medium(write):
    raw = [{"image": ["a.png", "b.png"], "conversations": qa("which ?", "a")}]
    assert read_llava(write(raw))[0].turns == (Turn("<image>\n<image>\nwhich ?", "a"),)


def test_types_of_turns(write):
    records = read_llava(
        write(
            [
                {"types": ["color", "count"], "conversations": qa("q", "a", "r", "b")},
                {"type": "caption", "conversations": qa("q", "a", "r", "b")},
                {"conversations": qa("q", "a")},
            ]
        )
    )
    assert [[t.type for t in r.turns] for r in records] == [["color", "count"], ["caption", "caption"], [""]]


# --- what is refused ---------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    assert "no such annotation file; give a JSON list or JSONL" in refusal(str(tmp_path / "absent.json"))


def test_not_json(write):
    message = refusal(write('{"id": 1}\nand {"id": 2}'))
    assert "not JSON" in message and "needs the ending .jsonl" in message


def test_not_a_list(write):
    assert "expected a JSON list of records, found dict" in refusal(write({"a": 1}))


GOOD = {"conversations": qa("q", "a")}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (3, "expected an object, found int"),
        ({"id": "x"}, "no 'conversations' list; this is not the LLaVA format"),
        ({"conversations": []}, "no 'conversations' list"),
        ({"conversations": "hi"}, "no 'conversations' list"),
        ({"conversations": ["hi"]}, "a turn must be {'from': 'human'|'gpt', 'value': text}, found 'hi'"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "a turn must be"),
        ({"conversations": [{"from": "human", "value": 3}]}, "a turn must be"),
        ({"conversations": qa("q")}, "turns must alternate human, gpt and end with gpt; found user"),
        ({"conversations": qa("q", "a", "r")}, "found user, assistant, user"),
        ({"conversations": [*qa("q"), *qa("q", "a")]}, "found user, user, assistant"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "found none"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "found none"),
        ({"conversations": [*qa("q", "a"), {"from": "system", "value": "x"}]}, "found user, assistant, system"),
        (
            {"image": "i", "conversations": [{"from": "system", "value": "<video>"}, *qa("q", "a")]},
            "a system turn holds",
        ),
        ({"conversations": qa("<image>\nq", "a")}, "a placeholder but neither 'image' nor 'video'"),
        ({"conversations": qa("<video>\nq", "a")}, "a placeholder but neither 'image' nor 'video'"),
        ({"image": "i.png", "conversations": qa("<image><image>", "a")}, "2 placeholders for 1 media; give one each"),
        ({"image": ["i", "j", "k"], "conversations": qa("<image>", "a", "<image>", "b")}, "2 placeholders for 3 media"),
        ({"image": "i.png", "conversations": qa("q", "an <image> ?")}, "an answer holds the placeholder <image>"),
        ({"image": [], "conversations": qa("<image>\nq", "a")}, "a placeholder but neither 'image' nor 'video'"),
        ({"video": "", "conversations": qa("<video>\nq", "a")}, "a placeholder but neither 'image' nor 'video'"),
        ({"image": [""], **GOOD}, "'image' must be a path or a list of paths, found ['']"),
        ({"video": ["v.mp4", 3], **GOOD}, "'video' must be a path or a list of paths"),
        ({"types": ["a", "b"], **GOOD}, "2 'types' for 1 questions; give one each"),
        ({"image": "../i.png", **GOOD}, "media path '../i.png' leaves the media folder"),
        ({"video": "a/../../v.mp4", **GOOD}, "media path 'a/../../v.mp4' leaves the media folder"),
        ({"image": "/etc/i.png", **GOOD}, "media path '/etc/i.png' leaves the media folder; give it relative"),
        ({"image": "gs://other/i.png", **GOOD}, "media path 'gs://other/i.png' leaves the media folder"),
        ({"image": "a\tb.png", **GOOD}, "'image' must be a path or a list of paths, found 'a\\tb.png'"),
        ({"video": [["a.jpg", 3]], **GOOD}, "'video' must be a path or a list of paths"),
        ({"video": [[]], **GOOD}, "'video' must be a path or a list of paths"),
        ({"types": 3, **GOOD}, "3 'types' for 1 questions"),
        ({"conversations": qa("q", "half \ud800")}, "a turn holds half a character"),
        ({"video": "v", "start": "1", **GOOD}, "'start' must be seconds from the clip's start, found '1'"),
        ({"video": "v", "end": -1, **GOOD}, "'end' must be seconds from the clip's start, found -1"),
        ({"video": "v", "end": 10**400, **GOOD}, "'end' must be seconds from the clip's start, found 1000"),
        ({"video": "v", "start": 2, "end": 2, **GOOD}, "'end' 2 does not come after 'start' 2"),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_bad_records_are_named_by_index(write, record, expected, ending):
    """A file of such records alone is refused; among good ones each is a bad sample of its own, also the first."""

    def file(raw):
        return write(raw if ending == "json" else "\n".join(map(json.dumps, raw)), f"notes.{ending}")

    message = refusal(file([record, record]))
    assert expected in message and ": record 0: " in message
    path = file([record, GOOD, record, GOOD])
    source = open_source(MixtureEntry(path=path))
    for index in (0, 2):
        with pytest.raises(BadSampleError) as caught:
            source[index]
        assert caught.value.cause == "bad_record" and caught.value.detail.startswith(f"{path}: record {index}: ")
        assert expected in caught.value.detail and "\n" not in caught.value.detail
    assert [source[i].id for i in (1, 3)] == ["1", "3"]


def test_a_media_list_of_images_is_one_clip_of_these_frames(write, tmp_path):
    raw = [
        {"video": ["b.jpg", "a.PNG"], "conversations": qa("<video>\nq", "a")},
        {"video": [["b.jpg", "a.jpg"], "v.mp4"], "conversations": qa("q", "a")},
        {"video": ["a.gif", "b.gif"], "conversations": qa("q", "a")},
    ]
    one, two, gifs = read_llava(write(raw))
    assert one.media == (("video", f"{tmp_path}/b.jpg\t{tmp_path}/a.PNG"),) and one.kind == "video"
    assert two.media == (("video", f"{tmp_path}/b.jpg\t{tmp_path}/a.jpg"), ("video", f"{tmp_path}/v.mp4"))
    assert len(gifs.media) == 2


def test_placeholders_of_both_kinds_say_which_medium_goes_where(write, tmp_path):
    names = {"image": ["i.png", "j.png"], "video": "v.mp4"}
    said = qa("<image> then <video> then <image> ?", "a")
    record = read_llava(write([{**names, "conversations": said}]))[0]
    assert [path.rpartition("/")[2] for _, path in record.media] == ["i.png", "v.mp4", "j.png"]
    assert record.turns == (Turn("<image> then <image> then <image> ?", "a"),)
    unclear = read_llava(write([{**names, "conversations": qa("<image><image><image>", "a")}]))[0]
    assert [path.rpartition("/")[2] for _, path in unclear.media] == ["i.png", "j.png", "v.mp4"]


@pytest.mark.parametrize(
    ("times", "span"),
    [({"start": 1, "end": 2.5}, (1.0, 2.5)), ({"start": 3}, (3.0, math.inf)), ({"end": 4.0}, (0.0, 4.0)), ({}, None)],
)
def test_span_of_a_clip(write, times, span):
    record = read_llava(write([{"video": "v.mp4", "conversations": qa("q", "a"), **times}]))[0]
    assert record.span == span


def test_a_record_is_equal_to_another_of_the_same_content(write, tmp_path):
    raw = [{"id": "a", "image": "./x//i.png", "conversations": qa("q", "a")}]
    path = write(raw)
    media = (("image", f"{tmp_path}/x/i.png"),)
    assert read_llava(path) == [Record("a", f"{path}: record 0", media, (Turn("<image>\nq", "a"),))]


def test_a_limit_takes_records_from_all_over():
    assert evenly(10, None) == evenly(10, 12) == list(range(10))
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(10, 1) == [0]
    assert evenly(0, 4) == []


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "rtsp", "tcp", "s3", "concat", "data"])
def test_a_url_is_a_file_that_does_not_exist(write, scheme, kind):
    """Nothing is asked for it, by whatever library."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(0.05)
        name = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x.{'png' if kind == 'image' else 'mp4'}"
        (record,) = read_llava(write([{kind: name, "conversations": qa("q", "a")}]))
        ((_, path),) = record.media
        with pytest.raises(BadSampleError) as raised:
            video.open_image(path) if kind == "image" else video.decode_frames(path, 1)
        assert raised.value.cause == "missing"
        with pytest.raises(TimeoutError):
            server.accept()
