"""Every question is asked once, whatever comes between: bad clips, a stop, another run."""

import collections

import numpy as np
import pytest
from support.answers import answer_to

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.errors import InputError, Interrupted
from vlvm_jax.evaluation import asking, controls
from vlvm_jax.evaluation.predictions import Predictions
from vlvm_jax.evaluation.questions import Question
from vlvm_jax.inference.requests import Decoding
from vlvm_jax.stop import StopSignal


def listed(count, clips=3):
    """Questions that go round the clips."""
    return [
        Question(str(i), f"list: record {i}", (("video", f"{i % clips}.mp4"),), f"what is {i}?", f"{i}")
        for i in range(count)
    ]


class Model:
    """Repeats the question, and records what it was asked; a clip that is named in `bad` cannot be read, a question
    with a word of `refused` in it is refused."""

    def __init__(self, *bad, refused="never said", rows=2):
        self.bad, self.refused, self.rows, self.asked = bad, refused, rows, []

    def answer(self, requests, decoding, *, on_bad):
        for request in requests:
            (_, path) = request.media[0]
            if path in self.bad:
                on_bad(request, BadSampleError("corrupt", path))
                continue
            if self.refused in request.question:
                raise InputError(f"{request.id}: too long")
            self.asked.append(request)
            yield answer_to(request, request.question, picked={"frames": np.array([1, 2])})


def test_a_clips_questions_come_together_and_all_are_written(tmp_path):
    model, questions = Model(), listed(7)
    with Predictions(tmp_path / "p.jsonl") as found:
        asking.ask(model, Decoding(), questions, found, prefix="In the video,", stop=StopSignal())
        assert [request.media[0][1] for request in model.asked] == ["0.mp4"] * 3 + ["1.mp4"] * 2 + ["2.mp4"] * 2
        assert {request.prefix for request in model.asked} == {"In the video,"}
        assert len(found.by_id) == 7
        line = found.by_id["3"]
    assert (line["id"], line["question"], line["answer"], line["pred"]) == ("3", "what is 3?", "3", "what is 3?")
    assert line["picked"] == {"frames": [1, 2]}
    assert line["new_tokens"] > 0


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_bad_clips_cost_their_own_questions_only(tmp_path, rows):
    model, questions = Model("1.mp4", rows=rows), listed(7)
    with Predictions(tmp_path / "p.jsonl") as found:
        asking.ask(model, Decoding(), questions, found, stop=StopSignal())
        bad = {name: line["cause"] for name, line in found.by_id.items() if line["pred"] is None}
        assert bad == {"1": "corrupt", "4": "corrupt"}
        assert len(found.by_id) == 7
    counted = collections.Counter(request.id for request in model.asked)
    assert max(counted.values()) == 1
    mended = Model(rows=rows)
    with Predictions(tmp_path / "p.jsonl") as found:
        asking.ask(mended, Decoding(), questions, found, stop=StopSignal())
        assert all(found.answered(question.id) for question in questions)
    assert [request.id for request in mended.asked] == ["1", "4"]


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_a_refused_question_costs_itself_only(tmp_path, rows):
    model, questions = Model("2.mp4", refused="is 3?", rows=rows), listed(7)
    with Predictions(tmp_path / "p.jsonl") as found:
        asking.ask(model, Decoding(), questions, found, stop=StopSignal())
        causes = {name: line["cause"] for name, line in found.by_id.items() if line["pred"] is None}
        assert causes == {"2": "corrupt", "3": "refused", "5": "corrupt"}
        assert found.by_id["3"]["detail"] == "3: too long"
        assert len(found.by_id) == 7
    counted = collections.Counter(request.id for request in model.asked)
    assert max(counted.values()) == 1


def test_what_refuses_every_question_ends_the_run(tmp_path):
    model = Model("0.mp4", refused="what")
    with Predictions(tmp_path / "p.jsonl") as found, pytest.raises(InputError, match="1: too long"):
        asking.ask(model, Decoding(), listed(7), found, stop=StopSignal())
    with Predictions(tmp_path / "p.jsonl") as found:
        assert {line["cause"] for line in found.by_id.values()} == {"corrupt"}


def test_clips_that_are_not_there_are_never_asked(tmp_path):
    model = Model()
    gone = Question("x", "f", (("video", "gone.mp4"),), "q", "a", missing=True)
    with Predictions(tmp_path / "p.jsonl") as found:
        asking.ask(model, Decoding(), [gone, *listed(2)], found, stop=StopSignal())
        assert found.by_id["x"]["cause"] == "missing"
        assert found.by_id["x"]["detail"] == "gone.mp4"
    assert len(model.asked) == 2


def test_a_stop_keeps_what_is_answered(tmp_path):
    model, questions, stop = Model(), listed(7), StopSignal()

    def after_three():
        stop.requested = len(model.asked) == 3

    with Predictions(tmp_path / "p.jsonl") as found, pytest.raises(Interrupted, match="what is answered is kept"):
        asking.ask(model, Decoding(), questions, found, stop=stop, on_answer=after_three)
    again = Model()
    with Predictions(tmp_path / "p.jsonl") as found:
        assert len(found.by_id) == 3
        asking.ask(again, Decoding(), questions, found, stop=StopSignal())
        assert len(found.by_id) == 7
    assert sorted(request.id for request in model.asked + again.asked) == [str(i) for i in range(7)]


@pytest.mark.parametrize("control", [None, *controls.CONTROLS])
def test_what_the_controls_ask(tmp_path, control):
    options = {"options": ("red", "blue"), "letter": "A"}
    questions = [Question(str(i), "f", (("video", f"{i}.mp4"),), f"q{i}", "red", **options) for i in range(2)]
    swapped = controls.others(questions)
    model = Model()
    with Predictions(tmp_path / "p.jsonl") as found:
        asking.ask(model, Decoding(), questions, found, control=control, others=swapped, stop=StopSignal())
    asked = {request.id: request for request in model.asked}
    own = control != "shuffled_question"
    guided = control in ("shuffled_prompt", "shuffled_question")
    assert asked["0"].question == ("q0" if own else "q1") and asked["0"].options == ("red", "blue")
    assert asked["0"].scoring_text == ("q1" if control == "shuffled_prompt" else None)
    assert found.by_id["0"].get("other") == ("1" if guided else None)
