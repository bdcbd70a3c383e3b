"""Every annotation format is one file, found by its place; of several formats that a record fits, one is decided."""

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
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data import record
from vlvm_jax.data.sources import formats, mixture
from vlvm_jax.errors import InputError

FORMATS = formats.FORMATS


def example(name: str) -> dict:
    """The record in a format's docstring."""
    text = inspect.getdoc(importlib.import_module(f"{formats.__name__}.{name}")) or ""
    return json.loads(text.partition("Example:\n")[2])


ITEMS = [item for name in FORMATS for item in example(name).items()]


@pytest.mark.parametrize("name", FORMATS)
def test_a_formats_example_matches_it_alone(name):
    raw = example(name)
    assert [other for other, format in FORMATS.items() if format.matches(raw)] == [name]
    assert formats.detect(raw, "f") == name
    found = record.parse(
        formats.to_llava(raw, name, "f", lambda clip: f"{clip}.mp4"), "f", 0, lambda _, path: str(path)
    )
    assert found.kind == "video" and all(turn.question and turn.answer for turn in found.turns)


@settings(max_examples=300, deadline=None)
@given(items=st.lists(st.sampled_from(ITEMS), unique_by=lambda item: item[0], max_size=12))
def test_a_record_with_keys_of_several_formats_has_one(items):
    raw = dict(items)
    fitting = {format.precedence: name for name, format in FORMATS.items() if format.matches(raw)}
    assert len(fitting) == sum(format.matches(raw) for format in FORMATS.values())
    if fitting:
        assert formats.detect(raw, "f") == fitting[min(fitting)]
    else:
        with pytest.raises(InputError, match="its keys are"):
            formats.detect(raw, "f")


def test_no_two_formats_have_one_precedence():
    assert len({format.precedence for format in FORMATS.values()}) == len(FORMATS)


def test_a_new_file_is_a_new_format(tmp_path, monkeypatch):
    (tmp_path / "said_and_done.py").write_text(
        "from vlvm_jax.data.sources.formats._format import Format, exchanges\n"
        "FORMAT = Format(keys=('said', 'done'), precedence=10_000, parse=exchanges(('said',), 'done'))\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    known = formats._discover()
    assert [*known][-1] == "said_and_done"
    monkeypatch.setattr(formats, "FORMATS", known)
    (tmp_path / "notes.json").write_text(json.dumps([{"said": "Jump?", "done": "Yes."}]))
    for name in ("auto", "said_and_done"):
        (found,) = mixture.open_source(MixtureEntry(path=str(tmp_path / "notes.json"), format=name))
        assert found.turns == (record.Turn("Jump?", "Yes."),)
    with pytest.raises(
        InputError, match=r"notes\.json: format: no format 'tape'; there are auto, llava, .*text_pages$"
    ):
        mixture.open_source(MixtureEntry(path=str(tmp_path / "notes.json"), format="tape"))


def test_no_format_is_listed_elsewhere_but_in_the_docs():
    other_meanings = {"llava", "messages", "qa", "video_chatgpt"}  # a family, keys of other files, a frame rule
    names = FORMATS.keys() - other_meanings
    for file in Path(vlvm_jax.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.Constant) and node.value in names), (file, node.value)
    docs = (ROOT / "docs" / "your_data.md").read_text()
    assert not [name for name in FORMATS if f"`{name}`" not in docs]
