"""The rule `yes_no`: examples, which questions it decides on, and when it is refused."""

import pytest

from vlvm_jax.data.record import MediaKind
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import results
from vlvm_jax.evaluation.question_lists import Question
from vlvm_jax.evaluation.results import Rules
from vlvm_jax.evaluation.scoring import MATCHES
from vlvm_jax.evaluation.yes_no import is_yes_no, read_yes_no

CLIP: tuple[tuple[MediaKind, str]] = (("video", "a.mp4"),)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Yes, the man runs.", "yes"),
        ("YES", "yes"),
        ("No.", "no"),
        ("**No**, there is no dog.", "no"),
        ("No, yes signs are seen.", "no"),
        ("(yes)", "yes"),
        ("\uff39\uff45\uff53", "yes"),
        ("The answer is yes", "yes"),
        ("Final answer: no", "no"),
        ("Yes. But the final answer is no.", "no"),
        ("I see a man. Answer: Yes, he runs.", "yes"),
        ("<answer>no</answer>", "no"),
        ("It follows that \\boxed{\\text{Yes}}.", "yes"),
        ("<think>Yes? No.</think>Yes", "yes"),
        ("<think>Yes", None),
        ("yes and no", None),
        ("Yes or no", None),
        ("yes/no", None),
        ("Yes. No.", None),
        ("No, no.", "no"),
        ("The answer is yes. The answer is no.", None),
        ("If the answer is yes, he runs.", None),
        ("Not yes", None),
        ("No one is visible in the video, so yes.", None),
        ("No matter what, yes", None),
        ("No, wait, yes.", None),
        ("No doubt, it is a dog.", None),
        ("No problem! Yes.", None),
        ("No idea", None),
        ("No 5 is on the shirt", None),
        ("The answer is no longer clear", None),
        ("Yes. Actually, no.", None),
        ("The answer is yes. Sorry, no.", None),
        ("Yes, he runs, but no dog is seen.", "yes"),
        ("Yes, no doubt.", "yes"),
        ("No dog is seen.", "no"),
        ("no</s>", "no"),
        ("The man says no", None),
        ("Nothing", None),
        ("Yesterday", None),
        ("", None),
    ],
)
def test_examples(reply, said):
    assert read_yes_no(reply) == said
    assert MATCHES["yes_no"](reply, "Yes") == (said == "yes")
    assert MATCHES["yes_no"](reply, "no.") == (said == "no")
    assert not MATCHES["yes_no"](reply, "the man runs")


def test_answers_that_are_yes_or_no():
    assert is_yes_no(" Yes.") and is_yes_no("no")
    assert not is_yes_no("yes, he runs") and not is_yes_no("nothing")


QUESTIONS = (
    Question("1", "f: record 0", CLIP, "does he run?", "yes", type="yes/no"),
    Question("2", "f: record 1", CLIP, "does he sit?", "No", type="yes/no"),
    Question("3", "f: record 2", CLIP, "what is red?", "car", type="other"),
    Question("4", "f: record 3", CLIP, "what?", "red", options=("red", "blue"), letter="A"),
)
LINES = {
    number: {"id": number, "pred": said}
    for number, said in (("1", "Yes, he runs."), ("2", "Yes"), ("3", "The car."), ("4", "A"))
}


def test_it_decides_where_the_answer_is_yes_or_no():
    found = results.summarise(QUESTIONS, {None: LINES}, Rules(match="yes_no"))
    assert found["by_type"] == {"yes/no": 0.5, "other": 1.0, "all": 1.0}
    assert (found["by_rule"]["yes_no"]["accuracy"], found["by_rule"]["yes_no"]["questions"]) == (0.5, 2)
    assert (found["by_rule"]["normalised"]["accuracy"], found["by_rule"]["normalised"]["questions"]) == (1 / 3, 3)
    assert "yes_no" not in results.judged(QUESTIONS[2], LINES["3"])
    assert results.judged(QUESTIONS[0], None)["yes_no"] is False


def test_the_closing_lines_say_what_it_decides_on(capsys):
    results.show("mine", results.summarise(QUESTIONS, {None: LINES}, Rules(match="yes_no")))
    assert "yes_no: 0.500 of 2 whose answer is yes or no (this table's; normalised for the others)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_list_without_yes_and_no_is_refused():
    with pytest.raises(InputError, match="--match=yes_no: no answer in the list is yes or no; the first is 'car'"):
        results.check_match(QUESTIONS[2:], Rules(match="yes_no"))
    results.check_match(QUESTIONS, Rules(match="yes_no"))
    results.check_match(QUESTIONS[2:], Rules())
    results.check_match(QUESTIONS[3:], Rules(match="yes_no"))  # nothing for the rule to decide on
