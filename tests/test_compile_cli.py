"""`python -m vlvm_jax.compile` as a user runs it."""

import json
import subprocess
import sys

import pytest
from support.recipes import ROOT, environment

pytestmark = pytest.mark.slow


def compile_(tmp_path, *flags: str):
    command = [sys.executable, "-m", "vlvm_jax.compile", "--config=configs/ftfv.py:tiny", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--topology=v5e-7"], "there is no v5e slice of 7"),
        (["--topology=v9-8"], "--topology=v9-8: expected"),
        ([], "--config and --topology are required"),
        (["--topology=v5e-8", "--stages=teach"], "--stages=teach: the config has align, pretrain"),
        (["--topology=v5e-8", "--rows=12"], "--rows=12: the mesh's data x fsdp = 8 does not divide it"),
        (["--topology=v5e-8", "--config.mesh.fsdp=3"], "the sizes must multiply to 8"),
        (["--topology=v5e-8x2", "--config.mesh.dcn_data=4"], "config.mesh.dcn_data: 4 slices asked for"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(tmp_path, flags, said):
    done = compile_(tmp_path, *flags)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line and "Traceback" not in done.stderr


def test_tables_and_figures(tmp_path):
    figures = tmp_path / "figures.json"
    done = compile_(tmp_path, "--topology=v5e-4", "--stages=align,decode", "--rows=32", f"--json={figures}")
    assert done.returncode == 0, done.stderr
    for title in ("v5e-4: 4 chips, 15.75 GiB of HBM to use each", "operations per step", "collectives per step"):
        assert title in done.stdout
    found = json.loads(figures.read_text())
    assert [stage["name"] for stage in found["stages"]] == ["align", "decode"]
    align, decode = found["stages"]
    assert align["fits"] and 0 < align["arguments"] < align["needed"] and align["batch_size"] == 32
    assert align["flops"]["backward"] > 0 == decode["flops"]["backward"]
