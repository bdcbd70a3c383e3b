"""The matches, the parsers with every vector of the two specs, and what an accuracy is of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.evaluation import scoring
from vlvm_jax.evaluation.scoring import MATCHES, Mark, normalise, parse_slowfast, parse_strict, parse_t2vid


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The Red  Car. ", "red car"),
        ("a", "a"),
        ("An apple, a pear", "apple pear"),
        ("Two dogs", "2 dogs"),
        ("twenty-one", "21"),
        ("one hundred", "1 hundred"),
        ("1,000.50 m", "1000.50 m"),
        ("1, 2", "1 2"),
        ("It's", "its"),
        ("rock-climbing", "rock climbing"),
        ("\uff21\uff22\uff23", "abc"),
        ("STRASSE", "strasse"),
        ("$5", "5"),
        ("someone", "someone"),
        ("红色的汽车。", "红色的汽车"),
        ("...", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


@given(st.text())
def test_normalise_leaves_no_space_or_mark_at_the_ends(text):
    assert normalise(f" {text} !") == normalise(text) == " ".join(normalise(text).split())


@pytest.mark.parametrize(
    ("said", "true", "rules"),
    [
        ("red", "red", {"exact", "normalised", "contains"}),
        (" red\n", "red", {"exact", "normalised", "contains"}),
        ("Red.", "red", {"normalised", "contains"}),
        ("The car is red.", "red", {"contains"}),
        ("The car is reddish.", "red", set()),
        ("three", "3", {"normalised", "contains"}),
        ("blue", "red", set()),
        ("", "red", set()),
        ("anything", "...", set()),
        ("red blue car", "red car", set()),
    ],
)
def test_matches(said, true, rules):
    assert {name for name, match in MATCHES.items() if match(said, true)} == rules


SLOWFAST = [
    ("A) red", "a"),
    ("B", "b"),
    ("The answer is C) x", "c"),
    ("C) or A) maybe", "a"),
    ("the answer is B", None),
    ("dog", "d"),
    ("", None),
]


@pytest.mark.parametrize(("reply", "letter"), SLOWFAST)
def test_slowfast_released(reply, letter):
    assert parse_slowfast(reply) == (letter and letter.upper())


T2VID = [
    ("C", "C"),
    ("(C)", "C"),
    ("The correct answer is C", "C"),
    ("The best option is D.", "D"),
    ("Best option: C", "B"),
    ("Based on the video, the answer is C", "B"),
    ("A man is cooking", "A"),
    ("Both options E. and A. fit", "E"),
    ("Answer: b", None),
    ("red car", None),
]


@pytest.mark.parametrize(("reply", "letter"), T2VID)
def test_t2vid_released(reply, letter):
    assert parse_t2vid(reply) == letter


OPTIONS = ("red car", "A man is cooking", "blue", "a dog", "Blue.")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("C", "C"),
        (" b ", "B"),
        ("(C)", "C"),
        ("(c)", "C"),
        ("C.", "C"),
        ("**C**", "C"),
        ("A) red", "A"),
        ("B: a man", "B"),
        ("B. A man is cooking", "B"),
        ("The correct answer is C", "C"),
        ("The best option is D.", "D"),
        ("Best option: C", "C"),
        ("Based on the video, the answer is C", "C"),
        ("Answer: b", "B"),
        ("the answer is (C) blue", "C"),
        ("The answer is C because it is", "C"),
        ("The answer is option D", "D"),
        ("red car", "A"),
        ("Red car.", "A"),
        ("A man is cooking", "B"),
        ("Dog", "D"),
        ("The answer is A man", None),  # an article or a letter
        ("The answer is a dog", None),
        ("Answer: B. Or the answer is C.", None),
        ("blue", None),  # the text of two options
        ("Both options E. and A. fit", None),
        ("dogs", None),
        ("e.g. this", None),
        ("F", None),  # no such option
        ("", None),
    ],
)
def test_strict(reply, letter):
    assert parse_strict(reply, OPTIONS) == letter


def test_strict_without_options_knows_a_to_e():
    assert parse_strict("E") == "E"
    assert parse_strict("F") is None
    assert parse_strict("red car") is None


@given(st.text(), st.lists(st.text(), max_size=8))
def test_parsers_give_a_letter_or_none(reply, options):
    for name, parse in scoring.PARSERS.items():
        letter = parse(reply, options)
        most = len(options) or 5 if name == "strict" else 5
        assert letter is None or letter in "ABCDEFGH"[:most]


def test_micro_and_macro():
    marks = [Mark("color", True), Mark("color", True), Mark("color", False), Mark("speed", False)]
    assert scoring.accuracies(marks) == {
        "questions": 4,
        "accuracy": 0.5,
        "macro_accuracy": pytest.approx(1 / 3),
        "by_type": {"color": pytest.approx(2 / 3), "speed": 0.0},
        "questions_by_type": {"color": 3, "speed": 1},
    }
    assert scoring.accuracies([])["accuracy"] is None
