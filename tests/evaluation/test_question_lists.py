"""Every format of question list, how clips are found, and what is said about lists that are wrong."""

import json

import pytest
from support import small

from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import question_lists
from vlvm_jax.evaluation.benchmarks import t2vid
from vlvm_jax.evaluation.clip_files import ClipFiles


@pytest.fixture
def media(tmp_path):
    """Files by name only: reading a list opens none."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.avi", "c.mkv", "c.mov", "v_d.mp4", "e.webm", "p.png"):
        (folder / name).touch()
    (folder / "frames").mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "v_f.mp4").touch()
    return str(folder)


def write(folder, name, content):
    path = folder / name
    if isinstance(content, str):
        path.write_text(content)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(one) + "\n" for one in content))
    else:
        path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a", "a.mp4"),
        ("a.mp4", "a.mp4"),
        ("a.avi", "a.mp4"),  # the list says another ending than the files have
        ("b", "b.avi"),
        ("c", "c.mov"),  # mov is tried before mkv
        ("d", "v_d.mp4"),
        ("v_d", "v_d.mp4"),
        ("d.mp4", "v_d.mp4"),
        ("e.webm", "e.webm"),
        ("frames", "frames"),
        ("sub/f", "sub/v_f.mp4"),
    ],
)
def test_clips_are_found_by_name(media, name, found):
    clips = ClipFiles(media)
    assert clips.path(name) == f"{media}/{found}"
    assert not clips.missing


def test_a_clip_that_is_not_there_is_missing(media):
    clips = ClipFiles(media)
    assert clips.path("nothing") in clips.missing
    with pytest.raises(ValueError, match="leaves"):
        clips.path("../a")
    with pytest.raises(InputError, match=r"--media=.*: no such folder"):
        ClipFiles(f"{media}/absent")


def test_parallel_lists_join_by_id(tmp_path, media):
    asked = [
        {"video_name": "d", "question_id": "d_1", "question": "what is held?"},
        {"video_name": "gone", "question_id": 7, "question": "who?"},
    ]
    answered = [{"answer": "man", "type": 3, "question_id": "7"}, {"answer": "a cup", "type": 0, "question_id": "d_1"}]
    path = write(tmp_path, "test_q.json", asked)
    write(tmp_path, "test_a.json", answered)
    found = question_lists.read(path, media)
    assert found.format == "open_ended"
    first, second = found.questions
    assert (first.id, first.text, first.answer, first.type) == ("d_1", "what is held?", "a cup", "0")
    assert first.media == (("video", f"{media}/v_d.mp4"),) and not first.missing
    assert (second.id, second.answer, second.type, second.missing) == ("7", "man", "3", True)
    other = write(tmp_path, "other.json", answered[::-1])
    again = question_lists.read(path, media, answers=other)
    assert again.questions == found.questions
    assert again.digest != found.digest


QUESTION = {"video_name": "a", "question_id": 1, "question": "who?"}


@pytest.mark.parametrize(
    ("asked", "answered", "message"),
    [
        ([QUESTION], [{"question_id": 2, "answer": "x"}], "x_q.json: record 0: no record of .*x_a.json has .* '1'"),
        (
            [QUESTION],
            [{"question_id": 1, "answer": "x"}, {"question_id": 2, "answer": "y"}],
            "x_a.json: record 1: no record of .*x_q.json has its 'question_id' '2'",
        ),
        (
            [QUESTION],
            [{"question_id": 1, "answer": "x"}, {"question_id": "1", "answer": "y"}],
            "x_a.json: record 1: 'question_id' '1' stands here and in .*x_a.json: record 0",
        ),
        ([QUESTION, QUESTION], [{"question_id": 1, "answer": "x"}], "x_q.json: record 1: the id '1' stands here and"),
        ([QUESTION], [{"question_id": 1}], "x_a.json: record 0: 'answer' must be a text"),
        ([QUESTION], [["x"]], "x_a.json: record 0: expected an object, found list"),
    ],
)
def test_faults_of_parallel_lists(tmp_path, media, asked, answered, message):
    path = write(tmp_path, "x_q.json", asked)
    write(tmp_path, "x_a.json", answered)
    with pytest.raises(InputError, match=message) as caught:
        question_lists.read(path, media)
    assert "\n" not in str(caught.value)


CHOICE = {
    "task_name": "NEXTQA", "video_name": "a.mp4", "question_id": 3, "question": "why?", "answer_number": 2,
    "candidates": ["to run", "to eat", "to play", "to sleep", "to sing"], "answer": "to play",
}  # fmt: skip
PROMPT = "Question: what moves?\nA. a car\nB. a dog\nC. A. cat\nAnswer with the letter only."
T2VID = {"question_id": "m1", "video": "frames", "prompt": PROMPT, "GT": "B", "category": "order"}


def test_multiple_choice(tmp_path, media):
    found = question_lists.read(write(tmp_path, "mc.json", [CHOICE]), media)
    (question,) = found.questions
    assert found.format == "multiple_choice"
    assert (question.letter, question.answer, question.type) == ("C", "to play", "NEXTQA")
    assert question.carried == {key: CHOICE[key] for key in ("task_name", "answer_number", "candidates")}
    assert question.text == "why?"
    assert (question.text, question.options, question.prompt) == ("why?", tuple(CHOICE["candidates"]), "")


def test_t2vid(tmp_path, media):
    found = question_lists.read(write(tmp_path, "bench.jsonl", [T2VID]), media)
    (question,) = found.questions
    assert found.format == "t2vid"
    assert (question.id, question.letter, question.type) == ("m1", "B", "order")
    assert question.prompt == PROMPT  # as it stands
    assert question.text == "Question: what moves?"
    assert question.options == ("a car", "a dog", "A. cat")
    assert question.answer == "a dog"
    assert question.media == (("video", f"{media}/frames"),)


def test_a_prompt_without_options_is_all_question():
    assert t2vid.split_prompt("A. what?\nB. x") == ("A. what?\nB. x", ())
    assert t2vid.split_prompt("what?\n(A) x") == ("what?\n(A) x", ())


def test_vcgbench(tmp_path, media):
    records = [
        {"video_name": "a", "question_id": 0, "question": "what happens?", "answer": "much"},
        {"video_name": "b", "question_id": 1, "question": ["is it?", "is it so?"], "answer": "yes"},
    ]
    found = question_lists.read(write(tmp_path, "v.json", records), media)
    assert found.format == "vcgbench"
    assert [(q.id, q.text, q.answer, q.type) for q in found.questions] == [
        ("0", "what happens?", "much", "all"),
        ("1/1", "is it?", "yes", "consistency"),
        ("1/2", "is it so?", "yes", "consistency"),
    ]


def test_csv(tmp_path, media):
    text = (
        "\ufeffindex,video_id,answer,question,video_name,question_id,question_type\n"
        '0,12,"a man, a dog",who is there?,b,b_0,4\n'
    )
    found = question_lists.read(write(tmp_path, "MSVD_QA.csv", text), media)
    (question,) = found.questions
    assert found.format == "csv"
    assert (question.id, question.answer, question.type) == ("b_0", "a man, a dog", "4")
    assert question.media == (("video", f"{media}/b.avi"),)


def test_plain(tmp_path, media):
    records = [
        {"video": "a", "question": "<video>\nhow many?", "answer": 2, "id": "x", "type": "count", "start": 1, "end": 2},
        {"video": "a", "question": "which?", "answer": "B", "options": ["red", "blue"]},
        {"image": "p.png", "question": "which?", "answer": "red", "options": ["red", "blue"]},
    ]
    found = question_lists.read(write(tmp_path, "own.jsonl", records), media)
    assert found.format == "plain"
    first, second, third = found.questions
    assert (first.id, first.text, first.answer, first.type, first.span) == ("x", "how many?", "2", "count", (1, 2))
    assert (first.text, first.prompt) == ("how many?", "")
    assert (second.id, second.letter, second.answer, second.type) == ("1", "B", "blue", "all")
    assert (third.letter, third.media) == ("A", (("image", f"{media}/p.png"),))


def test_llava(tmp_path, media):
    said = [("human", "<image>\nwhat?"), ("gpt", "red"), ("human", "where?"), ("gpt", "left")]
    record = {"id": "r", "video": "a", "types": ["color", "place"],
              "conversations": [{"from": who, "value": text} for who, text in said]}  # fmt: skip
    found = question_lists.read(write(tmp_path, "held.json", [record]), media)
    assert found.format == "llava"
    assert [(q.id, q.text, q.answer, q.type) for q in found.questions] == [
        ("r/0", "what?", "red", "color"),
        ("r/1", "where?", "left", "place"),
    ]
    assert {q.media for q in found.questions} == {(("video", f"{media}/a.mp4"),)}


def test_the_embedded_held_out_lists(embedded):
    from vlvm_jax.data.embedded import words as embedded_words

    folder = small.data(embedded)
    found = question_lists.read(str(folder / "heldout_clips.json"), str(folder))
    assert found.format == "llava"
    assert len(found.questions) >= 8
    assert not any(question.missing for question in found.questions)
    assert {question.type for question in found.questions} > {"color"}
    assert embedded_words.SPECIAL_TOKENS[-1] not in " ".join(question.text for question in found.questions)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{", "x.json: not JSON"),
        ("x.json", {"a": 1}, "x.json: expected a JSON list of records, found dict"),
        ("x.json", [], r"x.json: record 0: of no format known here .* its keys are \[\]"),
        ("x.json", [3], "x.json: record 0: expected an object, found int"),
        ("x.json", [{"clip": "a"}], r"x.json: record 0: of no format known .*its keys are \['clip'\]"),
        ("x.jsonl", '{"video": "a", "question": "q", "answer": "a"}\n{"vid', r"x.jsonl: not JSON \(line 2: "),
        ("x.json", [QUESTION], "x.json: questions without answers; name the list of answers with --answers"),
        ("x_q.json", [QUESTION], "--answers=.*x_a.json: no such file"),
        ("x.json", [CHOICE | {"answer_number": 5}], "record 0: 'answer_number' must be from 0 to 4"),
        ("x.json", [CHOICE | {"answer_number": True}], "record 0: 'answer_number' must be from 0 to 4"),
        ("x.json", [CHOICE | {"candidates": "abc"}], "record 0: 'candidates' must be a list of 2 to 26 texts"),
        ("x.json", [CHOICE | {"video_name": "../a"}], "record 0: 'video_name': '../a' leaves"),
        ("x.json", [CHOICE, CHOICE], "record 1: the id '3' stands here and in .*record 0; ids must be unique"),
        ("x.json", [CHOICE | {"question_id": None}], "record 0: 'question_id' must be a text or a whole number"),
        ("x.json", [T2VID | {"GT": "D"}], "record 0: 'GT' must be one letter from A to C, found 'D'"),
        ("x.json", [T2VID | {"prompt": " "}], "record 0: 'prompt' must be a text that is not empty"),
        ("x.json", [{"question": "q", "answer": "a"}], r"record 0: no 'video' \(nor 'image'\)"),
        (
            "x.json",
            [{"video": "a", "question": "q", "answer": "A", "options": ["B", "A"]}],
            "record 0: 'answer' 'A' is the text or the letter of more than one of the options",
        ),
        (
            "x.json",
            [{"video": "a", "question": "q", "answer": "green", "options": ["red", "blue"]}],
            "record 0: 'answer' 'green' is the text or the letter of none of the options",
        ),
        ("x.json", [{"video_name": "a", "question_id": 1, "question": ["q"], "answer": "a"}], "a list of two"),
        ("x.csv", "question,answer\n", "x.csv: no column 'video_name'; its columns are"),
        ("x.csv", "video_name,question_id,question,answer\na,1,,x\n", "x.csv: row 0: 'question' must be a text"),
        ("x.csv", "video_name,question_id,question,answer\n", "x.csv: no questions in it"),
    ],
)  # fmt: skip
def test_faults(tmp_path, media, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        question_lists.read(write(tmp_path, name, content), media)
    assert "\n" not in str(caught.value)


def test_flags_that_do_not_fit(tmp_path, media):
    path = write(tmp_path, "x.json", [CHOICE])
    with pytest.raises(
        InputError, match=r"--answers=a.json: .* of the format 'multiple_choice', which holds its answers"
    ):
        question_lists.read(path, media, answers="a.json")
    with pytest.raises(InputError, match="record 0: 'prompt' must be a text"):
        question_lists.read(path, media, name="t2vid")
    with pytest.raises(InputError, match=r"--questions=.*: no such file"):
        question_lists.read(f"{path}x", media)


def test_llava_questions_keep_the_places_of_their_media(tmp_path, media):
    turns = [{"from": "human", "value": "is <image> as <image>?"}, {"from": "gpt", "value": "no"}]
    record = {"image": ["p.png", "p.png"], "conversations": turns}
    (question,) = question_lists.read(write(tmp_path, "held.json", [record]), media).questions
    assert question.prompt == "is <image> as <image>?"
    assert "<image>" not in question.text
    with pytest.raises(InputError, match=r"held.json: record 0: a system turn"):
        system = [{"from": "system", "value": "be brief"}, *turns]
        question_lists.read(write(tmp_path, "held.json", [record | {"conversations": system}]), media)
