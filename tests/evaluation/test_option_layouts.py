"""Multiple choice in the layouts of public benchmarks: all give the same question, or are refused by name."""

import csv
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipes import ROOT

from vlvm_jax import storage
from vlvm_jax.data.sources import options
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import question_lists
from vlvm_jax.evaluation.clip_files import ClipFiles

CASES = ROOT / "tests" / "data" / "cases" / "eval_layouts"
TEXTS = ("open", "close", "push", "the end")
LETTERS = "ABCD"


@pytest.fixture
def media(tmp_path):
    shutil.copy(CASES / "a.mp4", tmp_path / "a.mp4")
    return tmp_path


def read(folder, records, name="list.json"):
    file = folder / name
    if name.endswith(".csv"):
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        file.write_text(json.dumps(records))
    return question_lists.read(str(file), str(folder)).questions


def refusal(folder, *records, name="list.json"):
    with pytest.raises(InputError) as caught:
        read(folder, records, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the cases ---------------------------------------------------------------------------------------------------


def test_mvbench():
    first, second = question_lists.read(str(CASES / "mvbench.json"), str(CASES)).questions
    assert (first.options, first.letter, first.answer) == (("open", "close", "push"), "B", "close")
    assert (second.letter, second.answer, second.text) == ("C", "push", "Q2?")
    assert first.media == (("video", f"{CASES}/a.mp4"),) and not first.missing


def test_ig_vlm_s_table():
    (question,) = question_lists.read(str(CASES / "igvlm_mc.csv"), str(CASES)).questions
    assert (question.options, question.letter, question.answer) == (("x", "y", "z", "u", "v"), "D", "u")
    assert (question.id, question.type, question.media) == ("6", "CW", (("video", f"{CASES}/a.mp4"),))


def test_a_clip_under_videos():
    (question,) = question_lists.read(str(CASES / "llava_videos.json"), str(CASES)).questions
    assert (question.media, question.answer) == ((("video", f"{CASES}/a.mp4"),), "red")


# --- layouts -----------------------------------------------------------------------------------------------------

LAYOUTS = {
    "options": lambda texts: {"options": texts},
    "candidates": lambda texts: {"candidates": texts},
    "choices": lambda texts: {"choices": texts},
    "numbered": lambda texts: {f"a{i}": text for i, text in enumerate(texts)},
    "option_0": lambda texts: {f"option_{i}": text for i, text in enumerate(texts)},
    "option 0, EgoSchema": lambda texts: {f"option {i}": text for i, text in enumerate(texts)},
    "option1": lambda texts: {f"option{i}": text for i, text in enumerate(texts, 1)},
    "option_a": lambda texts: {f"option_{letter}": text for letter, text in zip("abcd", texts, strict=True)},
    "optionA": lambda texts: {f"option{letter}": text for letter, text in zip(LETTERS, texts, strict=True)},
    "A": lambda texts: dict(zip(LETTERS, texts, strict=True)),
    "object": lambda texts: {"options": dict(zip(LETTERS, texts, strict=True))},
    "object, numbered": lambda texts: {"choices": {str(i): text for i, text in enumerate(texts)}},
    "A. text, VideoMME": lambda texts: {"options": [f"{a}. {text}" for a, text in zip(LETTERS, texts, strict=True)]},
    "(A) text": lambda texts: {"options": [f"({a}) {text}" for a, text in zip(LETTERS, texts, strict=True)]},
    "a) text": lambda texts: {"options": [f"{a}) {text}" for a, text in zip("abcd", texts, strict=True)]},
}
ASKED = {"video": "a.mp4", "question": "which?", "id": "q"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("right", range(4))
@pytest.mark.parametrize("how", ["text", "letter", "(letter)", "whole"])
def test_every_layout_gives_the_same_question(media, layout, right, how):
    offered = LAYOUTS[layout](list(TEXTS))
    whole = offered["options"][right] if isinstance(offered.get("options"), list) else TEXTS[right]
    answer = {"text": TEXTS[right], "letter": LETTERS[right], "(letter)": f"({LETTERS[right]})", "whole": whole}[how]
    (question,) = read(media, [{**ASKED, **offered, "answer": answer}])
    assert (question.options, question.letter, question.answer) == (TEXTS, LETTERS[right], TEXTS[right])
    assert (question.id, question.text, question.prompt) == ("q", "which?", "")
    assert question.media == (("video", f"{media}/a.mp4"),)


@pytest.mark.parametrize(
    ("extra", "right"),
    [
        ({"candidates": list(TEXTS), "answer": 2}, 2),
        ({"candidates": list(TEXTS), "answer": "2"}, 2),
        ({"candidates": list(TEXTS), "correct_choice": 3}, 3),  # LongVideoBench
        ({"options": list(TEXTS), "answer_id": 0}, 0),  # Perception Test
        ({"options": list(TEXTS), "answer": "the answer is long", "answer_idx": "D"}, 3),
        ({"options": list(TEXTS), "answer_number": 1, "answer": "close"}, 1),
        ({"options": {"1": "open", "2": "close", "3": "push", "4": "the end"}, "answer": "2"}, 1),
        ({"option1": "open", "option2": "close", "option3": "push", "option4": "the end", "label": 3}, 2),
        ({"option_a": "open", "option_b": "close", "option_c": "push", "option_d": "the end", "answer": "option_c"}, 2),
        ({"options": list(TEXTS), "answer": 2.0}, 2),
    ],
)
def test_keys_of_the_right_option(media, extra, right):
    (question,) = read(media, [{**ASKED, **extra}])
    assert (question.options, question.letter) == (TEXTS, LETTERS[right])


def test_next_qa_s_own_table(media):
    row = {"video": "a", "frame_count": 90, "width": 640, "height": 480, "question": "why did he", "answer": 3,
           "qid": 6, "type": "CW", "a0": "x", "a1": "y", "a2": "z", "a3": "u", "a4": "v"}  # fmt: skip
    first, second = read(media, [row, {**row, "video": "b", "answer": 0}], "val.csv")
    assert (first.id, first.letter, first.answer, first.type) == ("a_6", "D", "u", "CW")
    assert (second.id, second.letter, second.missing) == ("b_6", "A", True)


def test_a_table_with_a_list_in_a_column(media):
    row = {"video": "a", "question": "q", "answer": "close"}
    for text in (json.dumps(TEXTS), repr(list(TEXTS)), repr(TEXTS)):
        (question,) = read(media, [{**row, "options": text}], "x.csv")
        assert (question.options, question.letter, question.id) == (TEXTS, "B", "0")


def test_what_a_value_means_is_told_by_the_whole_list(media):
    numbers = {**ASKED, "options": ["1", "2", "3"], "answer": "1"}
    assert "is the text or the letter of more than one of the options" in refusal(media, numbers)
    by_number = [numbers, {**ASKED, "id": "r", "options": ["x", "y", "z"], "answer": "2"}]
    assert [question.letter for question in read(media, by_number)] == ["B", "C"]
    by_text = [numbers, {**ASKED, "id": "r", "options": ["x", "y", "z"], "answer": "z"}]
    assert [question.letter for question in read(media, by_text)] == ["A", "C"]
    with_index = [{**numbers, "answer_idx": 0}]
    assert "more than one" in refusal(media, *with_index)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"options": list(TEXTS)}, "no key that names the right one"),
        (
            {"options": list(TEXTS), "answer": "shut"},
            "'answer' 'shut' is the text or the letter of none of the options",
        ),
        ({"options": list(TEXTS), "answer": "F"}, "of none of the options"),
        ({"options": list(TEXTS), "answer_idx": 4}, "'answer_idx' must be from 0 to 3"),
        ({"options": list(TEXTS), "answer_idx": -1}, "'answer_idx' must be from 0 to 3"),
        (
            {"options": list(TEXTS), "answer": "A", "answer_number": 1},
            "the keys of the right option disagree: 'answer'",
        ),
        ({"options": list(TEXTS), "a0": "x", "a1": "y", "answer": "A"}, "options under 'options' and under 'a0'"),
        (
            {"options": list(TEXTS), "choices": list(TEXTS), "answer": "A"},
            "options under 'options' and under 'choices'",
        ),
        ({"distractors": ["x", "y"], "answer": "z"}, "'distractors' looks like options, but is no key that is read"),
        ({"multi_choice": ["x", "y"], "answer": "x"}, "'multi_choice' looks like options"),
        ({"options": {"x": "open", "y": "close"}, "answer": "x"}, "the keys of 'options' must be the letters from A"),
        ({"options": ["open"], "answer": "A"}, "'options' must be a list of 2 to 26 texts"),
        ({"options": [{"choice": "open"}, {"choice": "close"}], "answer": "A"}, "'options' must be a list of 2 to 26"),
        ({"options": "open or close", "answer": "A"}, "'options' must be a list of 2 to 26"),
        ({"options": ["open", "open"], "answer": "open"}, "of none of the options"),
        ({"vdieo": "a.mp4", "video": None, "options": list(TEXTS), "answer": "A"}, "did you mean 'video'?"),
    ],
)
def test_options_that_cannot_be_read_are_refused_by_name(media, extra, expected):
    assert expected in refusal(media, {**ASKED, **extra})


