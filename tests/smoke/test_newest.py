"""Other releases of Python, JAX, Flax, PyAV and Pillow give what the reference environment gave.

`.ci/smoke` runs these tests; they need the files of `write_reference.py` (`VLVM_JAX_REFERENCE`) and no torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.recipes import ROOT, environment

from vlvm_jax.inference.answering import Decoding
from vlvm_jax.inference.loading import load

pytestmark = pytest.mark.smoke
TOLERANCE = 1e-4  # of the largest logit
LOSS_TOLERANCE = 1e-3  # relative; for the first steps, before differences in rounding have grown
COMPARED_STEPS = 20


@pytest.fixture(scope="module")
def reference() -> Path:
    if "VLVM_JAX_REFERENCE" not in os.environ:
        pytest.fail("VLVM_JAX_REFERENCE is not set: these tests are run by .ci/smoke")
    return Path(os.environ["VLVM_JAX_REFERENCE"])


@pytest.fixture(scope="module")
def run(tmp_path_factory, reference) -> Path:
    """The training command of the reference run, in this environment."""
    folder = tmp_path_factory.mktemp("smoke")
    command("vlvm_jax.train", *cases.TRAINING, f"--workdir={folder}/run", data=folder / "data")
    return folder / "run"


def command(module: str, *arguments: str, data: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment(data), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_here_is_the_reference_environment(reference):
    assert sys.version_info >= (3, 12)
    with pytest.raises(ModuleNotFoundError):
        import torch  # noqa: F401


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_logits_and_answers_are_those_of_pytorch(reference, family):
    expected = np.load(reference / f"{family}.npz")
    answering = load(str(reference / family), frames=cases.FRAMES)
    answering.prompts.decode = lambda ids: " ".join(map(str, ids))
    for kind, request in cases.requests(reference).items():
        sample = cases.sample_of(answering, request)
        np.testing.assert_array_equal(sample["token_ids"], expected[f"{kind}/ids"])
        # Releases of FFmpeg and Pillow may round a colour differently.
        difference = np.abs(sample["frames"].astype(int) - expected[f"{kind}/frames"].astype(int))
        assert difference.max(initial=0) <= 2, kind
        theirs = expected[f"{kind}/logits"]
        ours = cases.logits(answering, sample | {"frames": expected[f"{kind}/frames"]})
        assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), kind
        with jax.default_matmul_precision("highest"):
            (answer,) = answering.answer([request], Decoding(max_new_tokens=cases.NEW_TOKENS))
        assert answer.text == " ".join(map(str, expected[f"{kind}/said"])), kind


def test_training_has_the_same_losses(reference, run):
    ours, theirs = losses(run), losses(reference / "run")
    assert len(theirs) >= COMPARED_STEPS
    np.testing.assert_allclose(ours[:COMPARED_STEPS], theirs[:COMPARED_STEPS], rtol=LOSS_TOLERANCE)
    assert len(ours) == len(theirs) and json.loads((run / "summary.json").read_text())


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_trained_model_answers(reference, run):
    said = command(
        "vlvm_jax.generate", f"--checkpoint={run}", f"--video={reference}/clip.mp4", "--prompt=how many shapes ?",
        "--json", data=run.parent / "data",
    )  # fmt: skip
    assert json.loads(said)["new_tokens"] > 0


def test_the_reference_run_exports_to_the_same_files(reference, tmp_path):
    """A checkpoint that other releases of Orbax and JAX wrote is read here."""
    command("vlvm_jax.convert", "export", str(reference / "run"), str(tmp_path / "export"), data=tmp_path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "export", reference / "export"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].tobytes() == tensor.tobytes(), name
    configs = [
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "export", reference / "export")
    ]
    assert configs[0] == configs[1]


def test_a_run_of_this_environment_exports(run, tmp_path):
    command("vlvm_jax.convert", "export", str(run), str(tmp_path / "export"), data=tmp_path)
    assert load_file(tmp_path / "export" / "model.safetensors")
