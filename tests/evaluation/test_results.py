"""Accuracies by rule and type, the denominators, what is listed, and the prediction records of both specs."""

import pytest

from vlvm_jax.evaluation import results
from vlvm_jax.evaluation.questions import Question
from vlvm_jax.evaluation.results import Rules

CLIP = (("video", "a.mp4"),)
PROMPT = "what?\nA. red\nB. blue\nReply."
QUESTIONS = (
    Question("1", "f: record 0", CLIP, "q1", "red", type="color"),
    Question("2", "f: record 1", CLIP, "q2", "blue", type="color"),
    Question("3", "f: record 2", CLIP, "q3", "two", type="count"),
    Question("4", "f: record 3", CLIP, "q4", "gone", type="count", missing=True),
    Question("5", "f: record 4", CLIP, "what?", "blue", type="order", options=("red", "blue"), letter="B",
             prompt=PROMPT),
    Question("6", "f: record 5", CLIP, "what?", "red", type="order", options=("red", "blue"), letter="A",
             prompt=PROMPT + "A. "),
)  # fmt: skip
LINES = {
    "1": {"id": "1", "pred": "Red."},
    "2": {"id": "2", "pred": "it is blue"},
    "3": {"id": "3", "pred": "2"},
    "4": {"id": "4", "pred": None, "cause": "missing", "detail": "a.mp4"},
    "5": {"id": "5", "pred": "Best option: B"},
    "6": {"id": "6", "pred": "Based on it, the answer is A"},
    "of another run": {"id": "of another run", "pred": "x"},
}


def test_all_rules_are_reported_and_the_chosen_ones_decide():
    found = results.summarise(QUESTIONS, {None: LINES}, Rules())
    assert found["questions"] == 6
    assert found["accuracy"] == pytest.approx(4 / 6)  # 1 and 3 normalised, 5 and 6 strict
    assert found["by_type"] == {"color": 0.5, "count": 0.5, "order": 1.0}
    assert found["macro_accuracy"] == pytest.approx(2 / 3)
    shares = {name: (rule["accuracy"], rule["questions"]) for name, rule in found["by_rule"].items()}
    assert shares == {
        "exact": (0, 4),
        "normalised": (0.5, 4),
        "contains": (0.75, 4),
        "strict": (1, 2),
        "slowfast_released": (0.5, 2),  # the first reply begins with B, the second too
        "t2vid_released": (0.5, 2),
    }
    other = results.summarise(QUESTIONS, {None: LINES}, Rules(match="contains", parser="t2vid_released"))
    assert other["accuracy"] == pytest.approx(4 / 6)
    assert other["by_type"] == {"color": 1.0, "count": 0.5, "order": 0.5}
    assert other["by_rule"] == found["by_rule"]


def test_what_has_no_answer_is_wrong_or_left_out_and_always_listed():
    lines = {name: line for name, line in LINES.items() if name != "2"}
    missing = [
        {"id": "2", "source": "f: record 1", "cause": "not_asked", "detail": ""},
        {"id": "4", "source": "f: record 3", "cause": "missing", "detail": "a.mp4"},
    ]
    for denominator, questions in (("all", 6), ("answered", 4), ("released", 3)):
        found = results.summarise(QUESTIONS, {None: lines}, Rules(denominator=denominator))
        assert found["questions"] == questions, denominator
        assert found["without_answer"] == missing
        assert found["unanswered"] == {"not_asked": 1, "missing": 1}
        assert found["accuracy"] == pytest.approx(4 / 6 if denominator == "all" else 1)
        assert found["by_rule"]["strict"]["unparsed"] == 0


def test_controls_have_their_own_accuracies():
    blank = {name: line | {"pred": "red"} for name, line in LINES.items()}
    found = results.summarise(QUESTIONS, {None: LINES, "blank_video": blank}, Rules())
    control = found["controls"]["blank_video"]
    assert control["accuracy"] == pytest.approx(2 / 6)  # "red" is the first's answer and the last's option
    assert control["by_type"] == {"color": 0.5, "count": 0.0, "order": 0.5}
    assert control["by_rule"]["slowfast_released"]["unparsed"] == 2
    assert "not to be set beside a paper's" in found["note"]


def test_scored_lines_of_multiple_choice():
    lines = results.scored(QUESTIONS, LINES)
    assert [line["id"] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    assert lines[0]["right"] == {"exact": False, "normalised": True, "contains": True}
    assert lines[3]["pred"] is None and lines[3]["right"] == {"exact": False, "normalised": False, "contains": False}
    assert lines[4]["orig_pred"] == "Best option: B" and lines[4]["pred"] == "B"
    assert lines[5]["letters"] == {"strict": "A", "slowfast_released": "B", "t2vid_released": "B"}
    unclear = results.scored(QUESTIONS[4:5], {"5": {"id": "5", "pred": "perhaps"}})
    assert unclear[0]["pred"] == "Z"


def test_two_questions_of_a_record_become_one_line():
    pair = tuple(Question(f"7/{n}", "f", CLIP, f"q{n}", "yes", paired=True) for n in (1, 2))
    (line,) = results.scored(pair, {"7/1": {"id": "7/1", "pred": "Yes"}, "7/2": {"id": "7/2", "pred": "no"}})
    assert line["id"] == "7" and line["question"] == ["q1", "q2"]
    assert (line["pred1"], line["pred2"]) == ("Yes", "no")
    assert [right["normalised"] for right in line["right"]] == [True, False]


def test_the_table_names_everything(capsys):
    blank = {name: line | {"pred": "red"} for name, line in LINES.items()}
    results.show("mine", results.summarise(QUESTIONS, {None: LINES, "blank_video": blank}, Rules()))
    shown = capsys.readouterr().out
    for word in ("mine: 6 questions", "blank video", "color", "macro", "strict: 1.000 of 2, 0 unparsed (this table's)",
                 "contains: 0.750 of 4", "counted as wrong: 1 missing", "no judge"):  # fmt: skip
        assert word in shown
