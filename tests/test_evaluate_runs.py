"""The command as a process of its own: killed and continued, and over a training run's own held-out questions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
from support import question_files, small
from support.question_files import command, open_lists, read, run
from support.recipes import ROOT, environment, train

from vlvm_jax.evaluation import question_lists, results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return question_files.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    return question_files.clips(tmp_path_factory.mktemp("clips"))


def test_a_killed_command_continues_and_asks_nothing_twice(checkpoint, media, tmp_path):
    questions = open_lists(tmp_path)
    whole = run(tmp_path, checkpoint, questions, media, tmp_path / "whole", "--max_new_tokens=6")
    assert whole.returncode == 0, whole.stderr
    expected = json.loads((tmp_path / "whole" / "results.json").read_text())
    arguments = (checkpoint, questions, media, tmp_path / "out", "--batch_size=1", "--max_new_tokens=6")
    predictions = tmp_path / "out" / "predictions.jsonl"
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 300
    while not predictions.exists() or predictions.read_bytes().count(b'"finish"') < 2:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1].decode()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = predictions.read_bytes()
    predictions.write_bytes(before[: before.rstrip(b"\n").rfind(b"\n") + 20])  # a line that was cut
    kept = {line["id"] for line in map(json.loads, before.splitlines()[:-1])}
    assert kept
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert predictions.read_bytes().startswith(before[: before.rstrip(b"\n").rfind(b"\n") + 1])
    ids = [line["id"] for line in read(predictions)]
    assert sorted(ids) == sorted(set(ids)) and len(ids) == 12
    assert "answers are there already" in done.stdout
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {key: found[key] for key in ("accuracy", "by_rule", "unanswered")} == {
        key: expected[key] for key in ("accuracy", "by_rule", "unanswered")
    }
    same = {line["id"]: line["pred"] for line in read(tmp_path / "whole" / "predictions.jsonl")}
    assert {line["id"]: line["pred"] for line in read(predictions)} == same


def test_a_runs_own_held_out_questions(tmp_path, data_root):
    """Decoded answers are right where training's own evaluation, which decodes nothing, says that they are."""
    workdir = tmp_path / "run"
    done = train(workdir, data_root, arg="tiny,scale=0.02")
    assert done.returncode == 0, done.stderr
    folder = small.data(data_root)
    said = json.loads((workdir / "summary.json").read_text())["eval"]
    name, expected = next((name, found) for name, found in said.items() if "blank_video" in found["controls"])
    done = subprocess.run(
        [
            sys.executable, "-m", "vlvm_jax.evaluate", f"--checkpoint={workdir}", f"--output={tmp_path}/out",
            f"--questions={folder}/heldout_clips.json", f"--media={folder}", "--match=exact", "--control=blank_video",
            "--max_new_tokens=8", "--batch_size=32",
        ],
        cwd=ROOT, env=environment(data_root), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["questions"] == expected["questions"], name
    assert found["by_type"] == pytest.approx(expected["by_type"])
    assert 0 < found["accuracy"] < 1
    # A model that sees nothing may say the answer and then not end, which only training's evaluation counts as wrong.
    blank = {line["id"]: line for line in read(tmp_path / "out" / "predictions_blank_video.jsonl")}
    ended = {name: line if line["finish"] == "stop" else {**line, "pred": ""} for name, line in blank.items()}
    questions = question_lists.read(f"{folder}/heldout_clips.json", str(folder)).questions
    by_type = results.accuracy(questions, ended, results.Rules(match="exact"))["by_type"]
    assert by_type == pytest.approx(expected["controls"]["blank_video"]["by_type"])
