"""A list from its file to its results, with a model that answers by rule: continuing, and what may change meanwhile."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from support.answers import answer_to

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.errors import InputError, Interrupted
from vlvm_jax.evaluation import benchmark
from vlvm_jax.evaluation.benchmark import Options
from vlvm_jax.evaluation.results import Rules
from vlvm_jax.inference.requests import Decoding
from vlvm_jax.stop import StopSignal

TRUE = {"a": "red", "b": "blue", "c": "green", "d": "red"}


class Model:
    """Knows the clips' colours by their names, and cannot read c; counts what it is asked."""

    rows = 2

    def __init__(self):
        self.asked = []
        self.prompts = SimpleNamespace(cut=set(), spec=SimpleNamespace(data=SimpleNamespace(prompt_length=77)))

    def answer(self, requests, decoding, *, on_bad):
        for request in requests:
            clip = request.media[0][1].rpartition("/")[2][0]
            if clip == "c":
                on_bad(request, BadSampleError("corrupt", request.media[0][1]))
                continue
            self.asked.append((request.id, decoding))
            yield answer_to(request, "blue" if clip == "d" else TRUE[clip])


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setattr(benchmark, "_load", lambda options, config: made)
    monkeypatch.setattr(benchmark, "_files_hash", lambda checkpoint: "files")
    return made


@pytest.fixture
def options(tmp_path):
    media = tmp_path / "clips"
    media.mkdir()
    for clip in "abcd":
        (media / f"{clip}.mp4").touch()
    records = [
        {"video": clip, "id": f"{clip}{n}", "question": f"which {n}?", "answer": TRUE.get(clip, "?"), "type": f"t{n}"}
        for n in range(2)
        for clip in (*TRUE, "gone")
    ]
    questions = tmp_path / "own.json"
    questions.write_text(json.dumps(records))
    return Options("model", str(questions), str(media), str(tmp_path / "out"))


def test_questions_in_every_script_are_written_as_they_are(options, model, tmp_path):
    asked = ["视频里发生了什么", "ماذا يحدث", "👩\u200d👧 🎬", "红 what ماذا 🎬 " * 700]
    records = [
        {"video": "a", "id": f"问{n}", "question": text, "answer": "红色", "type": "颜色"}
        for n, text in enumerate(asked)
    ]
    (tmp_path / "own.json").write_text(json.dumps(records))
    found = benchmark.run(options, None, StopSignal())
    assert set(found["by_type"]) == {"颜色"}
    for name in ("predictions.jsonl", "scored.jsonl"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
        assert [line["question"] for line in lines] == [one.strip() for one in asked]
        assert all(one.strip() in text for one in asked)
    assert "颜色" in (tmp_path / "out" / "results.json").read_text(encoding="utf-8")


def test_clips_beside_the_list_need_no_media_folder(options, model, tmp_path, capsys):
    here = dataclasses.replace(options, media=None)
    with pytest.raises(InputError, match=f"none of the clips is in the list's own folder, {tmp_path}; give --media="):
        benchmark.run(here, None, StopSignal())
    beside = tmp_path / "clips" / "own.json"
    beside.write_text((tmp_path / "own.json").read_text())
    found = benchmark.run(dataclasses.replace(here, questions=str(beside)), None, StopSignal())
    assert found["accuracy"] == pytest.approx(0.4)
    assert f"from the list's own folder, {beside.parent}" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "out" / "run_card.json").read_text())["asked"]["media"] == str(beside.parent)
    with pytest.raises(InputError, match=r"--questions=.*gone.json: no such file"):
        benchmark.run(dataclasses.replace(here, questions=str(tmp_path / "gone.json")), None, StopSignal())


