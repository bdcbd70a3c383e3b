"""The recipe of `support.small`: in this process, and by the command."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support import small as recipe
from support import xla
from vlvm_jax.config import Config, build

ROOT = Path(__file__).parents[2]
SMALL = "tests/support/small.py"


def small(arg: str = "tiny,scale=0.006", **changes) -> Config:
    """The recipe with few steps; `changes` are top-level keys of the config."""
    config = recipe.get_config(arg)
    config.data.workers = 0
    config.tensorboard = False
    for key, value in changes.items():
        config[key] = value
    return build(Config, config)


def command(workdir: Path, *extra: str, arg: str = "tiny,scale=0.006") -> list[str]:
    return [
        sys.executable, "-m", "vlvm_jax.train", f"--config={SMALL}:{arg}", f"--workdir={workdir}",
        "--config.tensorboard=False", *extra,
    ]  # fmt: skip


def environment(data: Path, devices: int = 1) -> dict[str, str]:
    """For a child process: its data set, its number of devices, no colours."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "VLVM_JAX_DATA": str(data),
        "XLA_FLAGS": xla.flags(devices),
        "JAX_PLATFORMS": "cpu",
        "NO_COLOR": "1",
    }


def errors_in(stderr: str) -> list[str]:
    """The lines of a command's stderr without its progress, "starting ..." and "starting ... 10 s"."""
    return [line for line in stderr.splitlines() if not re.search(r" \.\.\.( \d+ s)?$", line)]


def train(workdir: Path, data: Path, *extra: str, arg: str = "tiny,scale=0.006", devices: int = 1):
    """Runs the command to its end and returns the finished process with its output."""
    return subprocess.run(
        command(workdir, *extra, arg=arg), cwd=ROOT, env=environment(data, devices), capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
