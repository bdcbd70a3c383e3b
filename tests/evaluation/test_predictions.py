"""A file of predictions that is cut, spoilt or continued."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.recipes import ROOT

from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.predictions import Predictions


def test_a_file_continues_and_never_holds_an_answer_twice(tmp_path):
    path = tmp_path / "out" / "predictions.jsonl"
    with Predictions(path) as found:
        found.add({"id": "1", "pred": "zwei\nZeilen ü\u2028"})
        found.add({"id": "2", "pred": None, "cause": "missing"})
        assert found.answered("1") and not found.answered("2") and not found.answered("3")
    with Predictions(path) as found:
        assert found.answered("1")
        found.add({"id": "2", "pred": None, "cause": "missing"})  # nothing new
        found.add({"id": "3", "pred": ""})
        assert found.answered("3")
    assert lines_of(path) == ["1", "2", "3"]
    with Predictions(path) as found:
        found.add({"id": "2", "pred": "now"})
    with Predictions(path) as found:
        assert found.by_id["2"] == {"id": "2", "pred": "now"}
        assert found.by_id["1"]["pred"] == "zwei\nZeilen ü\u2028"


def lines_of(path):
    return [json.loads(line)["id"] for line in path.read_bytes().split(b"\n") if line]


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_cut_last_line_is_dropped(tmp_path, cut):
    path = tmp_path / "predictions.jsonl"
    with Predictions(path) as found:
        found.add({"id": "1", "pred": "x"})
        found.add({"id": "2", "pred": "y"})
    path.write_bytes(path.read_bytes()[:-cut])
    with Predictions(path) as found:
        assert list(found.by_id) == ["1"]
        found.add({"id": "2", "pred": "z"})
    assert lines_of(path) == ["1", "2"]


@pytest.mark.parametrize("line", ["{", "3", '{"id": "1"}', '{"pred": "x"}', '{"id": [], "pred": ""}'])
def test_a_spoilt_line_is_named(tmp_path, line):
    path = tmp_path / "predictions.jsonl"
    path.write_text(f'{{"id": "0", "pred": "x"}}\n{line}\n')
    with pytest.raises(InputError, match=r"predictions.jsonl: line 2 is no prediction; remove"):
        Predictions(path)


def test_what_was_added_is_there_after_a_kill(tmp_path):
    path = tmp_path / "predictions.jsonl"
    code = (
        "import os, sys, signal; from pathlib import Path; from vlvm_jax.evaluation.predictions import Predictions\n"
        "found = Predictions(Path(sys.argv[1]))\n"
        "[found.add({'id': str(i), 'pred': 'x' * 100}) for i in range(50)]\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    with Predictions(path) as found:
        assert len(found.by_id) == 50
