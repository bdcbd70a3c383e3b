"""What holds of all files in launch/: clean shell, one table of accelerator types, a README that matches both."""

import csv
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/**/*.sh"), *ROOT.glob(".ci/**/*.sh"), ROOT / ".ci/run"])
with (ROOT / "launch/accelerators.tsv").open() as file:
    TYPES = list(csv.DictReader(file, delimiter="\t"))


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "no shellcheck beside the interpreter or on the PATH: pip install -e '.[test]'"
    # SC1091: .ci/run sources an environment that it makes itself.
    done = subprocess.run(
        [shellcheck, "--external-sources", "--exclude=SC1091", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_only_commands_are_executable(script):
    first, *rest = script.read_text().splitlines()
    if first == "#!/usr/bin/env bash":
        assert "set -euo pipefail" in rest
        assert os.access(script, os.X_OK)
    else:
        assert first == "# shellcheck shell=bash"
        assert not os.access(script, os.X_OK)


@pytest.mark.parametrize("row", TYPES, ids=lambda row: row["type"])
def test_the_table_of_types_adds_up(row):
    family, _, number = row["type"].rpartition("-")
    chips, hosts, chips_per_host = (int(row[key]) for key in ("chips", "hosts", "chips_per_host"))
    assert int(number) == chips * (2 if family in ("v4", "v5p") else 1)  # those count TensorCores
    assert math.prod(map(int, row["topology"].split("x"))) == chips == hosts * chips_per_host
    assert row["topology"].count("x") == (2 if family in ("v4", "v5p") else 1)
    assert row["machine_type"].endswith(f"-{chips_per_host}t")


def test_the_readme_shows_the_table():
    readme = (ROOT / "launch/README.md").read_text()
    line = "| `{type}` | {chips} | {hosts} | {chips_per_host} | {topology} | `{gke_accelerator}` | `{machine_type}` |"
    rows = [line.format(**row) for row in TYPES]
    assert "\n".join(rows) in readme
