"""Annotations as others write them become the records that LLaVA's format would have given."""

import json

import pytest

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sources.mixture import open_source
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


def test_media_of_a_message_stand_before_its_text_or_at_its_placeholders(read, tmp_path):
    def said(text, **media):
        return {"messages": [{"role": "user", "content": text, **media}, {"role": "assistant", "content": "a"}]}

    both = [("image", "1.jpg"), ("image", "2.jpg")]
    found = read(
        said("q", images=["1.jpg", "2.jpg"]),
        said("<image> and <image> ?", images=["1.jpg", "2.jpg"]),
        said("q", video="c.mp4", images=[]),
        said("q", video=["1.jpg", "2.jpg"]),
    )
    assert [one.turns[0].question for one in found] == [
        "<image>\n<image>\nq",
        "<image>\n and <image>\n ?",
        "<image>\nq",
        "<image>\nq",
    ]
    media = [both, both, [("video", "c.mp4")]]
    assert [list(one.media) for one in found[:3]] == [[(k, f"{tmp_path}/{n}") for k, n in some] for some in media]
    assert [kind for kind, _ in found[3].media] == ["video"]


TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def with_turn(**more):
    return {"conversations": [{**TURNS[0], **more}, TURNS[1]]}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (with_turn(video="a.mp4"), "'video' inside a turn is not read"),
        (with_turn(clip="a.mp4"), "'clip' inside a turn is not read"),
        ({"video": "b.mp4", **with_turn(images=["a.jpg"])}, "'images' inside a turn is not read"),
        ({"messages": [{"role": "user", "content": "<image>", "images": ["1.jpg", "2.jpg"]}]}, "names 2 media"),
        ({"messages": [{"role": "assistant", "content": "a", "images": ["1.jpg"]}]}, "that is no user's"),
        ({"input_video": "x", "conversations": TURNS}, "'input_video' looks like media"),
        ({"left_image": "x", "conversations": TURNS}, "did you mean 'image'?"),
        ({"sourceClip": ["x"], "conversations": TURNS}, "'sourceClip' looks like media"),
        ({"url": "https://example.org/watch/3", "conversations": TURNS}, "'url' looks like media"),
        ({"origin": "https://www.youtube.com/watch?v=abc", "conversations": TURNS}, "'origin' looks like media"),
        ({"query": "<img>a.jpg</img>what ?", "response": "a"}, "<img>a.jpg</img>' in a question is not read"),
        ({"query": "see <video>a.mp4</video> ?", "response": "a"}, "<video>a.mp4</video>' in a question is not read"),
        (
            {"query": "Frame1: <image>\nFrame2: <image>\nwhat ?", "response": "a"},
            "a placeholder but neither 'image' nor 'video' (<image>)",
        ),
        (
            {"query": "Look: <VIDEO>\nwhat ?", "response": "a"},
            "a placeholder but neither 'image' nor 'video' (<VIDEO>)",
        ),
        ({"query": "<|vision_start|><|video_pad|>what ?", "response": "a"}, "a placeholder but neither"),
        ({"query": "compare <image> with <image>.", "response": "a"}, "a placeholder but neither"),
        ({"video": "a.mp4", "question": "q", "answer": float("nan")}, "a turn must be"),
        (
            {"videos": ["a.mp4"], "messages": [{"role": "assistant", "content": "a", "loss": False}]},
            "'loss' False of an answer is not read",
        ),
    ],
)
def test_media_and_marks_that_are_not_read_are_refused(refusal, raw, expected):
    assert expected in refusal(raw)


@pytest.mark.parametrize(
    "question",
    [
        "What does the <video> tag do?",
        "Is <image> an element, and <video> one?",
        "Why does it not play?\n  <video>\n    <source></source>\n  </video>",
        "Compare the <video> tag with <video> in SVG.",
    ],
)
def test_questions_about_html_stay_text(read, question):
    """A link to a page that a text is from does not make it a record with media."""
    (found,) = read({"query": question, "response": "a", "source": "https://example.org/page"})
    assert found.media == () and found.turns[0].question == question


def test_parts_of_a_clip_under_other_keys_are_named_once(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text(json.dumps([{"video": "a.mp4", "conversations": TURNS, "clip_start": 1, "timestamps": [1, 2]}] * 2))
    notes = "\n".join(open_source(MixtureEntry(path=str(file))).notes)
    assert "'clip_start' is not read (2 records have it)" in notes and "'timestamps' is not read" in notes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"video": "a.mp4", "video": null, "conversations": []}]', "record 0: the key 'video' stands twice"),
        (
            '[{"video": ' + "[" * 900 + "]" * 900 + ', "conversations": []}]',
            "record 0: nested more than 100 levels deep",
        ),
        ("", ": is empty, so not JSON"),
        ("[]", ": holds no record"),
    ],
)
def test_files_without_a_record_that_can_be_used(tmp_path, text, expected):
    file = tmp_path / "notes.json"
    file.write_text(text)
    with pytest.raises(InputError, match=expected):
        open_source(MixtureEntry(path=str(file)))


def test_utf_32_is_named(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text("[]", encoding="utf-32")
    with pytest.raises(InputError, match="UTF-32, expected UTF-8"):
        open_source(MixtureEntry(path=str(file)))