def test_no_format_leaves_options_out(media):
    base = {"video_name": "a", "question_id": 1, "question": "q", "answer": "x"}
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}]
    assert read(media, [{**base, "candidates": ["x", "y"]}])[0].options == ("x", "y")
    assert "'options' holds options" in refusal(media, {"video": "a", "conversations": said, "options": ["x", "y"]})
    file = media / "list.json"
    with pytest.raises(InputError, match="'candidates' holds options, which the format 'vcgbench' does not have"):
        file.write_text(json.dumps([{**base, "candidates": ["x", "y"]}]))
        question_lists.read(str(file), str(media), name="vcgbench")
    (media / "x_q.json").write_text(json.dumps([{**base, "answer": None, "options": ["x", "y"]}]))
    (media / "x_a.json").write_text(json.dumps([{"question_id": 1, "answer": "B", "type": "t"}]))
    (question,) = question_lists.read(str(media / "x_q.json"), str(media)).questions
    assert (question.options, question.letter, question.answer, question.type) == (("x", "y"), "B", "y", "t")


OFFERED = st.lists(st.text("abcxyz .)(12", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=2, max_size=6,
                   unique=True)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(offered=OFFERED, data=st.data(), layout=st.sampled_from(["list", "object", "series"]))
def test_the_right_option_is_found_or_its_value_refused(offered, data, layout):
    """Whatever the texts are: never another option than the one that the record names."""
    right = data.draw(st.integers(0, len(offered) - 1))
    how = data.draw(st.sampled_from(["text", "letter", "number"]))
    answer = {"text": offered[right], "letter": options.LETTERS[right], "number": right}[how]
    held = {
        "list": {"options": offered},
        "object": {"options": dict(zip(options.LETTERS, offered, strict=False))},
        "series": {f"option_{i}": text for i, text in enumerate(offered)},
    }[layout]
    choice = options.read({"question": "q", "answer": answer, **held}, "f: record 0")
    assert choice is not None and len(choice.options) == len(offered)
    try:
        (letter,) = options.letters([choice])
    except InputError as error:
        assert "f: record 0: 'answer' " in str(error)
    else:
        by_text = how == "number" and str(answer) in offered  # of an object's numbers, which are no keys of it
        assert letter == options.LETTERS[right] or (layout == "object" and by_text)


# --- files and names ---------------------------------------------------------------------------------------------


def test_lists_with_a_mark_and_in_other_encodings(media):
    record = json.dumps([{"video": "a", "question": "Ünï?", "answer": "x"}], ensure_ascii=False)
    (media / "n.JSON").write_bytes(b"\xef\xbb\xbf" + record.encode())
    assert question_lists.read(str(media / "n.JSON"), str(media)).questions[0].text == "Ünï?"
    for name, text in (("l.json", record), ("l.csv", "video_name,question,answer\na,Ünï?,x\n")):
        (media / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=rf"{name}: line \d, byte \d+: 0xdc is not UTF-8"):
            question_lists.read(str(media / name), str(media))


@pytest.mark.parametrize("name", ["A", "A.MP4", "sub\\B", "SUB/b.mp4", "file://{}/a.mp4", "7", "sub/b%2Emp4"])
def test_clips_whose_names_differ_slightly(media, name):
    (media / "sub").mkdir()
    shutil.copy(CASES / "a.mp4", media / "sub" / "b.mp4")
    shutil.copy(CASES / "a.mp4", media / "video7.mp4")
    clips = ClipFiles(str(media))
    found = clips.path(name.format(media))
    assert found in (f"{media}/a.mp4", f"{media}/sub/b.mp4", f"{media}/video7.mp4") and not clips.missing
    assert len(clips.notes()) == (name not in ("7", "file://{}/a.mp4"))
    assert all(f"{found} is read for {name!r} (1 name in all)" in note for note in clips.notes())
    with pytest.raises(ValueError, match="leaves"):
        clips.path("../a.mp4")
    assert clips.path("..\\a.mp4") in clips.missing


def test_each_folder_is_listed_once(media, monkeypatch):
    asked = []
    names = storage.names
    monkeypatch.setattr(storage, "names", lambda folder: asked.append(folder) or names(folder))
    clips = ClipFiles(str(media))
    for number in range(50):
        clips.path(f"gone{number}")
    assert asked == [str(media)] and len(clips.missing) == 50


OF_CLIP = {"video": "a.mp4", "question": "q"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"answer": "B", "a0": "x", "a1": "", "a2": "z"}, "'a1' is empty"),
        ({"answer": "B", "a0": "x", "a1": None}, "'a1' is empty"),
        ({"answer": "A", "opa": "x", "opb": "y"}, "'opa' looks like options"),
        ({"answer": "A", "optA": "x", "optB": "y"}, "'optA' looks like options"),
        ({"answer": "1", "opt1": "x", "opt2": "y"}, "'opt1' looks like options"),
        ({"answer": "A", "selections": ["x", "y"]}, "'selections' looks like options"),
        ({"answer": "A", "question_choices": ["x", "y"]}, "'question_choices' looks like options"),
        ({"answer": "A. x", "mc": "A. x\nB. y"}, "'mc' looks like options"),
        ({"answer": "A", "options": ["B. x", "A. y"]}, "the options' own letters are B, A"),
        ({"answer": "A", "options": ["x", float("nan"), "y"]}, "has an empty option"),
        ({"answer": float("nan")}, "'answer' is nan"),
        ({"answer": "nan"}, "'answer' is nan"),
        ({"answer": "nan", "options": ["x", "y"]}, "no key that names the right one"),
        ({"answer": "A", "options": ["x\ud800", "y"]}, "half a character"),
    ],
)
def test_options_that_would_be_left_out_or_mistaken_are_refused(media, more, expected):
    with pytest.raises(InputError, match=expected) as caught:
        read(media, [OF_CLIP | more])
    assert "record 0" in str(caught.value)


@pytest.mark.parametrize("absent", ["", "nan", None, float("nan")])
def test_options_that_a_table_pads_are_absent(media, absent):
    (asked,) = read(media, [OF_CLIP | {"answer": "B", "a0": "x", "a1": "y", "a2": absent}])
    assert asked.options == ("x", "y") and asked.letter == "B"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("video,question,answer\na.mp4,is it red, or blue ?,red\n", "row 0: 4 fields for 3 columns"),
        ("video,question,answer,answer\na.mp4,q,x,y\n", "2 columns 'answer'"),
        ("video,question,answer,a0,a1\na.mp4,q,0,x\n", "row 0: 'a1' is empty"),
    ],
)
def test_tables_whose_rows_do_not_fit_are_refused(media, text, expected):
    (media / "list.csv").write_text(text)
    with pytest.raises(InputError, match=expected):
        question_lists.read(str(media / "list.csv"), str(media))


def test_long_fields_and_unread_parts_of_clips(media):
    (media / "list.csv").write_text(f"video,question,answer,start_time\na.mp4,{'q' * 140_000},x,3\n")
    found = question_lists.read(str(media / "list.csv"), str(media))
    assert len(found.questions[0].text) == 140_000
    assert any("'start_time' is not read" in note for note in found.notes)
