"""From predictions to accuracies: `results.json`, `scored.jsonl` and the closing tables."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

from vlvm_jax.console import number_of, say, show_table
from vlvm_jax.data.record import short
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import scoring
from vlvm_jax.evaluation.questions import Question
from vlvm_jax.evaluation.scoring import MATCHES, PARSERS, Mark, Match, Parser
from vlvm_jax.evaluation.yes_no import is_yes_no

Denominator = Literal["all", "answered", "released"]
Line = Mapping[str, Any]  # of predictions
NOTE = (
    "Scored by fixed rules, with no judge: these are no paper's numbers and are not to be set beside a paper's. Two of "
    "them compare where questions, prompt, frames, decoding, rules and denominator are the same."
)
_UNPARSED = "Z"  # in the place of a letter, as T2Vid writes it


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules by which replies are scored.

    Attributes:
    match: what decides on free text; all rules are reported. `yes_no` decides only if the true answer is yes or no,
      otherwise `normalised` does.
    parser: what decides on multiple choice; likewise.
    denominator: `all` counts questions without an answer as wrong; `answered` leaves them out; `released` does too, as
      well as T2Vid's items whose prompt has not exactly one "A. ".
    """

    match: Match = "normalised"
    parser: Parser = "strict"
    denominator: Denominator = "all"


def judged(question: Question, line: Line | None) -> dict[str, bool]:
    """By name of each rule that applies to the question, whether the prediction is right; without one it is wrong."""
    said = None if line is None else line["pred"]
    if question.letter:
        letters = letters_of(question, said)
        return {name: letter == question.letter for name, letter in letters.items()}
    asked = is_yes_no(question.answer)
    names = [name for name in MATCHES if asked or name != "yes_no"]
    return {name: said is not None and MATCHES[name](said, question.answer) for name in names}


def deciding(question: Question, rules: Rules) -> str:
    """Name of the rule that decides on a question."""
    if question.letter:
        return rules.parser
    return rules.match if rules.match != "yes_no" or is_yes_no(question.answer) else "normalised"


def check_match(questions: Sequence[Question], rules: Rules) -> None:
    """Raises `InputError` if the rule `yes_no` is chosen, but no answer is yes or no."""
    free = [question for question in questions if not question.letter]
    if rules.match == "yes_no" and free and not any(is_yes_no(question.answer) for question in free):
        raise InputError(
            f"--match=yes_no: no answer in the list is yes or no; the first is {short(free[0].answer)}; choose exact, "
            "normalised or contains"
        )


def letters_of(question: Question, said: str | None) -> dict[str, str | None]:
    """The letter that each parser reads."""
    return {name: None if said is None else parse(said, question.options) for name, parse in PARSERS.items()}


def accuracy(questions: Sequence[Question], lines: Mapping[str, Line], rules: Rules) -> dict[str, Any]:
    """Accuracy under the chosen rules, and `by_rule` under each; what of the questions got no answer.

    Args:
      lines: predictions by id; of other ids too, which do not count.
    """
    counted = [question for question in questions if _counts(question, lines, rules.denominator)]
    marks: list[Mark] = []
    by_rule: dict[str, list[Mark]] = {}
    for question in counted:
        right = judged(question, lines.get(question.id))
        for name, value in right.items():
            by_rule.setdefault(name, []).append(Mark(question.type, value))
        marks.append(Mark(question.type, right[deciding(question, rules)]))
    unanswered = [line for line in (_line(question, lines) for question in questions) if line["pred"] is None]
    return {
        **scoring.accuracies(marks),
        "by_rule": {
            name: scoring.accuracies(scores) | _unparsed(name, counted, lines) for name, scores in by_rule.items()
        },
        "unanswered": dict(Counter(line["cause"] for line in unanswered).most_common()),
    }


def _line(question: Question, lines: Mapping[str, Line]) -> Line:
    return lines.get(question.id) or {"id": question.id, "pred": None, "cause": "not_asked", "detail": ""}


def _counts(question: Question, lines: Mapping[str, Line], denominator: Denominator) -> bool:
    if denominator == "all":
        return True
    lettered = denominator == "answered" or not question.letter or not question.prompt
    return _line(question, lines)["pred"] is not None and (lettered or question.prompt.count("A. ") == 1)


