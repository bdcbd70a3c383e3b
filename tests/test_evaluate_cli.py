"""The command over real clips and a tiny random checkpoint: what it writes, a kill, controls, bad input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipes import ROOT, environment

pytest.importorskip("torch")
from inference import tiny

from vlvm_jax.evaluation import benchmark, controls, question_lists
from vlvm_jax.evaluation.benchmark import Options
from vlvm_jax.inference import loading
from vlvm_jax.inference.requests import Decoding, Request
from vlvm_jax.training.interrupt import StopSignal

CLIPS = ("a", "v_b", "c")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("model"), "llava_next_video")


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Three clips that can be read, and one that cannot."""
    folder = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(CLIPS):
        tiny.clip(folder / f"{name}.mp4", seed=number)
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def write(path: Path, records: list) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def open_lists(folder: Path, count: int = 12) -> str:
    """Questions and answers in two lists of different orders."""
    clips = ("a", "b", "c", "cut", "gone")
    asked = [
        {"video_name": clips[i % 5], "question_id": f"q{i}", "question": f"how many in {'x' * i} ?"}
        for i in range(count)
    ]
    answered = [{"question_id": f"q{i}", "answer": "two", "type": i % 2} for i in reversed(range(count))]
    write(folder / "test_a.json", answered)
    return write(folder / "test_q.json", asked)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(checkpoint, questions, media, output, *extra) -> list[str]:
    return [
        sys.executable, "-m", "vlvm_jax.evaluate", f"--checkpoint={checkpoint}", f"--questions={questions}",
        f"--media={media}", f"--output={output}", "--frames=4", *extra,
    ]  # fmt: skip


