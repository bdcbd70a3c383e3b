"""Lines of JSON that are appended to a file which a crash may have left with half a line."""

import json

import hypothesis
from hypothesis import strategies as st

from vlvm_jax import jsonl

ENTRIES = st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6), max_size=3), max_size=5)


@hypothesis.given(ENTRIES, st.integers(0, 10**6), ENTRIES)
@hypothesis.settings(max_examples=60, deadline=None)
def test_an_append_after_a_crash_leaves_whole_lines(tmp_path_factory, before, cut, after):
    path = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    whole = "".join(f"{json.dumps(entry)}\n" for entry in before).encode()
    data = whole[: cut % (len(whole) + 1)]
    path.write_bytes(data)
    jsonl.append(path, *after)
    lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    found = [json.loads(line) for line in lines]  # none is empty, none is glued to another
    assert found == [*before[: data.count(b"\n")], *after] == jsonl.read(path)


def test_a_new_file_begins_with_its_first_line(tmp_path):
    jsonl.append(tmp_path / "new.jsonl", {"event": "start"})
    assert (tmp_path / "new.jsonl").read_text() == '{"event": "start"}\n'
    assert jsonl.read(tmp_path / "none.jsonl") == []


def test_lines_that_earlier_versions_left_are_passed_over(tmp_path):
    path = tmp_path / "timeline.jsonl"
    path.write_text('\n{"event": "start"}\n{"eve\n{"event": "end"}\n')
    assert jsonl.read(path) == [{"event": "start"}, {"event": "end"}]
