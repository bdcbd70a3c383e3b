"""Annotations as others write them become the records that LLaVA's format would have given."""

import json

import pytest

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.data.sources.records import Record, Turn
from vlvm_jax.errors import InputError


@pytest.fixture
def read(tmp_path):
    def read(*raw, **options):
        file = tmp_path / "notes.json"
        file.write_text(json.dumps(raw))
        return list(open_source(MixtureEntry(path=str(file), **options)))

    return read


@pytest.fixture
def refusal(tmp_path):
    def refusal(*raw, **options):
        file = tmp_path / "notes.json"
        file.write_text(json.dumps(raw))
        with pytest.raises(InputError) as caught:
            open_source(MixtureEntry(path=str(file), **options))
        message = str(caught.value)
        assert "\n" not in message and message.startswith(f"{file}: record 0: ")
        return message

    return refusal


def record(tmp_path, media, *turns, **options):
    """What is to be read, from names below the folder."""
    paths = tuple((kind, f"{tmp_path}/{name}") for kind, name in media)
    given = {"id": "0", "source": f"{tmp_path}/notes.json: record 0", **options}
    return Record(media=paths, turns=tuple(Turn(*turn) for turn in turns), **given)


def test_videochat2(read, tmp_path):
    qa = [{"i": "Watch.", "q": "What?", "a": "A dog."}, {"i": "Watch.", "q": "Where?", "a": "Here."}]
    turns = (("<image>\nWatch.\nWhat?", "A dog."), ("Where?", "Here."))
    whole, part, image = read(
        {"video": "v.mp4", "QA": qa},
        {"video": "v.mp4", "QA": qa[1:], "start": 1.5, "end": 4},
        {"image": "i.jpg", "QA": [{"i": "Describe it.", "q": "", "a": "A cat."}], "id": "x", "type": "caption"},
    )
    assert whole == record(tmp_path, [("video", "v.mp4")], *turns)
    assert part.span == (1.5, 4.0) and part.turns == (Turn("<image>\nWatch.\nWhere?", "Here."),)
    assert (image.id, image.media) == ("x", (("image", f"{tmp_path}/i.jpg"),))
    assert image.turns == (Turn("<image>\nDescribe it.", "A cat.", "caption"),)


def test_video_chatgpt_finds_the_clip_by_its_id(read, tmp_path):
    clips = tmp_path / "clips"
    (clips / "frames").mkdir(parents=True)
    for name in ("v_1.mkv", "v_2.gif", "v.3.mp4", "v_1.txt"):
        (clips / name).touch()
    raw = [{"video_id": name, "q": "What?", "a": "It."} for name in ("v_1", "v_2", "v.3", "frames", "v_4", "v_1.mkv")]
    found = read(*raw, media_root=str(clips))
    names = [record.media[0][1].removeprefix(f"{clips}/") for record in found]
    assert names == ["v_1.mkv", "v_2.gif", "v.3.mp4", "frames", "v_4.mp4", "v_1.mkv"]
    assert found[0] == record(tmp_path, [("video", "clips/v_1.mkv")], ("<image>\nWhat?", "It."))


def test_the_benchmark_s_files(read, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "v_1.mp4").touch()
    root = {"media_root": str(tmp_path / "clips")}
    plain = read({"video_name": "v_1", "Q": "What happens?", "A": "A dog jumps."}, **root)
    assert plain == [record(tmp_path, [("video", "clips/v_1.mp4")], ("<image>\nWhat happens?", "A dog jumps."))]
    (pair,) = read({"video_name": "v_1", "Q1": "Who?", "Q2": "Which animal?", "A": "A dog."}, **root)
    assert pair.turns == (Turn("<image>\nWho?", "A dog."), Turn("Which animal?", "A dog."))


def test_video_chatgpt_needs_the_folder_of_clips(read, tmp_path):
    with pytest.raises(InputError, match=r"/absent: no such folder of clips; give media_root"):
        read({"video_id": "a", "q": "q", "a": "a"}, media_root=str(tmp_path / "absent"))


def test_questions_with_answers(read, tmp_path):
    found = read({"video": "v.mp4", "question": "What?", "answer": "It.", "type": "action"})
    assert found == [record(tmp_path, [("video", "v.mp4")], ("<image>\nWhat?", "It.", "action"))]


def user(*parts):
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": [text("A dog.")]}]


