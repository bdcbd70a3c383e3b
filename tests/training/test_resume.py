"""Stopping and continuing with real processes: the losses are those of a run that nobody disturbed, to the bit."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.recipes import ROOT, command, environment, train

pytestmark = pytest.mark.slow

ARG = "tiny,scale=0.03"
EXTRA = (
    "--config.checkpoint.save_every=5", "--config.data.workers=0", "--config.stages[0].steps=12",
    "--config.stages[3].steps=24",
    *(f"--config.stages[{stage}].batch_size={rows}" for stage, rows in enumerate((8, 8, 8, 4))),
)  # fmt: skip
WORKER = "--config.data.workers=1"


def losses(workdir) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        curves.setdefault(entry["stage"], []).append((entry["step"], entry["loss"]))
    return curves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_root):
    # Relative, as the default workdir is.
    workdir = Path(os.path.relpath(tmp_path_factory.mktemp("run") / "undisturbed", ROOT))
    done = train(workdir, data_root, *EXTRA, arg=ARG)
    assert done.returncode == 0, done.stderr
    return (ROOT / workdir).resolve()


def signal_when(workdir, data_root, ready, number: int, *extra: str) -> subprocess.Popen:
    """Starts the run and sends `number` as soon as `ready(workdir)`; returns the ended process."""
    process = subprocess.Popen(
        command(workdir, *EXTRA, *extra, arg=ARG), cwd=ROOT, env=environment(data_root), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 900  # on a busy machine
    while process.poll() is None and not ready(workdir):
        assert time.monotonic() < deadline, "the run never came to where it was to be stopped"
        time.sleep(0.02)
    process.send_signal(number)
    process.out, process.err = process.communicate(timeout=120)
    return process


def at_checkpoint(stage: str, step: int):
    return lambda workdir: (workdir / stage / "checkpoints" / str(step)).exists()


def test_sigterm_saves_and_the_same_command_continues_to_the_same_losses(tmp_path, data_root, undisturbed):
    workdir = tmp_path / "run"
    # In the first stage, and again in the last: the second run starts inside one stage and crosses into the others.
    for stage, step in (("base", 5), ("instruct", 10)):
        stopped = signal_when(workdir, data_root, at_checkpoint(stage, step), signal.SIGTERM, WORKER)
        assert stopped.returncode == 75, stopped.err
        assert f"saved stage '{stage}' at step" in stopped.err
        assert "same command" in stopped.err
        assert "Traceback" not in stopped.err
    done = train(workdir, data_root, *EXTRA, WORKER, arg=ARG)
    assert done.returncode == 0, done.stderr
    assert "instruct: continuing from step" in done.stdout
    assert losses(workdir) == losses(undisturbed)
    mine, theirs = (json.loads((d / "summary.json").read_text()) for d in (workdir, undisturbed))
    assert mine["eval"] == theirs["eval"]


def test_kill_continues_from_the_last_checkpoint(tmp_path, data_root, undisturbed):
    workdir = tmp_path / "run"
    for stage, step in (("base", 5), ("pretrain", 5), ("instruct", 15)):
        killed = signal_when(workdir, data_root, at_checkpoint(stage, step), signal.SIGKILL, WORKER)
        assert killed.returncode == -signal.SIGKILL, killed.err
    # What a crash can leave behind: half a line of metrics, half a checkpoint.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "instruct", "step": 99')
    done = train(workdir, data_root, *EXTRA, WORKER, arg=ARG)
    assert done.returncode == 0, done.stderr
    assert losses(workdir) == losses(undisturbed)


def test_a_finished_run_runs_again_without_training(data_root, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    done = train(undisturbed, data_root, *EXTRA, arg=ARG)
    assert done.returncode == 0, done.stderr
    assert "instruct: done before" in done.stdout
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_a_kill_between_the_last_checkpoint_and_the_result(tmp_path, data_root, undisturbed):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "instruct" / "result.json").unlink()
    (workdir / "summary.json").unlink()
    done = train(workdir, data_root, *EXTRA, arg=ARG)
    assert done.returncode == 0, done.stderr
    assert losses(workdir) == losses(undisturbed)
    mine, theirs = (json.loads((d / "summary.json").read_text()) for d in (workdir, undisturbed))
    assert mine["eval"] == theirs["eval"]
    assert mine["stages"][-1]["last_loss"] == theirs["stages"][-1]["last_loss"]


def test_keep_and_final_checkpoint(undisturbed):
    kept = sorted(int(path.name) for path in (undisturbed / "instruct" / "checkpoints").iterdir())
    assert len(kept) == 2
    assert kept[-1] == json.loads((undisturbed / "summary.json").read_text())["stages"][-1]["steps"]


def test_the_workdir_of_another_config_is_refused(data_root, undisturbed):
    done = train(undisturbed, data_root, *EXTRA, "--config.checkpoint.keep=7", arg=ARG)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "holds another config's run (they differ in config.checkpoint.keep: 2 there, 7 here)" in done.stderr


def test_summary_and_run_card_hold_what_they_promise(undisturbed):
    summary = json.loads((undisturbed / "summary.json").read_text())
    keys = {
        "name", "steps", "first_loss", "last_loss", "seconds", "compilations", "trainable_parameters",
        "frozen_parameters", "visual_tokens_per_sample", "checkpoint",
    }  # fmt: skip
    assert [stage["name"] for stage in summary["stages"]] == ["base", "align", "pretrain", "instruct"]
    for stage in summary["stages"]:
        assert keys <= stage.keys()
        assert stage["compilations"] == 1
        seen = {"image": 9, "video": 32} if stage["name"] == "instruct" else {"image": 9}
        assert stage["visual_tokens_per_sample"] == seen
    result = summary["eval"]["videos"]
    assert {"accuracy", "by_type", "controls"} <= result.keys()
    assert set(result["controls"]) == {"blank_video", "shuffled_frames", "majority"}
    card = json.loads((undisturbed / "run_card.json").read_text())
    assert {"config_hash", "versions", "devices", "seeds", "data"} <= card.keys()
    assert (undisturbed / "summary.png").stat().st_size > 10_000


def test_workers_end_with_a_killed_parent(tmp_path, data_root):
    """`kill -9` leaves no process behind: the workers hold the run's output open as long as they live."""
    killed = signal_when(tmp_path / "run", data_root, at_checkpoint("base", 5), signal.SIGKILL, WORKER)
    assert killed.returncode == -signal.SIGKILL  # `communicate` saw the end of the output, so no worker is left
