"""What is asked around a question."""

import pytest

from vlvm_jax.data.prompt import answers, templates
from vlvm_jax.data.prompt.answers import TEMPLATES, read_template, render_question
from vlvm_jax.errors import InputError

OPTIONS = ("red", "green {question}", "blue")


def test_the_question_alone():
    assert render_question("why ?", (), "question") == "why ?"
    assert render_question("why ?", OPTIONS[:2], "options").startswith("why ?\n(A) red\n(B) green {question}\n")


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not name.endswith("options")])
def test_options_choose_the_template_that_takes_them(name):
    alone, several = render_question("why {options} ?", (), name), render_question("why {options} ?", OPTIONS, name)
    assert alone.count("why {options} ?") == several.count("why {options} ?") == 1  # what is asked is not a template
    assert "red" not in alone and several.index("why") < several.index("red") < several.index("blue")
    assert several.count("green {question}") == 1
    assert "{" not in alone.replace("{options}", "")


def test_the_layout_of_the_key_frames():
    """SlowFast-LLaVA's structure: what is seen, how to answer, the question under its label, last."""
    text = render_question("who runs?", (), "key_frames")
    lead, question = text.split("\n")
    assert question == "Question: who runs?"
    assert lead.count(".") == 2 and "key frames" in lead and "events, people or objects" in lead
    choice = render_question("who runs?", OPTIONS, "key_frames").split("\n")
    assert choice[2:4] == ["Question: who runs?", "Options:"]
    assert choice[4:7] == ["(A) red", "(B) green {question}", "(C) blue"]
    assert len(choice) == 8 and "best option" in choice[-1]


def test_the_image_grid_lists_options_on_one_line():
    text = render_question("who?", OPTIONS, "image_grid")
    assert "\nOptions: A: red B: green {question} C: blue\n" in text
    assert "grid" in text and "grid" in render_question("who?", (), "image_grid")


def test_templates_of_others(tmp_path):
    assert read_template("key_frames", "k") == "key_frames"
    assert read_template("Say: {question}", "k") == "Say: {question}"
    (tmp_path / "own.txt").write_text("Line one.\nQ: {question}\n{options}\n")
    text = read_template(str(tmp_path / "own.txt"), "k")
    assert render_question("who?", ("a", "b"), text) == "Line one.\nQ: who?\n(A) a\n(B) b"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("kee_frames", r"k: 'kee_frames' is no template; give one of question, options, key_frames"),
        ("none.txt", "k: there is no file none.txt"),
        ("{question} {title}", r"k: nothing fills \{title\} of this template"),
    ],
)
def test_what_is_no_template(template, message):
    with pytest.raises(InputError, match=message):
        read_template(template, "k")


def test_options_need_a_place_and_a_place_needs_options():
    with pytest.raises(InputError, match="has no place for options, and the question 'who\\?' has 2"):
        render_question("who?", ("a", "b"), "Q: {question}")
    with pytest.raises(InputError, match="has a place for options, and the question 'who\\?' has none"):
        render_question("who?", (), "key_frames_options")
    with pytest.raises(InputError, match="27 options; at most 26"):
        render_question("who?", ["x"] * 27, "question")


def test_every_prefix_begins_an_answer():
    assert answers.PREFIXES["open"] == "Answer: In the video,"
    assert answers.PREFIXES["options"].endswith("(")


def test_a_whole_prompt_for_vicuna():
    """The released prompts' structure: roles on their own lines, no system text, the answer's beginning forced."""
    question = "<video>\n" + render_question("who runs?", (), "key_frames")
    prompt = templates.TEMPLATES["vicuna_lines"].prompt([{"role": "user", "content": question}])
    assert prompt.text.startswith("<s>USER: <video>\n")
    assert prompt.text.endswith("\nQuestion: who runs?\nASSISTANT:\n") and prompt.kinds == ("video",)
    assert (prompt.text + answers.PREFIXES["open"]).endswith("ASSISTANT:\nAnswer: In the video,")


def test_a_question_mark_more():
    assert render_question("who?", (), "question", append_question_mark=True) == "who??"
    text = render_question("who", ("a", "b"), "image_grid", append_question_mark=True)
    assert "\nQuestion: who?\nOptions: A: a B: b\n" in text
