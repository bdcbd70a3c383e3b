"""Whether a change left the numbers alone: losses of the tiny recipes and compiler reports, before and after.

    python -m benchmarks.same_numbers record before.json    # in a checkout of the code before
    python -m benchmarks.same_numbers record after.json     # in one of the code after, on the same machine
    python -m benchmarks.same_numbers compare before.json after.json

`record` trains the first 50 steps of every stage of the three tiny recipes that have stages (seed 0, a small embedded
data set) and compiles them for a TPU slice. `compare` demands equal losses, to the last bit, and equal bytes.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = ("ftfv", "red_villm", "t2vid")
COMPILED = (
    ("configs/ftfv.py:tiny", "v5e-4"),
    ("configs/red_villm.py:tiny", "v5e-4"),
    ("configs/t2vid.py:tiny", "v5e-4"),
)
STEPS = 50
FILES = 300  # at most, of each kind of embedded record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    record_parser = commands.add_parser("record", help="train and compile, and write what came out")
    record_parser.add_argument("file", type=Path, help="the JSON file to write")
    compare_parser = commands.add_parser("compare", help="compare two files that record wrote")
    compare_parser.add_argument("before", type=Path)
    compare_parser.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "record":
        args.file.write_text(json.dumps(record(), indent=1) + "\n")
        return
    differences = compare(json.loads(args.before.read_text()), json.loads(args.after.read_text()))
    print("\n".join(differences) or "all numbers are equal")
    sys.exit(bool(differences))


def record() -> dict[str, dict]:
    losses = {}
    for recipe in RECIPES:
        losses |= recipe_losses(recipe)
    compiled = {f"{config} on {topology}": compile_report(config, topology) for config, topology in COMPILED}
    return {"losses": losses, "compiled": compiled}


def recipe_losses(recipe: str) -> dict[str, list[float]]:
    """Losses of the first `STEPS` steps of every stage, by "recipe/stage"."""
    config = importlib.import_module(f"configs.{recipe}").get_config("tiny")
    flags = []
    for number, stage in enumerate(config.stages):
        steps = min(STEPS, stage.get("steps") or STEPS)
        flags += [f"--config.stages[{number}].steps={steps}", f"--config.stages[{number}].log_every=1"]
    flags += [f"--config.evals[{number}].limit=8" for number in range(len(config.evals))]
    flags += [
        f"--config.data.embedded.{key}={FILES}"
        for key, value in dict(config.data.embedded).items()
        if key.startswith(("train_", "heldout_")) and value > FILES
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "vlvm_jax.train", f"--config=configs/{recipe}.py:tiny", f"--workdir={folder}/run", *flags]
        subprocess.run([sys.executable, *command], check=True)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    losses: dict[str, list[float]] = {}
    for line in lines:
        if "loss" in line:
            losses.setdefault(f"{recipe}/{line['stage']}", []).append(line["loss"])
    return losses


def compile_report(config: str, topology: str) -> list[dict]:
    """The compiler's own figures of every stage."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = ["-m", "vlvm_jax.compile", f"--config={config}", f"--topology={topology}", f"--json={output}"]
        subprocess.run([sys.executable, *command], check=True)
        return json.loads(output.read_text())


def compare(before: dict[str, dict], after: dict[str, dict]) -> list[str]:
    """One line for each difference."""
    differences = []
    for name in sorted({*before["losses"], *after["losses"]}):
        old, new = before["losses"].get(name), after["losses"].get(name)
        if old is None or new is None:
            differences.append(f"{name}: only {'after' if old is None else 'before'}")
        elif old != new:
            step = next(i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1])
            differences.append(f"{name}: the losses differ from step {step + 1} on: {old[step]!r}, {new[step]!r}")
    for name in sorted({*before["compiled"], *after["compiled"]}):
        if before["compiled"].get(name) != after["compiled"].get(name):
            differences.append(f"{name}: {before['compiled'].get(name)}, {after['compiled'].get(name)}")
    return differences


if __name__ == "__main__":
    main()
