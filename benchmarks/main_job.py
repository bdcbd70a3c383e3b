"""Where the time of a recipe's default command goes, from nothing: its data made fresh, no program compiled before.

usage: python -m benchmarks.main_job [--config=configs/ftfv.py] [--config.path.to.key=value ...]

Runs `vlvm_jax.train` in a process of its own with empty cache folders and prints a table: seconds by phase, the share
of a stage's time that its steps waited for data, the largest process's memory, and the held-out accuracies. Phases
begin where the command says so.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

_PHASES = (  # first match of a line of output -> the phase that the time after it belongs to
    (re.compile(r"making the embedded data set|data: "), "data"),
    (re.compile(r"eval "), "evaluation"),
    (re.compile(r"(\w+): (?:compiling|samples are loaded|opening|loading)"), "{}, compilation"),
    (re.compile(r"(\w+): (?:running|\d+/\d+)"), "{}, steps"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/ftfv.py")
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = run(args.config, overrides, Path(folder))
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
        waits = data_waits(Path(folder) / "run/metrics.jsonl")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(report(seconds, waits, memory, summary))


def run(config: str, overrides: list[str], folder: Path) -> dict[str, float]:
    """Runs the command, prints what it says and returns seconds by phase."""
    environment = {**os.environ, "VLVM_JAX_DATA": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "vlvm_jax.train", f"--config={config}", f"--workdir={folder / 'run'}", *overrides]
    seconds: defaultdict[str, float] = defaultdict(float)
    phase, before = "start", time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            now = time.monotonic()
            seconds[phase] += now - before
            phase, before = next_phase(line, phase), now
    seconds[phase] += time.monotonic() - before
    if process.returncode:
        sys.exit(process.returncode)
    return dict(seconds)


def next_phase(line: str, phase: str) -> str:
    """The phase that begins with a line of output; the same one where the line begins none."""
    for pattern, name in _PHASES:
        if found := pattern.match(line):
            return name.format(*found.groups())
    return phase


def data_waits(metrics: Path) -> dict[str, float]:
    """By stage, the mean share of the time of its steps in which they waited for data."""
    shares = defaultdict(list)
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        if "data_wait" in record:
            shares[record["stage"]].append(record["data_wait"])
    return {stage: sum(values) / len(values) for stage, values in shares.items()}


def report(seconds: dict[str, float], waits: dict[str, float], memory: float, summary: dict[str, Any]) -> str:
    lines = ["", "| phase | seconds | data wait |", "|---|---:|---:|"]
    for phase, taken in seconds.items():
        stage, _, part = phase.partition(", ")
        wait = f"{waits[stage]:.0%}" if part == "steps" and stage in waits else ""
        lines.append(f"| {phase} | {taken:.0f} | {wait} |")
    total = sum(seconds.values())
    lines += [f"| all | {total:.0f} ({int(total) // 60}:{int(total) % 60:02d}) | |", ""]
    lines.append(f"largest process {memory / 2**30:.2f} GiB; {platform.processor() or platform.machine()}, "
                 f"{os.cpu_count()} cores, jax {jax.__version__}")  # fmt: skip
    for name, result in summary["eval"].items():
        lines += [
            "",
            f"| {name} | {' | '.join(result['by_type'])} | all |",
            "|---|" + "---:|" * (len(result["by_type"]) + 1),
        ]
        for title, given in (("asked", result), *result["controls"].items()):
            cells = [f"{value:.2f}" for value in (*given["by_type"].values(), given["accuracy"])]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
