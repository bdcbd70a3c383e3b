"""What a run that continues leaves of the lines that were logged before."""

import json

from vlvm_jax.training.metrics import MetricsWriter


def test_lines_after_the_step_that_is_continued_from_are_dropped(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False, wandb_project=None, name="x", config={})
    for stage, steps in (("a", 3), ("b", 4)):
        for step in range(1, steps + 1):
            writer.write(stage, step, {"loss": float(step)})
    writer.flush()
    with writer.path.open("a") as file:
        file.write('{"stage": "b", "step": 5')  # a crash
    writer.drop_after("b", 2)
    writer.write("b", 3, {"loss": 30.0})
    writer.close()
    lines = [json.loads(line) for line in writer.path.read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("a", 1),
        ("a", 2),
        ("a", 3),
        ("b", 1),
        ("b", 2),
        ("b", 3),
    ]
    assert writer.losses() == {"a": [(1, 1.0), (2, 2.0), (3, 3.0)], "b": [(1, 1.0), (2, 2.0), (3, 30.0)]}
    writer.drop_after("b", 0)
    assert writer.losses().keys() == {"a"}


def test_a_validation_that_will_be_done_again_is_dropped(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False, wandb_project=None, name="x", config={})
    for step in (2, 4):
        writer.write("a", step, {"loss": 1.0})
        writer.write("a", step, {"validation_loss": 2.0})
    writer.flush()
    writer.drop_after("a", 4, validated={2})
    lines = [json.loads(line) for line in writer.path.read_text().splitlines()]
    assert [(line["step"], "validation_loss" in line) for line in lines] == [(2, False), (2, True), (4, False)]
