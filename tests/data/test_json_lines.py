"""The one reader of JSON lists and JSON Lines."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data import json_lines
from vlvm_jax.errors import InputError

RECORDS = [{"a": "Ünï"}, {"a": [1, {"b": None}]}]
LIST = json.dumps(RECORDS, ensure_ascii=False, indent=1)
LINES = "\n".join(json.dumps(one, ensure_ascii=False) for one in RECORDS) + "\n"


def values(data, path):
    return [entry.value for entry in json_lines.parse(data if isinstance(data, bytes) else data.encode(), path)]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("text", [LIST, LINES])
@pytest.mark.parametrize("ending", [".json", ".JSON", ".jsonl", ".JSONL", ""])
def test_either_layout_under_either_ending(mark, text, ending):
    data = (mark + text).encode()
    entries = list(json_lines.parse(data, f"n{ending}"))
    assert [entry.value for entry in entries] == RECORDS
    assert [entry.where for entry in entries] == [f"n{ending}: record 0", f"n{ending}: record 1"]
    for entry in entries:
        assert json.loads(entry.text) == json.loads(data[slice(*entry.span)]) == entry.value
    assert [entry.line for entry in entries] == ([0, 0] if text == LIST else [1, 2])


def test_lines_that_are_not_json_are_errors_of_their_own():
    deep = "[" * 100_000
    entries = list(json_lines.parse(f'{{"a": 1}}\n\n{{oops\n{deep}\n{"9" * 5000}\n[]\n'.encode(), "n.jsonl"))
    assert [(entry.index, entry.line, bool(entry.error)) for entry in entries] == [
        (0, 1, False), (1, 3, True), (2, 4, True), (3, 5, True), (4, 6, False),
    ]  # fmt: skip
    assert not any("\n" in entry.error for entry in entries)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a": 1},\n{"a": "na\xefve"}]', "n.json: line 2, byte 10: 0xef is not UTF-8; convert the file"),
        (b'\xef\xbb\xbf[{"a": "\xff"}]', "n.json: line 1, byte 12: 0xff is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "n.json: UTF-16, expected UTF-8; convert it"),
    ],
)
def test_other_encodings_are_refused_where_they_begin(data, message):
    with pytest.raises(InputError, match=message) as caught:
        list(json_lines.parse(data, "n.json"))
    assert "\n" not in str(caught.value)


def test_a_line_in_another_encoding_costs_itself():
    data = b'\xef\xbb\xbf{"a": "\xff"}\n{"a": 1}\n{"a": "na\xefve"}'
    entries = list(json_lines.parse(data, "n.jsonl"))
    assert [entry.value for entry in entries] == [None, {"a": 1}, None]
    assert entries[0].error.startswith("line 1, byte 11: 0xff is not UTF-8") and not entries[1].error
    assert entries[2].error.startswith("line 3, byte 10: 0xef is not UTF-8; convert the file")
    assert [data[slice(*entry.span)].decode(errors="replace") for entry in entries] == [entry.text for entry in entries]


@pytest.mark.parametrize("text", ['{"a": 1}', "3", '{"a": 1} {"a": 2}', '{"a": 1}\n3', "[" * 100_000, "[1,]", ""])
def test_what_is_neither_is_refused(text):
    with pytest.raises(
        InputError, match=r"^n\.json: (not JSON|is empty, so not JSON|expected a JSON list of records, found )"
    ) as caught:
        values(text, "n.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ('[{"a": 1},\n {"a": 2},\n]', "remove the comma before ']' in line 2"),
        ('[{"a": 1},\n {"a": [1, 2, ]}]', "remove the comma before ']' in line 2"),
        ('[{"a": 1,\n}]', "remove the comma before '}' in line 1"),
        ('{"a": 1}\nand', "one object per line needs the ending .jsonl"),
        ('{"videos": [{"a": 1}]}', "found dict; its key 'videos' holds a list"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_in_words(text, said):
    with pytest.raises(InputError) as caught:
        values(text, "n.json")
    assert said in str(caught.value)
    assert ("needs the ending" in said) == ("needs the ending" in str(caught.value))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file; give a JSON list or JSONL"):
        json_lines.read(f"{tmp_path}/n.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(records=st.lists(st.dictionaries(st.text("ab\u2028\x85é", max_size=3), VALUES, max_size=3), min_size=2,
                        max_size=4), ascii_only=st.booleans())  # fmt: skip
def test_any_records_come_back_with_their_bytes(records, ascii_only):
    lines = "\r\n".join(json.dumps(one, ensure_ascii=ascii_only) for one in records)
    for data in (json.dumps(records, ensure_ascii=ascii_only, indent=2).encode(), lines.encode()):
        entries = list(json_lines.parse(data, "n.jsonl"))
        assert [entry.value for entry in entries] == records
        assert [json.loads(data[slice(*entry.span)]) for entry in entries] == records