def test_from_a_list_to_results(options, model, tmp_path, capsys):
    found = benchmark.run(options, None, StopSignal())
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["questions"] == 10
    assert found["accuracy"] == pytest.approx(0.4)  # a and b right, d wrong, c corrupt, the fifth missing
    assert found["unanswered"] == {"corrupt": 2, "missing": 2}
    assert {(one["id"], one["cause"]) for one in found["without_answer"]} == {
        ("c0", "corrupt"), ("c1", "corrupt"), ("gone0", "missing"), ("gone1", "missing"),
    }  # fmt: skip
    scored = [json.loads(line) for line in (tmp_path / "out" / "scored.jsonl").read_text().splitlines()]
    assert [line["id"] for line in scored][:5] == ["a0", "b0", "c0", "d0", "gone0"]
    assert [line["right"]["exact"] for line in scored][:5] == [True, True, False, False, False]
    card = json.loads((tmp_path / "out" / "run_card.json").read_text())
    assert card["asked"]["decoding"]["max_new_tokens"] is None
    assert card["data"]["questions"] == 10 and card["versions"]["jax"] and card["devices"]
    shown = capsys.readouterr().out
    assert "own.json: 10 questions" in shown and "counted as wrong: 2 corrupt, 2 missing" in shown


def test_the_same_command_asks_nothing_twice(options, model):
    benchmark.run(dataclasses.replace(options, limit=3), None, StopSignal())
    assert [name for name, _ in model.asked] == ["a0", "b0"]
    benchmark.run(options, None, StopSignal())
    assert sorted(name for name, _ in model.asked) == ["a0", "a1", "b0", "b1", "d0", "d1"]
    other_rules = Rules(denominator="answered", match="contains")
    found = benchmark.run(dataclasses.replace(options, rules=other_rules), None, StopSignal())
    assert len(model.asked) == 6
    assert (found["questions"], found["accuracy"]) == (6, pytest.approx(4 / 6))


def test_a_stopped_command_continues(options, model, monkeypatch):
    stop = StopSignal()
    monkeypatch.setattr(stop, "reached", lambda: len(model.asked) >= 2)
    with pytest.raises(Interrupted):
        benchmark.run(options, None, stop)
    assert len(model.asked) == 2
    benchmark.run(options, None, StopSignal())
    assert sorted(name for name, _ in model.asked) == ["a0", "a1", "b0", "b1", "d0", "d1"]


def test_a_finished_list_is_scored_without_a_model(options, model, tmp_path, monkeypatch):
    for clip in ("c", "gone"):
        records = [r for r in json.loads((tmp_path / "own.json").read_text()) if r["video"] != clip]
        (tmp_path / "own.json").write_text(json.dumps(records))
    first = benchmark.run(options, None, StopSignal())

    def never(*_):
        raise AssertionError("a model is loaded though nothing is left to ask")

    monkeypatch.setattr(benchmark, "_load", never)
    assert benchmark.run(options, None, StopSignal()) == first


def test_controls_have_files_and_accuracies_of_their_own(options, model, tmp_path):
    benchmark.run(options, None, StopSignal())
    found = benchmark.run(dataclasses.replace(options, controls=("shuffled_question",)), None, StopSignal())
    assert found["controls"]["shuffled_question"]["accuracy"] == pytest.approx(0.4)
    assert len(model.asked) == 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions_shuffled_question.jsonl").open()]
    assert {line["id"]: line["other"] for line in lines if line["id"] == "a0"}["a0"] != "a0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoding": Decoding(max_new_tokens=5)}, r"made with another decoding \(.*None.* there, .*5.* here\)"),
        ({"checkpoint": "other"}, r"another checkpoint \('model' there, 'other' here\)"),
        ({"frames": 3}, r"another frames \(None there, 3 here\)"),
        ({"prefix": "In"}, "another prefix"),
    ],
)
def test_another_command_needs_another_folder(options, model, change, message):
    benchmark.run(options, None, StopSignal())
    with pytest.raises(InputError, match=message) as caught:
        benchmark.run(dataclasses.replace(options, **change), None, StopSignal())
    assert "\n" not in str(caught.value)
    assert len(model.asked) == 6


def test_predictions_of_unknown_origin_are_not_counted(options, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text('{"id": "a0", "pred": "red"}\n')
    with pytest.raises(InputError, match=r"predictions without a run_card.json"):
        benchmark.run(options, None, StopSignal())
    (tmp_path / "out" / "run_card.json").write_text("{}")
    with pytest.raises(InputError, match=r"run_card.json: no run card of an evaluation"):
        benchmark.run(options, None, StopSignal())


def test_questions_that_clip_reads_the_beginning_of_are_told(model, options, capsys):
    model.prompts.cut |= {"a0", "b1"}
    benchmark.run(options, None, StopSignal())
    assert "2 questions were cut to the 77 tokens that CLIP reads of them" in capsys.readouterr().out