def text(said):
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    "raw",
    [
        {"messages": user({"type": "video", "video": "v.mp4"}, text("What?"))},
        {"messages": user({"type": "video", "path": "v.mp4"}, text("What?"))},
        {"messages": user({"type": "video_url", "video_url": {"url": "v.mp4"}}, text("What?"))},
        {"messages": user({"type": "video"}, text("What?")), "videos": ["v.mp4"]},
        {"messages": user({"type": "video"}, text("What?")), "video": "v.mp4"},
        {"messages": user(text("What?")), "videos": ["v.mp4"]},
        {"messages": user(text("What?"), {"type": "video", "video": "v.mp4"})},
    ],
)
def test_messages(read, tmp_path, raw):
    assert read(raw) == [record(tmp_path, [("video", "v.mp4")], ("<image>\nWhat?", "A dog."))]


def test_messages_with_media_of_both_kinds_keep_their_order(read, tmp_path):
    parts = [{"type": "video", "video": "v.mp4"}, text("or"), {"type": "image", "image": f"file://{tmp_path}/i.png"}]
    found = read({"messages": user(*parts, text("?"))})
    turn = ("<image>\nor<image>\n?", "A dog.")
    assert found == [record(tmp_path, [("video", "v.mp4"), ("image", "i.png")], turn)]


def test_messages_of_text_with_a_system_turn(read, tmp_path):
    said = [("system", "Be brief."), ("user", "What?"), ("assistant", "It."), ("user", "Why?"), ("assistant", "So.")]
    found = read({"messages": [{"role": role, "content": content} for role, content in said]})
    assert found == [record(tmp_path, [], ("What?", "It."), ("Why?", "So."), system="Be brief.")]


def test_frames_of_a_clip_in_messages(read, tmp_path):
    frames = {"type": "video", "video": ["1.jpg", "2.jpg"]}
    (found,) = read({"messages": user(frames, text("What?"))})
    assert found.media == (("video", f"{tmp_path}/1.jpg\t{tmp_path}/2.jpg"),)


def test_a_format_that_is_asked_for(read, refusal, tmp_path):
    both = {"conversations": "elsewhere", "video": "v.mp4", "question": "What?", "answer": "It."}
    assert "no 'conversations' list" in refusal(both)
    assert read(both, format="qa") == [record(tmp_path, [("video", "v.mp4")], ("<image>\nWhat?", "It."))]
    assert "no 'QA', which a record of the format 'videochat2' has" in refusal(both, format="videochat2")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"video": "v.mp4", "caption": "x"}, "its keys are ['caption', 'video']"),
        ({"QA": {"q": "a"}}, "'QA' must be a list of {'i', 'q', 'a'}, found {'q': 'a'}"),
        ({"QA": [{"q": "what"}]}, "'QA' must be a list"),
        ({"QA": []}, "no 'conversations' list"),
        ({"QA": [{"q": "what", "a": [3]}]}, "a turn must be"),
        ({"messages": "hello"}, "'messages' must be a list of {'role', 'content'}, found 'hello'"),
        ({"messages": [{"role": "user"}]}, "'messages' must be a list"),
        ({"messages": user({"type": "video"})}, "a part of type 'video' names no file, nor do 'videos' beside it"),
        ({"messages": user({"type": "audio"})}, "must have the type image, video or text, found {'type': 'audio'}"),
        ({"messages": user("what")}, "must have the type image, video or text, found 'what'"),
        ({"messages": user({"type": "image", "image": 7})}, "'image' must be a path or a list of paths"),
        ({"question": "q", "answer": None}, "a turn must be"),
        ({"video_id": "../v", "q": "q", "a": "a"}, "leaves the media folder"),
    ],
)
def test_what_is_of_no_format_is_refused(refusal, raw, expected):
    assert expected in refusal(raw)


def test_a_later_record_of_no_format_is_a_bad_one(tmp_path):
    good = {"QA": [{"q": "What?", "a": "It."}]}
    file = tmp_path / "notes.json"
    file.write_text(json.dumps([good, {"video": "v.mp4"}, 5, good]))
    source = open_source(MixtureEntry(path=str(file)))
    assert list(source.kinds) == ["text", "bad", "bad", "text"] and source[3].id == "3"
    for index, expected in ((1, "no 'QA'"), (2, "expected an object, found int")):
        with pytest.raises(BadSampleError) as caught:
            source[index]
        assert caught.value.cause == "bad_record" and caught.value.detail.startswith(f"{file}: record {index}: ")
        assert expected in caught.value.detail