def run(tmp_path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def options(checkpoint, media, tmp_path_factory) -> Options:
    folder = tmp_path_factory.mktemp("lists")
    return Options(
        str(checkpoint), open_lists(folder), str(media), str(folder / "out"), frames=4, batch_size=4,
        controls=("blank_video", "shuffled_frames", "shuffled_question"), decoding=Decoding(max_new_tokens=6),
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(options):
    return benchmark.run(options, None, StopSignal())


def test_answers_are_the_engines_own(options, results):
    model = loading.load(options.checkpoint, frames=4, rows=1)
    lines = {line["id"]: line for line in read(Path(options.output) / "predictions.jsonl")}
    asked = [
        q for q in question_lists.read(options.questions, options.media).questions if lines[q.id]["pred"] is not None
    ]
    assert len(asked) == 8
    for question in asked[:4]:
        (answer,) = model.answer([Request(question.id, question.media, question.text)], options.decoding)
        line = lines[question.id]
        assert line["pred"] == answer.text
        assert (line["prompt_tokens"], line["visual_tokens"]) == (answer.prompt_tokens, answer.visual_tokens)
    assert len({line["pred"] for line in lines.values()}) > 2  # or nothing above could fail


def test_bad_clips_are_wrong_and_listed(options, results):
    assert results["questions"] == 12
    assert results["unanswered"] == {"corrupt": 2, "missing": 2}
    assert [one["id"] for one in results["without_answer"]] == ["q3", "q4", "q8", "q9"]
    assert "cut.mp4" in results["without_answer"][0]["detail"]
    assert set(results["by_type"]) == {"0", "1"}
    for name in options.controls:
        assert results["controls"][name]["unanswered"] == {"corrupt": 2, "missing": 2}


def test_controls_change_what_is_seen_or_asked(options, results):
    model = loading.load(options.checkpoint, frames=4, rows=1)
    listed = question_lists.read(options.questions, options.media).questions
    first = Request("q0", listed[0].media, listed[0].text)
    (own,) = model.prompts.media(first)
    (blank,) = controls.controlled(model, "blank_video").prompts.media(first)
    (mixed,) = controls.controlled(model, "shuffled_frames").prompts.media(first)
    assert (blank.frames == 128).all() or len(set(blank.frames.reshape(-1).tolist())) == 1
    assert sorted(frame.tobytes() for frame in mixed.frames) == sorted(frame.tobytes() for frame in own.frames)
    assert (mixed.frames != own.frames).any()
    assert controls.controlled(model, "blank_video").engine is model.engine
    with pytest.raises(benchmark.InputError, match="shuffled_prompt: the question does not guide the adapter 'frames'"):
        controls.controlled(model, "shuffled_prompt")
    folder = Path(options.output)
    other = {line["id"]: line for line in read(folder / "predictions_shuffled_question.jsonl")}
    texts = {question.id: question.text for question in listed}
    one = other["q0"]
    (answer,) = model.answer([Request("q0", listed[0].media, texts[one["other"]])], options.decoding)
    assert one["pred"] == answer.text


def test_a_killed_command_continues_and_asks_nothing_twice(options, results, checkpoint, media, tmp_path):
    arguments = (checkpoint, options.questions, media, tmp_path / "out", "--batch_size=1", "--max_new_tokens=6")
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
        key: results[key] for key in ("accuracy", "by_rule", "unanswered")
    }
    same = {line["id"]: line["pred"] for line in read(Path(options.output) / "predictions.jsonl")}
    assert {line["id"]: line["pred"] for line in read(predictions)} == same


def test_multiple_choice_in_both_formats(checkpoint, media, tmp_path):
    prompt = "what ?\nA. a cat\nB. a dog\nReply with a letter."
    t2vid = [{"question_id": 1, "video": "a.mp4", "prompt": prompt, "GT": "B", "category": "animal"}]
    slowfast = [
        {"task_name": "QA", "video_name": "b.mp4", "question_id": 2, "question": "what ?", "answer_number": 1,
         "candidates": ["a cat", "a dog"], "answer": "a dog"}
    ]  # fmt: skip
    base = Options(str(checkpoint), "", str(media), "", frames=2, decoding=Decoding(max_new_tokens=4))
    for name, records, kept in (
        ("t2vid", t2vid, {"question_id", "prompt", "GT", "category"}),
        ("slowfast", slowfast, {"task_name", "answer_number", "candidates"}),
    ):
        path = write(tmp_path / f"{name}.json", records)
        output = tmp_path / name
        found = benchmark.run(dataclasses.replace(base, questions=path, output=str(output)), None, StopSignal())
        assert set(found["by_rule"]) == {"strict", "slowfast_released", "t2vid_released"}
        (line,), (scored,) = read(output / "predictions.jsonl"), read(output / "scored.jsonl")
        assert kept <= set(line) and {"id", "question", "answer", "pred"} <= set(line)
        assert scored["orig_pred"] == line["pred"] and len(scored["pred"]) == 1
        assert line["answer"] == "a dog"


def test_a_prompt_beyond_the_context_is_refused(checkpoint, media, tmp_path):
    records = [
        {"video": "a", "question": "how many ?", "answer": "2"},
        {"video": "a", "question": "x " * 400, "answer": "2"},
    ]
    options = Options(
        str(checkpoint), write(tmp_path / "long.json", records), str(media), str(tmp_path / "out"), frames=2,
        decoding=Decoding(max_new_tokens=2),
    )  # fmt: skip
    found = benchmark.run(options, None, StopSignal())
    assert found["unanswered"] == {"refused": 1}
    assert "max_position_embeddings is 512" in found["without_answer"][0]["detail"]
    alone = dataclasses.replace(
        options, questions=write(tmp_path / "only.json", records[1:]), output=str(tmp_path / "two")
    )
    with pytest.raises(benchmark.InputError, match="max_position_embeddings is 512"):
        benchmark.run(alone, None, StopSignal())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": ""}, "--checkpoint is required"),
        ({"media": "/nowhere"}, "--media=/nowhere: no such folder"),
        ({"questions": "/nowhere.json"}, "--questions=/nowhere.json: no such file"),
        ({"extra": "--match=judge"}, "match"),
        ({"extra": "--control=blank"}, "control"),
        ({"extra": "--top_p=0.5"}, "top_p"),
        ({"checkpoint": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_input_ends_in_one_line(checkpoint, media, options, tmp_path, changes, message):
    values = {"checkpoint": checkpoint, "questions": options.questions, "media": media, "output": tmp_path / "out"}
    extra = [changes["extra"]] if "extra" in changes else []
    values |= {key: value for key, value in changes.items() if key != "extra"}
    done = run(tmp_path, *values.values(), *extra)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0
