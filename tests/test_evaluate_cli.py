"""Bad input to the command ends in one line that says what is wrong, exit code 2, no traceback."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
from support import question_files
from support.question_files import open_lists, run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return question_files.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    return question_files.clips(tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": ""}, "--checkpoint is required"),
        ({"media": "/nowhere"}, "--media=/nowhere: no such folder"),
        ({"questions": "/nowhere.json"}, "--questions=/nowhere.json: no such file"),
        ({"extra": "--match=judge"}, "match"),
        ({"extra": "--control=blank"}, "control"),
        ({"extra": "--top_p=0.5"}, "top_p"),
        ({"checkpoint": "/nowhere"}, "--checkpoint"),
    ],
)
def test_bad_input_ends_in_one_line(checkpoint, media, tmp_path, changes, message):
    values = {"checkpoint": checkpoint, "questions": open_lists(tmp_path), "media": media, "output": tmp_path / "out"}
    extra = [changes["extra"]] if "extra" in changes else []
    values |= {key: value for key, value in changes.items() if key != "extra"}
    done = run(tmp_path, *values.values(), *extra)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0
