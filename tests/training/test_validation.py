"""Validation while training: what is chosen, when a stage ends, and that nothing of training knows of it."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import recipes, small, validated
from support.recipes import ROOT, environment

from vlvm_jax.config import StageConfig
from vlvm_jax.errors import InputError
from vlvm_jax.training.checkpoint import _NewestAndBest
from vlvm_jax.training.validation import Validation
from vlvm_jax.weights.sources import open_source, set_aside_damaged

NAN = float("nan")


def stage(**settings) -> StageConfig:
    values = {"name": "s", "data": [], "steps": 30, "batch_size": 1, "frames": 1, "length": 8, "trainable": {"x": 1.0}}
    return StageConfig.model_validate(values | {"validation": [{"path": "v"}]} | settings)


def after(losses, accuracies=None, **settings) -> Validation:
    accuracies = accuracies or [0.0] * len(losses)
    entries = [
        {"step": 4 * number, "loss": loss, "accuracy": accuracy}
        for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1)
    ]
    return Validation(stage(**settings), 30, lambda *_: None, entries)


@pytest.mark.parametrize(("metric", "best"), [("loss", 12), ("accuracy", 8), (None, None)])
def test_the_best_is_the_earliest_of_equals(metric, best):
    assert after([3.0, 2.0, 1.0, 1.0], [0.1, 0.5, 0.4, 0.5], best=metric).best == best


def test_a_loss_that_is_no_number_is_not_the_best():
    assert after([NAN, 2.0, NAN], best="loss").best == 8


def test_patience():
    counts = [after([3.0, 2.0, 2.5, 2.0, 2.1][:n], best="loss", patience=2).exhausted for n in range(6)]
    assert counts == [False, False, False, False, True, True]
    assert not after([3.0, 4.0, 5.0], best="loss").exhausted


@pytest.mark.parametrize(("every", "due"), [(8, [8, 16, 24, 30]), (None, list(range(3, 31, 3)))])
def test_when_questions_are_put(every, due):
    validation = Validation(stage(validate_every=every), 30, lambda *_: (1.0, 1.0))
    steps = []
    for step in range(31):
        if validation.due(step):
            validation.run(step, {}, {}, None)  # type: ignore[arg-type]
            steps.append(step)
            assert not validation.due(step)
    assert steps == due


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validation": [], "validate_every": 3}, "validate_every: there is no validation"),
        ({"validation": [], "best": "loss"}, "best 'loss' is of validation"),
        ({"patience": 3}, "patience: give best"),
        ({"objective": "adapter"}, "not 'adapter'"),
    ],
)
def test_settings_that_contradict_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        stage(**settings)


def test_the_best_checkpoint_stays_beside_the_newest():
    kept = _NewestAndBest(2)
    steps = [SimpleNamespace(step=step) for step in (4, 8, 12, 16)]
    assert kept.should_preserve(steps, context=None) == [False, False, True, True]
    kept.best = 4
    assert kept.should_preserve(steps, context=None) == [True, False, True, True]


# --- whole runs

SETTINGS = (
    "--config.checkpoint.save_every=5", "--config.checkpoint.keep=1", "--config.data.workers=0",
    "--config.stages[0].steps=4", "--config.stages[1].steps=2", "--config.stages[2].steps=2",
    "--config.stages[3].steps=14", *(f"--config.stages[{number}].log_every=1" for number in range(4)),
)  # fmt: skip
ARG = "tiny,scale=0.03"


def command(workdir: Path, recipe=validated) -> list[str]:
    whole = recipes.command(workdir, arg=ARG)
    return [*(part.replace(recipes.SMALL, recipe.__file__) for part in whole), *SETTINGS]


def train(workdir: Path, data_root: Path, *extra: str, recipe=validated) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [*command(workdir, recipe), *extra],
        cwd=ROOT,
        env=environment(data_root),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done


def lines(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = ("stage", "step", "loss", "grad_norm", "validation_loss", "validation_accuracy")
    return [{key: row[key] for key in keys if key in row} for row in rows]


def of(result: Path) -> dict:
    values = json.loads(result.read_text())
    return {key: values[key] for key in ("steps", "best_step", "validation", "ended_early", "last_loss")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_root) -> Path:
    workdir = tmp_path_factory.mktemp("validated") / "run"
    train(workdir, data_root)
    return workdir


@pytest.mark.slow
def test_training_knows_nothing_of_it(tmp_path, data_root, undisturbed):
    """The losses and gradients of a run without validation, to the bit."""
    train(tmp_path / "plain", data_root, recipe=small)
    assert [row for row in lines(undisturbed) if "loss" in row] == lines(tmp_path / "plain")
    assert sum("validation_loss" in row for row in lines(undisturbed)) == 4


@pytest.mark.slow
def test_its_result_is_the_best_step(undisturbed):
    result = of(undisturbed / "instruct" / "result.json")
    best = min(result["validation"], key=lambda entry: entry["loss"])["step"]
    assert result["best_step"] == best and result["steps"] == 14 and not result["ended_early"]
    kept = {int(path.name) for path in (undisturbed / "instruct" / "checkpoints").iterdir()}
    assert kept == {best, 14}
    assert open_source(str(undisturbed), "run").name.endswith(f"instruct/checkpoints/{best}")


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(data_root, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    assert "instruct: done before" in train(undisturbed, data_root).stdout
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("when", ["validated", "best saved"])
def test_a_kill_changes_neither_losses_nor_the_choice(tmp_path, data_root, undisturbed, when):
    """After the second validation was noted, and when its checkpoint has just appeared."""
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir),
        cwd=ROOT,
        env=environment(data_root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file, deadline = workdir / "metrics.jsonl", time.monotonic() + 900
    second = workdir / "instruct" / "checkpoints" / "8"

    def there() -> bool:
        noted = file.exists() and file.read_text().count("validation_loss") >= 2
        return noted if when == "validated" else second.exists()

    while process.poll() is None and not there():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    train(workdir, data_root)
    assert lines(workdir) == lines(undisturbed)
    assert of(workdir / "instruct" / "result.json") == of(undisturbed / "instruct" / "result.json")


EARLY = ("--config.stages[3].best=accuracy", "--config.stages[3].patience=1")


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory, data_root) -> Path:
    workdir = tmp_path_factory.mktemp("early") / "run"
    train(workdir, data_root, *EARLY)
    return workdir


@pytest.mark.slow
def test_a_stage_ends_early_and_is_done(tmp_path, data_root, ended_early):
    workdir = shutil.copytree(ended_early, tmp_path / "run")
    result = of(workdir / "instruct" / "result.json")
    assert result["ended_early"] and result["steps"] == result["best_step"] + 4 < 14
    assert "instruct: done before" in train(workdir, data_root, *EARLY).stdout
    (workdir / "instruct" / "result.json").unlink()  # a kill before it was written
    train(workdir, data_root, *EARLY)
    assert of(workdir / "instruct" / "result.json") == result


@pytest.mark.slow
def test_a_damaged_result_is_neither_used_nor_replaced_in_silence(tmp_path, data_root, ended_early):
    workdir = shutil.copytree(ended_early, tmp_path / "run")
    result = of(workdir / "instruct" / "result.json")
    best, newest = result["best_step"], result["steps"]
    damaged = next((workdir / "instruct" / "checkpoints" / str(best) / "params").glob("**/d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = subprocess.run(
        [*command(workdir), *EARLY], cwd=ROOT, env=environment(data_root), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 2 and f"{best}: the stage's result, damaged or missing" in done.stderr
    with pytest.raises(InputError, match="--fallback"):
        open_source(str(workdir), "run")
    set_aside_damaged(str(workdir), "run")
    assert open_source(str(workdir), "run").name.endswith(f"checkpoints/{newest}")
