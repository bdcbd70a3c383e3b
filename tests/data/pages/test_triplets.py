"""The layouts of long texts with a question, and where their records are in a file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.data.pages import triplets
from vlvm_jax.data.pages.text_layouts import LAYOUTS, NotUsed
from vlvm_jax.data.pages.triplets import DOCUMENT_REQUEST, TripletOptions
from vlvm_jax.errors import InputError

BOOK = "It was the best of times,\nit was the worst of times. " * 3
FOUND = "Document [1](Title: Ships) A ship sails. Document [24](Title: Mail) A letter is sent."
SAID = "Answer: a letter\nLong Answer: A letter is sent .\nGold Document ID: 24"
NQ = {"prompt": f"Use these documents.\n\n{FOUND}\n\nQuestion: what is sent by MAIL\n", "completion": SAID}


def triplet(raw, layout=None, **options):
    given = TripletOptions(**options)
    layout = triplets.detect(raw, "f") if layout is None else layout
    found = triplets.to_triplet(raw, layout, given, "f", 7)
    return layout, found.context, found.question, found.answer


def test_triplets_are_as_they_are():
    raw = {"id": "a", "context": " x\n y ", "question": "Q: why ?", "answer": " so "}
    assert triplet(raw) == ("triplets", " x\n y ", "Q: why ?", " so ")
    assert triplets.to_triplet(raw, "triplets", TripletOptions(), "f", 7).id == "a"
    assert triplets.to_triplet(raw | {"id": 3}, "triplets", TripletOptions(), "f", 7).id == "3"


@pytest.mark.parametrize(
    ("instruction", "context", "question"),
    [
        (f"Below is a paper. Memorize it.\n The paper begins. \n {BOOK} \n Now the paper ends. \nQuestion: Why? \n",
         BOOK.strip(), "Why?"),
        (f"Below is a paper.\n{BOOK}\n Now the material ends. What now?", BOOK.strip(), "What now?"),
        (f"Two papers.\n The first paper begins. \n {BOOK} Now the first paper ends. \n The second paper begins. "
         f"\n {BOOK} Now the second paper ends. Compare.",
         f"{BOOK} Now the first paper ends. \n The second paper begins. \n {BOOK}".strip(), "Compare."),
        (f"Some paragraphs in the book, Hard Times. Memorize them.\n{BOOK} \n Now the material ends.Who?",
         BOOK.strip(), "Who?"),
        (f"A paper, a guideline.\n The paper begins. {BOOK} Now the review guideline ends.\nReview it.\nBe brief.",
         BOOK.strip(), "Review it.\nBe brief."),
    ],
    ids=["paper", "material", "two", "book", "guideline"],
)  # fmt: skip
def test_long_alpaca(instruction, context, question):
    raw = {"instruction": instruction, "input": "", "output": "Answer: So it is.", "file": "x"}
    assert triplet(raw) == ("long_alpaca", context, question, "So it is.")


def test_long_alpacas_short_ones_are_left_out():
    with pytest.raises(NotUsed, match="short"):
        triplet({"instruction": "Name three colours.", "input": "", "output": "Red, green, blue."})
    with pytest.raises(NotUsed, match="empty"):
        triplet({"instruction": f"Below.\n{BOOK} Now the paper ends. \n", "output": "x"})


def test_natural_questions_as_released():
    raw = json.loads(json.dumps(NQ))
    assert triplet(raw, min_words=0) == (
        "natural_questions",
        f"Use these documents.\n\n{FOUND}",
        f"What is sent by mail?\n{DOCUMENT_REQUEST}",
        "a letter\nDocument ID: 24",
    )
    _, _, question, answer = triplet(raw, min_words=0, rewrite_long_answer=False)
    assert (question, answer) == ("What is sent by mail?", SAID)
    raw["prompt"] = raw["prompt"].replace("MAIL\n", "mail?\nAnswer:")
    assert triplet(raw, min_words=0)[2].startswith("What is sent by mail?\n")
    raw["prompt"] = raw["prompt"].replace("A ship", "Question: who sails? A ship")
    assert triplet(raw, min_words=0)[1] == f"Use these documents.\n\n{FOUND}".replace(
        "A ship", "Question: who sails? A ship"
    )
    text = {"text": f"{NQ['prompt']}{SAID}"}
    assert triplet(text, min_words=0) == triplet(NQ, min_words=0)
    with pytest.raises(NotUsed, match="answer"):
        triplet({**NQ, "completion": SAID.replace("Answer: a letter\n", "")}, "natural_questions", min_words=0)


def test_short_contexts_of_natural_questions_and_booksum_are_left_out():
    words = lambda count: " ".join(["word"] * count)  # noqa: E731
    for layout, raw in (
        ("booksum", lambda text: {"prompt": f"{text}\n\nQ: Summarise it?\nA:", "completion": " A sum. "}),
        ("natural_questions", lambda text: {**NQ, "prompt": f"{text}\n\nQuestion: who"}),
    ):
        found = triplet(raw(words(3000)))
        assert found[0] == layout and len(found[1].split(" ")) == 3000
        with pytest.raises(NotUsed, match="short"):
            triplet(raw(words(2999)))
        assert len(triplet(raw(words(10)), min_words=10)[1].split()) == 10


def test_booksum():
    raw = {"prompt": f"{BOOK}\n\nQ: Can you sum it up?\nA:", "completion": " A sum. "}
    expected = ("booksum", BOOK.strip(), "Can you sum it up?", "A sum.")
    assert triplet(raw, min_words=0) == expected
    assert triplet({"text": f"{raw['prompt']} A sum."}, min_words=0) == expected


def test_long_qlora_mixes_them():
    papers = {
        "input": f"Below is a paper.\n The paper begins. {BOOK} Now the paper ends. Question: Why?",
        "output": "So.",
    }
    assert triplet(papers) == ("long_qlora", BOOK.strip(), "Why?", "So.")
    asked = {"input": NQ["prompt"], "output": SAID}
    assert triplet(asked)[2:] == (f"what is sent by MAIL\n{DOCUMENT_REQUEST}", "a letter\nDocument ID: 24")
    assert triplet(asked, rewrite_long_answer=False)[2:] == ("what is sent by MAIL", SAID)
    assert triplet({"input": f"{BOOK}\n\nQ: Sum?\nA:", "output": "A sum."}) == (
        "long_qlora",
        BOOK.strip(),
        "Sum?",
        "A sum.",
    )
    with pytest.raises(NotUsed, match="short"):
        triplet({"input": "Name three colours.", "output": "Red."})


def test_records_in_no_layout():
    with pytest.raises(InputError, match=r"^f: expected 'context', 'question' and 'answer', or .* \['body'\]$"):
        triplets.detect({"body": 1}, "f")
    with pytest.raises(InputError, match="f: expected an object, found list"):
        triplets.detect([], "f")
    with pytest.raises(InputError, match="f: 'answer' must be a text, found 3"):
        triplet({"context": "a", "question": "b", "answer": 3})
    with pytest.raises(InputError, match="f: 'output' must be a text, found None"):
        triplet({"instruction": "a"}, "long_alpaca")


RECORDS = [
    {"context": f"naïve: 日本 {number}", "question": f"q{number}?", "answer": "a"} for number in range(3)
]  # fmt: skip


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "indented.json", "escaped.jsonl"])
def test_records_are_found_by_their_bytes(tmp_path, name):
    records = [RECORDS[0], {**RECORDS[1], "context": " "}, *RECORDS[1:]]
    lines = [json.dumps(record, ensure_ascii=name.startswith("escaped")) for record in records]
    text = "\n\n".join(lines) + "\n"
    if name.endswith(".json"):
        text = json.dumps(records, ensure_ascii=False, indent=2 if "indented" in name else None)
    (tmp_path / name).write_text(text)
    found = triplets.read_triplets(str(tmp_path / name), TripletOptions())
    assert (len(found), found.layout, found.dropped) == (3, "triplets", {"empty": 1})
    assert [found.triplet(index).context for index in range(3)] == [record["context"] for record in RECORDS]
    assert [found.triplet(index).id for index in range(3)] == ["0", "2", "3"]
    assert found.where(1) == f"{tmp_path}/{name}: record 2"


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("{oops", "record 0: not JSON"),
        ('{"body": 1}', "record 0: expected 'context'"),
        ("3", "record 0: "),
        ('{"instruction": 1, "output": 2}', "record 0: 'instruction' must be a text"),  # of another layout
    ],
)
@pytest.mark.parametrize("layout", ["auto", "triplets"])
def test_a_bad_first_record_is_one_bad_record(tmp_path, first, said, layout):
    file = tmp_path / "t.jsonl"
    options = TripletOptions(layout=layout)
    file.write_text(f"{first}\n{json.dumps(RECORDS[0])}\n{json.dumps(RECORDS[1])}\n")
    found = triplets.read_triplets(str(file), options)
    assert (len(found), found.layout, list(found.faults)) == (3, "triplets", [0])
    assert found.triplet(2).context == RECORDS[1]["context"]
    with pytest.raises(InputError, match=said if layout == "auto" else "record 0: "):
        found.triplet(0)
    file.write_text(f"{first}\n{first}\n")
    with pytest.raises(InputError, match="record 0: "):
        triplets.read_triplets(str(file), options)


def test_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(RECORDS[0]) + "\n{oops\n" + json.dumps({"context": "x"}) + "\n")
    found = triplets.read_triplets(str(file), TripletOptions())
    assert len(found) == 3  # to be counted where they are asked for
    for index, said in ((1, "record 1: not JSON"), (2, "record 2: 'question' must be a text, found None")):
        with pytest.raises(InputError, match=said):
            found.triplet(index)
    file.write_text(file.read_text()[5:])
    with pytest.raises(InputError, match="record 0: the file has changed since it was opened"):
        found.triplet(0)
    for text, said in (
        ("{oops", "t.json: not JSON"),
        ("[{]", "t.json: not JSON"),
        ("[]", "no long text with a question in it (it is empty)"),
        ('[{"instruction": "hi", "output": "ho"}]', "no long text with a question in it (1 short)"),
        ('[{"body": 1}]', "record 0: expected 'context'"),
    ):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(InputError) as caught:
            triplets.read_triplets(str(tmp_path / "t.json"), TripletOptions())
        assert said in str(caught.value)
    with pytest.raises(InputError, match="no such file of texts"):
        triplets.read_triplets(str(tmp_path / "gone.json"), TripletOptions())


@given(keys=st.sets(st.sampled_from(["text", *(key for layout in LAYOUTS.values() for key in layout.keys)])))
def test_a_record_has_the_first_layout_that_it_matches(keys):
    for said in ("x", SAID):
        raw = dict.fromkeys(keys, said)
        fitting = [name for name, layout in LAYOUTS.items() if layout.matches(raw)]
        if fitting:
            assert triplets.detect(raw, "f") == fitting[0]
        else:
            with pytest.raises(InputError, match="its keys are"):
                triplets.detect(raw, "f")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_keys_of_a_layout_match_it_alone(name):
    raw = dict.fromkeys(LAYOUTS[name].keys, SAID if name == "natural_questions" else "x")
    assert triplets.detect(raw, "f") == name
    fitting = {one for one, layout in LAYOUTS.items() if layout.matches(raw)}
    assert fitting == ({name, "booksum"} if name == "natural_questions" else {name})
