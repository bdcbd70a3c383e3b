"""The parser `strict`: examples, and that all letters are read alike."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlvm_jax.evaluation.answer_letters import parse_strict
from vlvm_jax.evaluation.yes_no import read_yes_no

OPTIONS = ("red car", "a man walks", "blue", "a dog")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        # The whole reply.
        ("c", "C"),
        ("\uff23", "C"),
        ("\uff08\uff23\uff09", "C"),
        ("「C」", "C"),
        ("**C**", "C"),
        ("`C`", "C"),
        ('"C"', "C"),
        ("A man walks", "B"),
        ("The dog.", "D"),
        ("dog", "D"),
        ("A man runs", None),  # no option's text
        ("A red car", "A"),
        ("A blue", None),  # A, or "blue" with an article
        ("E", None),
        # Tags and boxes, before all else.
        ("<answer>B</answer>", "B"),
        ("<answer> (B) a man walks </answer>", "B"),
        ("I see a man. <answer>B", "B"),
        ("B</answer>", "B"),
        ("It is \\boxed{B}.", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("<|begin_of_box|>B<|end_of_box|>", "B"),
        ("<answer>A</answer> The final answer is B.", "A"),
        ("<answer>A</answer> or <answer>B</answer>", None),
        ("<answer>a bird</answer> B", None),
        # Reasoning.
        ("<think>(A)? The answer is A.</think>\n\nB", "B"),
        ("The answer is A.</think>The answer is (C).", "C"),
        ("◁think▷A◁/think▷B", "B"),
        ("<think>The answer is A", None),
        # Final-answer phrases before other answer phrases, these before letters at the beginning.
        ("The answer is A. No: the final answer is B.", "B"),
        ("Final Answer: $B$", "B"),
        ("The correct answer is A because it is red.", "A"),
        ("(A) is wrong. The answer is (B).", "B"),
        ("A. The answer is B.", "B"),
        ("The answer is A. The answer is B.", None),
        ("Answer: (C) text", "C"),
        ("### Answer: **C**", "C"),
        ("The best answer to this question would be: option C.", "C"),
        ("The answer is option C", "C"),
        ("The answer is red car.", "A"),
        ("The answer is the red car because it is red.", "A"),
        ("I would choose C.", "C"),
        ("C is correct", "C"),
        ("I think that option C is the best answer.", "C"),
        ("A man walks is the answer; B is right.", "B"),
        ("The answer is A or B", None),
        ("The answer is A man", None),
        ("The answer is B, not (A).", "B"),
        ("The answer is E. A", None),
        ("答案是B", "B"),
        ("答案\uff1a\uff22。因为他走了。", "B"),
        ("正确答案是选项B\uff0c因为他走了。", "B"),
        ("选B", "B"),
        ("A错误\uff0cB正确", "B"),
        # At the beginning.
        ("Option B", "B"),
        ("Option C.", "C"),
        ("Choice: C", "C"),
        ("C: text", "C"),
        ("C) text", "C"),
        ("[C] text", "C"),
        ("C\nHe walks.", "C"),
        ("B a man walks", "B"),
        ("B man walks", "B"),
        ("B - a man walks", "B"),
        ("B - a man runs", None),
        ("B a man runs", None),
        ("B red car", None),  # the text of another option
        ("B. red car", None),
        ("C because it is blue", "C"),
        ("C, because it is blue", "C"),
        ("C, not A", "C"),
        ("C, a colour", None),
        ("It's C", "C"),
        ("I'm sure it is (C).", "C"),
        ("He wears blue, so C.", "C"),
        ("So a man walks by", None),
        ("A or B", None),
        ("(A) or (B)", None),
        ("A) or B)", None),
        ("A, B and C", None),
        ("A: red car B: a man walks", None),
        ("B. He walks. (A) is wrong.", "B"),
        ("B. He walks. (A) fits too.", None),
        ("B. He walks. Option A shows a red car.", "B"),
        ("B) a man walks\n\nHe does not run, unlike in (A), so not A) red car.", "B"),
        ("B. a man walks. A man walks.", "B"),
        ("B. a man walks\nA. red car", None),
        ("Ans: B", "B"),
        # Denied or supposed.
        ("not B", None),
        ("Not (A)", None),
        ("It is not B.", None),
        ("A is wrong", None),
        ("(A) is wrong", None),
        ("(A) isn't it", None),
        ("Neither (A) nor (B)", None),
        ("I don't think the answer is B.", None),
        ("The wrong answer is B.", None),
        ("If the answer is B, he walks.", None),
        ("不选A\uff0c选B", "B"),
        ("B: no", None),
        ("(B) No.", None),
        ("B - no", None),
        ("B. a man walks: no", None),
        ("The answer is A: no", None),
        ("A: no, B: yes", "B"),
        ("A: yes, B: no", "A"),
        ("(A) no, (B) yes", "B"),
        ("A: no\nB: no\nC: yes", "C"),
        ("A: no, B: no, C: no, D: no", None),
        ("A: yes, B: yes", None),
        ("A: no. (B) a man walks: yes.", "B"),
        ("B\nNo, he does not run.", "B"),
        ("B. No man runs.", "B"),  # "no" that denies something else
        ("The answer is B, no doubt.", "B"),
        # Words, not letters.
        ("I'm not sure", None),
        ("T-shirt", None),
        ("C++", None),
        ("Vitamin C is the best", None),
    ],
)
def test_examples(reply, letter):
    assert parse_strict(reply, OPTIONS) == letter


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("B: no", ("yes", "no"), "B"),
        ("B: no", ("no", "yes"), None),  # the text of the other option
        ("A: yes", ("yes", "no"), "A"),
        ("A: yes", ("no", "yes"), None),
        ("(B) No.", ("Yes, he does.", "No, he does not."), "B"),
        ("A: No, B: Yes", ("no", "yes"), None),  # a list of the options
        ("A: no, B: yes", ("yes", "no"), None),
        ("A: no", ("no cars", "cars"), "A"),
        ("B: no", ("no cars", "cars"), None),
    ],
)
def test_yes_and_no_that_are_options(reply, options, letter):
    assert parse_strict(reply, options) == letter


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        # "right" and "true" after a letter are a verdict, unless they are another option's whole text.
        ("A is right", ("Left", "Right"), None),
        ("Option A is right.", ("Left", "Right"), None),
        ("B is right", ("Left", "Right"), "B"),
        ("B is right", ("Right", "Left"), None),
        ("A is right", ("Red", "Blue"), "A"),
        ("A is the right answer", ("Left", "Right"), "A"),
        ("A is correct", ("Left", "Right"), "A"),
        ("A is true", ("False", "True"), None),
        # Initials of a name.
        ("The answer is D. C. Smith", ("Al", "Bo", "Cy", "Di"), None),
        ("D. C. Smith", ("Al", "Bo", "Cy", "Di"), None),
        ("The answer is D. C. Smith.", ("A. B. Jones", "D. C. Smith", "E. Mann", "R. Roe"), "B"),
        ("The answer is D. R. Roe", ("A. B. Jones", "D. C. Smith", "E. Mann", "R. Roe"), "D"),
        ("The answer is D. C. Smith", ("A. B. Jones", "D. C. Smith", "E. Mann", "C. Smith"), None),  # B's text and D's
        ("The answer is D. C is wrong.", ("Al", "Bo", "Cy", "Di"), "D"),
        ("The answer is D. A. Di", ("Al", "Bo", "Cy", "Di"), "D"),
        # A letter that is spelled, and a reason.
        ("A as in apple", ("red car", "blue"), None),
        ("The answer is A as in apple", ("red car", "blue"), None),
        ("A as in apple", ("apple", "pear"), "A"),
        ("B as in apple", ("apple", "pear"), None),
        ("B as in the video", ("apple", "pear"), "B"),
    ],
)
def test_texts_after_a_letter(reply, options, letter):
    assert parse_strict(reply, options) == letter


def test_symbols_and_other_scripts_are_texts_too():
    options = ("😀", "😂", "红色的车", "سيارة حمراء")
    for letter, text in zip("ABCD", options, strict=True):
        for reply in (text, f"{letter} {text}", f"{letter}: {text}", f"答案是{letter}", f"<answer>{text}</answer>"):
            assert parse_strict(reply, options) == letter, reply


TEXTS = (
    "red car",
    "right",
    "yes",
    "no",
    "walks to the left",
    "a dog",
    "3.5",
    "not moving",
    "because he fell",
    "红色",
    "😀",
    "an I beam",
)
LETTERS = "ABCDEFGHIJ"
WORDS = (
    "the answer is", "The final answer is", "Answer:", "option", "is wrong", "is correct", "is right", "not",
    "which I would exclude", "as in", "because", "and",
    "or", "it's", "so", "no", "yes", "he walks", "答案是", "<answer>", "</answer>", "\\boxed{", "}",
    "<think>", "</think>",
)  # fmt: skip
MARKS = ("", ".", ":", ")", ",", "!", ";", "\n", "**", "?")


@st.composite
def replies(draw):
    """A number of options, their order, and a reply of words, letters (numbers) and texts of options."""
    count = draw(st.integers(2, len(LETTERS)))
    texts = draw(st.permutations(TEXTS))[:count]
    order = draw(st.permutations(range(count)))
    numbers = st.integers(0, count - 1)
    letter = st.tuples(st.sampled_from(["{}", "({})", "**{}**", "{}.", "{}:", "{},", "{})", "{}\n"]), numbers)
    lower = st.tuples(st.sampled_from(["{}", "({})", "{}."]), numbers.map(lambda number: number + 100))
    text = st.tuples(st.just("{}"), numbers.map(lambda number: number + 200))
    word = st.tuples(st.sampled_from(WORDS).map(lambda word: word.replace("{", "{{").replace("}", "}}")), st.just(0))
    mark = st.tuples(st.sampled_from(MARKS), st.just(0))
    return texts, order, draw(st.lists(st.one_of(letter, lower, text, word, mark), min_size=1, max_size=7))


def written(pieces, texts, place):
    """The reply where option `number` has the letter of `place[number]`."""
    said = []
    for form, number in pieces:
        kind, number = divmod(number, 100)
        letter = LETTERS[place[number]]
        said.append(form.format({0: letter, 1: letter.lower(), 2: texts[number]}[kind]))
    return " ".join(said)


@settings(max_examples=300, deadline=None)
@given(replies())
@example((TEXTS[:2], (1, 0), [("{}", 0), ("{}", 201)]))
@example((["a dog", "yes"], (1, 0), [("{}", 200), ("is correct", 0)]))
@example((["right", "left"], (1, 0), [("{}", 1), ("is right", 0)]))
def test_exchanging_options_exchanges_the_result(case):
    texts, order, pieces = case
    before = written(pieces, texts, list(range(len(texts))))
    after = written(pieces, texts, order)
    moved = [""] * len(texts)
    for number, place in enumerate(order):
        moved[place] = texts[number]
    first, second = parse_strict(before, texts), parse_strict(after, moved)
    expected = None if first is None else LETTERS[order[LETTERS.index(first)]]
    assert second == expected, (before, after)


@pytest.mark.parametrize("form", ["{}", "({})", "Option {}", "The answer is {} because he fell over", "{}. {text}",
                                  "{} {text}", "It's {}", "{} is correct", "{}, not {other}"])  # fmt: skip
def test_every_letter_is_read(form):
    texts = tuple(f"text number {number}" for number in range(26))
    for letter, text in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", texts, strict=True):
        other = "B" if letter == "A" else "A"
        assert parse_strict(form.format(letter, text=text, other=other), texts) == letter


@pytest.mark.parametrize(
    "piece",
    ["A ", "A, ", "(", "(A) ", "the answer is ", "it is (A) or ", "\\boxed{", "<answer>", "not the answer is B ",
     "a man walks, ", "'", "B. He is (A). "],
)  # fmt: skip
def test_long_replies_are_read(piece):
    assert parse_strict(piece * (20_000 // len(piece)), OPTIONS) in (None, "A", "B")


@pytest.mark.parametrize(
    "piece",
    ["A, ", "(A) ", "答案是", "I'd go with A or ", "A. ", "A\n", "I choose ", "选", "A.B.", "A: yes. ",
     "<answer>A</answer>", "\\boxed{", "yes. Wait ", "no, "],
)  # fmt: skip
def test_the_time_is_bounded(piece):
    reply = piece * (100_000 // len(piece))
    for read in (lambda: parse_strict(reply, OPTIONS), lambda: read_yes_no(reply)):
        start = time.process_time()
        read()
        assert time.process_time() - start < 2


def test_a_long_reply_is_read_at_both_ends():
    filler = "He walks on. " * 1000
    assert parse_strict(f"The answer is B. {filler}", OPTIONS) == "B"
    assert parse_strict(f"{filler}The answer is B.", OPTIONS) == "B"
    assert parse_strict(f"The answer is A. {filler}The answer is B.", OPTIONS) is None
    assert parse_strict(f"{filler}The answer is B. {filler}", OPTIONS) is None
    assert parse_strict(f"A. {filler}<answer>B</answer>{filler}", OPTIONS) == "B"
    assert parse_strict("The answer is " + "A" * 10_000, OPTIONS) is None


# {0} is a letter and {1} another one: what is said of A and B is said of any two.
@pytest.mark.parametrize("letters", ["AB", "BA", "CD"])
@pytest.mark.parametrize(
    "form",
    [
        "The answer is {0}. Wait, no, it is {1}.",
        "{0}. No wait, {1}.",
        "{0}... actually {1}.",
        "{0}. Sorry, {1}.",
        "The answer is {0}, no, {1}.",
        "Some might say the answer is {0}, however it's {1}.",
        "One might think that {0} is correct, but it's {1}.",
        "{0} seems right at first, but he runs, so {1}.",
        "I think the answer is {0}, but it could be {1}.",
        "You might think that the answer is {0}.",
        "It would be wrong to say the answer is {0}.",
        "It is incorrect that {0} is correct.",
        "The least likely answer is {0}.",
        "The second best answer is {0}.",
        "The opposite of the answer is {0}.",
        "The answer is {0}, which is wrong.",
        "{0}. This is wrong.",
        "{0} is hardly correct",
        "The student says the answer is {0}. This is wrong.",
        "{0}) 10% {1}) 80%",
        "{0}. Ronaldo",
        "{0}. Lincoln is shown.",
        "The answer is {0}#",
        "It is {0} which I would exclude",
        "It is {0}, which I would rule out.",
        "The answer is {0} which I'd certainly reject",
        "{0} is the option I would eliminate",
        "{0} is the one that can be excluded",
        "{0}, which can be ruled out",
        "答案是{0}。不对\uff0c{1}。",
    ],
)
def test_what_is_taken_back_is_not_stated(form, letters):
    assert parse_strict(form.format(*letters), OPTIONS) is None


@pytest.mark.parametrize("letters", ["AB", "BA", "CD"])
@pytest.mark.parametrize(
    "form",
    [
        "{0}</s>",
        "{0}<|im_end|>",
        '{{"answer": "{0}"}}',
        "{{'choice': '{0}'}}",
        "Answer: <{0}>",
        "Assistant: {0}",
        "Probably {0}.",
        "{0}. Wait, what? No, it stays.",
        "{0}. However, ({1}) is wrong.",
        "The answer is {0}, but not {1}.",
        "I would say the answer is {0}.",
        "It is {0} which I would not exclude",
        "It is {0}, which excludes {1}.",
        "The answer is {1}. No, the final answer is {0}.",
    ],
)
def test_what_is_not_taken_back_is_stated(form, letters):
    assert parse_strict(form.format(*letters), OPTIONS) == letters[0]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("2", "B"), ("-2", "D"), ("2%", None), ("$2", None), ("The answer is -2", "D"), ("B. -2", None), ("D. -2", "D"),
     ("- 2", "B"), ("B. 2", "B")],
)  # fmt: skip
def test_signs_make_other_numbers(reply, letter):
    assert parse_strict(reply, ("1", "2", "3", "-2")) == letter
