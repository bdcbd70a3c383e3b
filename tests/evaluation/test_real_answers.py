"""Lists asked of a tiny random checkpoint over real clips: what is written, controls, bad clips and prompts."""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch")
from support import question_files
from support.question_files import open_lists, read, write

from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import benchmark, controls, question_lists
from vlvm_jax.evaluation.benchmark import Options
from vlvm_jax.inference import loading
from vlvm_jax.inference.requests import Decoding, Request
from vlvm_jax.stop import StopSignal


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return question_files.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    return question_files.clips(tmp_path_factory.mktemp("clips"))


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
    with pytest.raises(InputError, match="shuffled_prompt: the question does not guide the adapter 'frames'"):
        controls.controlled(model, "shuffled_prompt")
    folder = Path(options.output)
    other = {line["id"]: line for line in read(folder / "predictions_shuffled_question.jsonl")}
    texts = {question.id: question.text for question in listed}
    one = other["q0"]
    (answer,) = model.answer([Request("q0", listed[0].media, texts[one["other"]])], options.decoding)
    assert one["pred"] == answer.text


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
    with pytest.raises(InputError, match="max_position_embeddings is 512"):
        benchmark.run(alone, None, StopSignal())
