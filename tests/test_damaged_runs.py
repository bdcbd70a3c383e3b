"""Damaged runs and imports through the commands: one line, `--fallback`, and training that goes on by itself."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from support import tiny_checkpoints as tiny
from support.one_stage import get_config as one_stage
from support.recipes import ROOT, environment, errors_in

from vlvm_jax import manifest, storage
from vlvm_jax.config import Config, build
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import final
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.weights import integrity
from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.importing import import_checkpoint
from vlvm_jax.weights.sources import open_source, set_aside_damaged

STEPS = 6


def config() -> Config:
    values = one_stage()
    values.stages[0].update(steps=STEPS, batch_size=8)
    values.evals = []
    values.checkpoint.update(save_every=2, keep=3)
    return build(Config, values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_root):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLVM_JAX_DATA", str(data_root))
        stages.run(config(), epath.Path(workdir), StopSignal(), final.evaluate)
    return workdir


@pytest.fixture
def run(finished, tmp_path, embedded):
    return shutil.copytree(finished, tmp_path / "run")


def flip(file: Path, place: int = 100) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def parameters(step: Path) -> Path:
    """The file with a step's large parameters."""
    return max(step.glob("params/ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "instruct" / "checkpoints").iterdir())


def losses(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def test_a_finished_stage_goes_on_from_the_step_before(run, finished, capsys):
    flip(parameters(run / "instruct" / "checkpoints" / "6"))
    stages.run(config(), epath.Path(run), StopSignal(), final.evaluate)
    said = capsys.readouterr()
    assert "DAMAGED: params/ocdbt.process_0/d/" in said.err and "taking step 4" in said.err
    assert "instruct: continuing from step 4" in said.out
    assert checkpoints(run) == ["2", "4", "6", "6.damaged"]
    assert losses(run) == losses(finished) and [step for step, _ in losses(run)] == list(range(1, STEPS + 1))


def test_a_run_all_of_whose_steps_are_damaged_ends_in_one_line(run):
    for step in ("2", "4", "6"):
        flip(parameters(run / "instruct" / "checkpoints" / step))
    with pytest.raises(InputError, match="every step is damaged"):
        stages.run(config(), epath.Path(run), StopSignal(), final.evaluate)
    assert checkpoints(run) == ["2", "4", "6"]


def test_the_result_of_a_stage_is_made_anew_where_its_file_is_damaged(run, capsys):
    file = run / "instruct" / "result.json"
    before = manifest.unsealed(file.read_text())
    file.write_text(file.read_text().replace('"steps": 6', '"steps": 7'))
    stages.run(config(), epath.Path(run), StopSignal(), final.evaluate)
    assert "result.json: damaged (its checksum differs); writing it anew" in capsys.readouterr().out
    after = manifest.unsealed(file.read_text())
    assert after["last_loss"] == before["last_loss"] and after["steps"] == STEPS


@pytest.mark.parametrize("name", ["config.json", "hf/tokenizer.json", manifest.FILE])
def test_the_files_beside_the_stages(run, name):
    flip(run / name, (run / name).read_bytes().index(b"}") - 1)
    for use in (
        lambda: open_source(str(run), "SRC"),
        lambda: stages.run(config(), epath.Path(run), StopSignal(), final.evaluate),
    ):
        with pytest.raises(InputError, match=rf"{run}: damaged: {name}: "):
            use()
    shutil.rmtree(run / "hf")
    (run / "config.json").unlink()
    stages.run(config(), epath.Path(run), StopSignal(), final.evaluate)
    assert integrity.check_beside_stages(epath.Path(run)) is None
    assert open_source(str(run), "SRC").shapes


REFUSED = (
    r"checkpoints/6: damaged: params/ocdbt.process_0/d/\w+: checksum differs; arrays: \S+; "
    r"its stage also has step 2, 4 \(--fallback takes the newest one that is not damaged\)$"
)


def test_a_damaged_step_is_refused_and_may_be_passed_over(run, capsys):
    flip(parameters(run / "instruct" / "checkpoints" / "6"))
    with pytest.raises(integrity.Damaged, match=REFUSED):
        open_source(str(run), "--checkpoint")
    assert checkpoints(run) == ["2", "4", "6"]
    set_aside_damaged(str(run), "--checkpoint")
    assert "renamed to 6.damaged" in capsys.readouterr().err
    assert checkpoints(run) == ["2", "4", "6.damaged"]
    assert open_source(str(run), "--checkpoint").name == open_source(str(run / "instruct"), "").name
    assert open_source(str(run), "--checkpoint").name.endswith("instruct/checkpoints/4")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "convert", "evaluate"])
def test_commands_refuse_a_damaged_step_and_fall_back(run, data_root, tmp_path, command):
    flip(parameters(run / "instruct" / "checkpoints" / "6"))
    clip = next(data_root.rglob("heldout_clips/*.mp4"))
    (tmp_path / "questions.jsonl").write_text(json.dumps({"video": clip.name, "question": "What?", "answer": "red"}))
    arguments = {
        "generate": (f"--checkpoint={run}", f"--video={clip}", "--prompt=What color?", "--max_new_tokens=2"),
        "convert": ("export", str(run), str(tmp_path / "exported"), "--noverify"),
        "evaluate": (f"--checkpoint={run}", f"--questions={tmp_path}/questions.jsonl", f"--media={clip.parent}",
                     f"--output={tmp_path}/answers", "--max_new_tokens=2"),
    }[command]  # fmt: skip
    call = functools.partial(subprocess.run, cwd=ROOT, env=environment(data_root), capture_output=True, text=True)
    refused = call([sys.executable, "-m", f"vlvm_jax.{command}", *arguments])
    assert refused.returncode == 2 and re.search(REFUSED, refused.stderr.strip()), refused.stderr
    assert len(errors_in(refused.stderr)) == 1 and checkpoints(run) == ["2", "4", "6"]
    done = call([sys.executable, "-m", f"vlvm_jax.{command}", *arguments, "--fallback"])
    assert done.returncode == 0 and "renamed to 6.damaged" in done.stderr, done.stderr
    assert checkpoints(run) == ["2", "4", "6.damaged"]


def test_what_is_not_read_does_not_keep_from_answering(run):
    """The optimizer's state; but whoever continues training reads it."""
    flip(
        max(
            (run / "instruct" / "checkpoints" / "6").glob("opt_state/ocdbt.process_0/d/*"),
            key=lambda f: f.stat().st_size,
        )
    )
    assert open_source(str(run), "SRC").name.endswith("/6")
    set_aside_damaged(str(run), "SRC")
    assert checkpoints(run) == ["2", "4", "6"]
    with pytest.raises(integrity.Damaged, match="opt_state"):
        integrity.check_step(epath.Path(run / "instruct" / "checkpoints" / "6"))


def test_falling_back_from_a_step_that_was_named(run):
    with pytest.raises(InputError, match=r"--fallback: SRC names step 6; name its stage"):
        set_aside_damaged(str(run / "instruct" / "checkpoints" / "6"), "SRC")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("imported")
    tiny.checkpoint(root / "hf", "llava_onevision")
    import_checkpoint(str(root / "hf"), epath.Path(root / "imported"))
    return root / "imported"


def test_an_import_is_refused_where_any_file_is_damaged(imported, tmp_path):
    known = manifest.load((imported / manifest.FILE).read_bytes())
    there = {str(file.relative_to(imported)) for file in imported.rglob("*") if file.is_file()}
    assert known.keys() == there - {manifest.FILE}
    arrays = {array for entry in known.values() for array in entry.arrays}
    assert arrays == set(open_source(str(imported), "SRC").shapes)
    copy = shutil.copytree(imported, tmp_path / "imported")
    for name in sorted(there)[:: max(1, len(there) // 25)]:
        before = (copy / name).read_bytes()
        if not before:
            continue
        flip(copy / name, len(before) // 2)
        said = "; import the checkpoint again"
        of_array = f"; arrays: {known[name].arrays[0]}" if name in known and known[name].arrays else ""
        with pytest.raises(integrity.Damaged, match=rf"imported: damaged: {name}: .*{of_array}{said}$"):
            open_source(str(copy), "SRC")
        (copy / name).write_bytes(before)
    (copy / manifest.FILE).unlink()
    with pytest.raises(integrity.Damaged, match=rf"{manifest.FILE}: missing"):
        open_source(str(copy), "SRC")


def test_an_import_from_before_manifests_is_read(imported, tmp_path, capsys):
    copy = shutil.copytree(imported, tmp_path / "imported")
    (copy / manifest.FILE).unlink()
    description = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**description, "format": 1}))
    for _ in range(2):
        assert open_source(str(copy), "SRC").shapes.keys() == open_source(str(imported), "SRC").shapes.keys()
    assert capsys.readouterr().err == f"warning: {copy}: not verified: it was written without a manifest\n"


def test_an_import_in_a_bucket(imported, bucket):
    """Sums are of what was uploaded; the bucket's own are held against them."""
    target = f"{bucket.root}/imported"
    import_checkpoint(str(imported.parent / "hf"), epath.Path(target))
    source = open_source(target, "SRC")
    known = manifest.load(storage.read_bytes(f"{target}/{manifest.FILE}"))
    assert known.keys() == storage.listing(target).keys() - {manifest.FILE}
    name = next(name for name, entry in known.items() if entry.size > 500 and entry.arrays)
    data = bytearray(storage.read_bytes(f"{target}/{name}"))
    data[7] ^= 1
    storage.write_bytes(f"{target}/{name}", bytes(data))
    with pytest.raises(integrity.Damaged, match=rf"{name}: checksum differs; arrays: {known[name].arrays[0]};"):
        open_source(target, "SRC")
    assert source.shapes


# --- a run whose last stage is not finished


@pytest.fixture
def unfinished(run):
    """The run as it would be with a second stage that has saved a checkpoint, and a third that has not begun."""
    values = json.loads((run / "config.json").read_text())
    (stage,) = values["stages"]
    values["stages"] = [stage, {**stage, "name": "second"}, {**stage, "name": "third"}]
    (run / "config.json").write_text(json.dumps(values))
    (run / manifest.FILE).unlink()
    shutil.copytree(run / "instruct", run / "second")
    (run / "second" / "result.json").unlink()
    return run


def test_the_stage_that_is_used_of_an_unfinished_run_is_said_once(unfinished, capsys):
    found = open_source(str(unfinished), "SRC")
    assert found.name == f"{unfinished}/instruct/checkpoints/{STEPS}" and found.stages == ("instruct",)
    open_source(str(unfinished), "SRC")
    assert capsys.readouterr().err == (
        f"{unfinished}: this run is unfinished (second, third not finished); its last finished stage, instruct, is "
        f"used; to use the newest checkpoint of another stage, give {unfinished}/second\n"
    )
    shutil.rmtree(unfinished / "second")
    open_source(str(unfinished), "SRC")
    assert capsys.readouterr().err.endswith(f" instruct, is used; name a stage as {unfinished}/STAGE\n")


def test_nothing_is_said_of_a_stage_that_was_named_or_a_finished_run(unfinished, finished, capsys):
    assert open_source(str(unfinished / "second"), "SRC").stages == ("instruct", "second")
    open_source(str(finished), "SRC")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("stage", "trained"), [("", "instruct"), ("/second", "instruct, second")])
def test_the_card_says_which_stage_of_an_unfinished_run_it_is(unfinished, tmp_path, stage, trained):
    write.export_checkpoint(f"{unfinished}{stage}", tmp_path / "out", Options(verify=False))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Stages: {trained}.\n" in card
    assert "The run was unfinished when this was exported (second, third not finished)." in card
    assert f"The weights are those of stage {trained.split()[-1]}, step {STEPS}." in card


def test_the_card_of_a_finished_run_says_nothing_of_that(finished, tmp_path):
    write.export_checkpoint(str(finished), tmp_path / "out", Options(verify=False))
    assert "unfinished" not in (tmp_path / "out" / "README.md").read_text()
