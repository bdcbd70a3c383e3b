"""The package as installed: a wheel in another environment, outside the source tree, trains, answers and exports."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.recipes import ROOT, environment

pytestmark = pytest.mark.slow

OVERRIDES = [
    *(f"--config.data.embedded.{name}=40" for name in ("train_arrangements", "train_clips", "heldout_clips")),
    *(f"--config.stages[{stage}].steps=2" for stage in range(3)),
    "--config.tensorboard=False",
    "--config.data.workers=0",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []  # else pip fetches hatchling
    command = [sys.executable, "-m", "pip", "wheel", ".", "-q", "--no-deps", *isolation, f"--wheel-dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Python of a new environment that holds the wheel alone and reads the other packages from this one's."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=300)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=300)
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A folder in a .pth file comes after the environment's own packages, and its .pth files are not read: an editable
    # installation of the source tree stays out.
    (own / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return python


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty folder to work in."""
    return tmp_path_factory.mktemp("elsewhere")


def run(python: Path, place: Path, *arguments: str) -> str:
    clean = {key: value for key, value in environment(place / "data").items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-m", *arguments], cwd=place, env=clean, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (file for file in (ROOT / "vlvm_jax").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert names == {str(file.relative_to(ROOT)) for file in files}
    assert "vlvm_jax/recipes/ftfv.py" in names and any(name.endswith(".ttf") for name in names)


def test_it_trains_a_recipe_by_name_answers_and_exports(installed, place):
    where = "import vlvm_jax, vlvm_jax.recipes.ftfv as recipe; print(vlvm_jax.__file__, recipe.__file__)"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run([installed, "-c", where], cwd=place, env=clean, capture_output=True, text=True, timeout=120)
    assert all(Path(file).is_relative_to(installed.parents[1]) for file in found.stdout.split()), found
    assert "vlvm_jax 0" in run(installed, place, "vlvm_jax", "--version")

    run(installed, place, "vlvm_jax.train", "--config=ftfv", *OVERRIDES)
    workdir = place / "runs" / "ftfv-tiny-S1"
    assert [stage["name"] for stage in json.loads((workdir / "summary.json").read_text())["stages"]] == [
        "align", "pretrain", "instruct",
    ]  # fmt: skip
    clip = next((place / "data").glob("shapes-*/media/heldout_clips/*.mp4"))
    answer = run(
        installed, place, "vlvm_jax.generate", f"--checkpoint={workdir}", f"--video={clip}", "--prompt=what ?",
        "--max_new_tokens=4", "--json",
    )  # fmt: skip
    assert json.loads(answer)["visual_tokens"] == 72
    run(installed, place, "vlvm_jax.convert", "export", str(workdir), "exported")
    assert (place / "exported" / "model.safetensors").is_file() and (place / "exported" / "config.json").is_file()