def _unparsed(name: str, questions: Sequence[Question], lines: Mapping[str, Line]) -> dict[str, int]:
    """For parsers, how many replies they found no letter in."""
    if name not in PARSERS:
        return {}
    said = [(question, _line(question, lines)["pred"]) for question in questions if question.letter]
    return {"unparsed": sum(PARSERS[name](text, q.options) is None for q, text in said if text is not None)}


def summarise(
    questions: Sequence[Question], lines: Mapping[str | None, Mapping[str, Line]], rules: Rules
) -> dict[str, Any]:
    """`results.json`.

    Args:
      lines: predictions by control, None for none, and id.
    """
    missing = [{**_line(question, lines[None]), "source": question.source} for question in questions]
    return {
        "rules": dataclasses.asdict(rules),
        **accuracy(questions, lines[None], rules),
        "controls": {name: accuracy(questions, control_lines, rules) for name, control_lines in lines.items() if name},
        "without_answer": [
            {key: line.get(key) for key in ("id", "source", "cause", "detail")}
            for line in missing
            if line["pred"] is None
        ],
        "note": NOTE,
    }


def scored(questions: Sequence[Question], lines: Mapping[str, Line]) -> list[dict[str, Any]]:
    """Predictions in the order of the questions, each with `right` by rule.

    Of multiple choice `orig_pred` is the reply, `pred` the strict parser's letter ("Z" for none) and `letters` all
    parsers'. Two questions of one record (VCGBench's consistency) become one line with `pred1` and `pred2`.
    """
    rows: list[dict[str, Any]] = []
    for question in questions:
        line = dict(_line(question, lines)) | {"right": judged(question, lines.get(question.id))}
        if question.letter:
            said = _line(question, lines)["pred"]
            letters = letters_of(question, said)
            line |= {"orig_pred": said, "pred": letters["strict"] or _UNPARSED, "letters": letters}
        pair, _, number = question.id.rpartition("/") if question.paired else ("", "", "")
        if number == "2":
            first = rows.pop()
            line = {
                "id": pair,
                "question": [first["question"], question.text],
                "answer": question.answer,
                "pred1": first["pred"],
                "pred2": line["pred"],
                "right": [first["right"], line["right"]],
            }
        elif number == "1":
            line["question"] = question.text
        rows.append(line)
    return rows


def show(title: str, result: Mapping[str, Any]) -> None:
    """Prints accuracies by type beside the controls', then by rule, and what was not answered."""
    controls = result["controls"]
    table = Table(title=f"{title}: {number_of(result['questions'], 'question')}", title_justify="left")
    table.add_column("question type")
    for column in ("questions", "accuracy", *(name.replace("_", " ") for name in controls)):
        table.add_column(column, justify="right")
    for kind, share in result["by_type"].items():
        others = (_share(control_result["by_type"].get(kind)) for control_result in controls.values())
        table.add_row(kind, str(result["questions_by_type"][kind]), _share(share), *others)
    table.add_section()
    for name, key in (("all (micro)", "accuracy"), ("mean over types (macro)", "macro_accuracy")):
        others = (_share(control_result[key]) for control_result in controls.values())
        table.add_row(name, str(result["questions"]), _share(result[key]), *others)
    show_table(table)
    for name, scores in result["by_rule"].items():
        unparsed = f", {scores['unparsed']} unparsed" if "unparsed" in scores else ""
        chosen = " (this table's)" if name in result["rules"].values() else ""
        if name == "yes_no":
            chosen = " whose answer is yes or no" + chosen.replace("table's)", "table's; normalised for the others)")
        say(f"{name}: {_share(scores['accuracy'])} of {scores['questions']}{unparsed}{chosen}")
    if result["unanswered"]:
        causes = ", ".join(f"{count} {cause}" for cause, count in result["unanswered"].items())
        counted = "counted as wrong" if result["rules"]["denominator"] == "all" else "left out"
        say(f"without an answer, {counted}: {causes}; results.json lists them")
    say(NOTE)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
