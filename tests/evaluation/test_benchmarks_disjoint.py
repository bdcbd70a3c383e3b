"""Every format of question lists is one file, found by its place; of several that a list fits, one is decided."""

import ast
import importlib
import inspect
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recipes import ROOT

import vlvm_jax
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import benchmarks, question_lists

FORMATS = benchmarks.formats()
ANSWER = {"question_id": "1", "answer": "a dog"}


def example(name: str) -> str:
    """The record, or table, in a format's docstring."""
    text = inspect.getdoc(importlib.import_module(f"{benchmarks.__name__}.{name}")) or ""
    return inspect.cleandoc(text.partition("Example:\n")[2].partition("\n\n")[0])


OF_RECORDS = [name for name, format in FORMATS.items() if not format.ending]
ITEMS = [item for name in OF_RECORDS for item in json.loads(example(name)).items()]
VALUES = st.sampled_from(ITEMS) | st.sampled_from([("answer", "A"), ("answer", None), ("query", "q"), ("a0", "x")])


@pytest.mark.parametrize("name", FORMATS)
def test_a_list_of_a_formats_example_has_this_format(tmp_path, name):
    file = tmp_path / f"list_q{FORMATS[name].ending or '.json'}"
    file.write_text(example(name) if FORMATS[name].ending else f"[{example(name)}]")
    (tmp_path / "list_a.json").write_text(json.dumps([ANSWER]))
    found = question_lists.read(str(file), str(tmp_path))
    assert found.format == name
    assert all(question.text and question.answer.lower().startswith("a dog") for question in found.questions)
    if not FORMATS[name].ending:
        others = {one for one, format in FORMATS.items() if format.matches(json.loads(example(name)))} - {name}
        assert others <= {"llava"}  # which takes what training reads, `qa` among it, and yields to all


@settings(max_examples=300, deadline=None)
@given(items=st.lists(VALUES, unique_by=lambda item: item[0], max_size=12))
def test_a_record_with_keys_of_several_formats_has_one(items):
    raw = dict(items)
    fitting = {format.precedence: name for name, format in FORMATS.items() if format.matches(raw)}
    assert len(fitting) == sum(format.matches(raw) for format in FORMATS.values())
    if fitting:
        assert question_lists.detect(raw, "f") == fitting[min(fitting)]
    else:
        with pytest.raises(InputError, match="its keys are"):
            question_lists.detect(raw, "f")


def test_no_two_formats_have_one_precedence_or_ending():
    assert len({format.precedence for format in FORMATS.values()}) == len(FORMATS)
    endings = [format.ending for format in FORMATS.values() if format.ending]
    assert len(set(endings)) == len(endings)


def test_a_new_file_is_a_new_format(tmp_path, monkeypatch):
    (tmp_path / "riddles.py").write_text(
        "from vlvm_jax.evaluation.benchmarks._format import ListFormat, about_clip, text_of\n"
        "def read(file):\n"
        "    for index, raw, where in file.records():\n"
        "        yield about_clip(raw | {'question_id': index}, where, file.clips, 'clip',\n"
        "                         text=text_of(raw, 'riddle', where), answer=raw['solution']), None\n"
        "FORMAT = ListFormat(precedence=55, read=read, matches=lambda raw: 'riddle' in raw)\n"
    )
    (tmp_path / "list.json").write_text(json.dumps([{"clip": "a.mp4", "riddle": "What jumps?", "solution": "a dog"}]))
    path = str(tmp_path / "list.json")
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    benchmarks.formats.cache_clear()
    try:
        assert "riddles" in benchmarks.names()
        found = question_lists.read(path, str(tmp_path))
        assert (found.format, found.questions[0].text, found.questions[0].answer) == ("riddles", "What jumps?", "a dog")
        with pytest.raises(InputError, match=r"--format=songs: there are auto, csv, .*riddles"):
            question_lists.read(path, str(tmp_path), name="songs")
    finally:
        benchmarks.formats.cache_clear()


def test_no_format_is_listed_elsewhere_but_in_the_docs():
    names = FORMATS.keys() - {"llava", "csv", "plain"}  # a family, a module, a word
    for file in Path(vlvm_jax.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.Constant) and node.value in names), (file, node.value)
    docs = (ROOT / "docs" / "evaluate.md").read_text()
    assert not [name for name in FORMATS if f"\n| `{name}` | " not in docs]
