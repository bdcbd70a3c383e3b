"""What pages of text bring to a video model: arms of the T2Vid recipe against each other.

usage: python -m benchmarks.t2vid [--workdir DIR] [--seeds 0 1 2] [--only ARM ...] [--epochs N]

Every arm trains the recipe's `video` stage from the image model in the package, with the same optimizer, rates and
epochs; a seed is that of training. What differs between arms is the data: all videos, or 15% as many samples: of
videos, of videos and pages (`hybrid`), of videos and the same texts as text (`pure text`). All answer questions over
held-out clips, short ones as those trained on and long ones; `zero-shot` is the model in the package, which no seed
changes.
`hybrid` also answers the controls. Every result is a file of its own in DIR/results; what is done is not run again.
Prints the tables of docs/t2vid.md and draws DIR/t2vid.png.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.arms import Results, arguments
from benchmarks.red_villm import spread
from configs import t2vid
from vlvm_jax.config import Config, build
from vlvm_jax.stop import StopSignal

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ARMS = {
    "zero-shot": "zero_shot",
    "100% video": "full_video",
    "15% video": "video_only",
    "15% hybrid": "hybrid",
    "15% pure text": "pure_text",
}
CONTROLLED = "15% hybrid"


def setting(arm: str, seed: int, epochs: float) -> Config:
    config = t2vid.get_config(f"tiny,arm={ARMS[arm]},seed={seed},epochs={epochs}")
    config.tensorboard = False
    for held_out in config.evals:
        held_out.controls = ["blank_video", "shuffled_frames"] if arm == CONTROLLED else []
    return build(Config, config)


def main() -> None:
    parser = arguments(__doc__, "t2vid", list(ARMS))
    parser.add_argument("--epochs", type=float, default=3.0)
    args = parser.parse_args()
    workdir = Path(args.workdir).expanduser().resolve()
    results = Results(workdir, f"-{args.epochs:g}")
    with StopSignal() as stop:
        for seed in args.seeds:
            for arm in args.only:
                results.once(arm, seed, setting(arm, seed, args.epochs), stop)
    runs = results.by_arm(list(ARMS))
    print(costs(runs))
    for length in ("short", "long"):
        print(f"\n{length} clips\n{table(runs, length)}")
    draw(runs, workdir / "t2vid.png")


def costs(runs: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| arm | samples | steps | seconds | short | long | seeds |", "|---|---:|---:|---:|---:|---:|---:|"]
    for arm, arm_runs in runs.items():
        trained = [stage for run in arm_runs for stage in run["stages"]]
        samples = sum(entry.count or 0 for stage in setting(arm, 0, 1.0).stages for entry in stage.data)
        steps = f"{trained[0]['steps']:,}" if trained else "-"
        seconds = f"{np.mean([stage['seconds'] for stage in trained]):.0f}" if trained else "-"
        cells = [spread([run["eval"][length]["accuracy"] for run in arm_runs]) for length in ("short", "long")]
        lines.append(f"| {arm} | {samples:,} | {steps} | {seconds} | {' | '.join(cells)} | {len(arm_runs)} |")
    return "\n".join(lines)


def table(runs: dict[str, list[dict[str, Any]]], length: str) -> str:
    """One row an arm, one column a type of question; then the controls."""
    types = list(next(iter(runs.values()))[0]["eval"][length]["by_type"])
    lines = [f"| arm | all | {' | '.join(types)} |", "|---|" + "---:|" * (len(types) + 1)]

    def row(name: str, reports: list[dict[str, Any]]) -> str:
        cells = [spread([one["accuracy"] for one in reports])]
        cells += [spread([one["by_type"][kind] for one in reports]) for kind in types]
        return f"| {name} | {' | '.join(cells)} |"

    for arm, arm_runs in runs.items():
        lines.append(row(arm, [run["eval"][length] for run in arm_runs]))
    for control in runs.get(CONTROLLED, [{"eval": {length: {"controls": {}}}}])[0]["eval"][length]["controls"]:
        control_reports = [run["eval"][length]["controls"][control] for run in runs[CONTROLLED]]
        lines.append(row(f"{CONTROLLED}, {control.replace('_', ' ')}", control_reports))
    return "\n".join(lines)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Accuracy of the arms, and over the seconds that their training took."""
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, length in enumerate(("short", "long")):
        values = [[run["eval"][length]["accuracy"] for run in arm_runs] for arm_runs in runs.values()]
        where = np.arange(len(runs)) + 0.4 * number - 0.2
        left.bar(where, [np.mean(v) for v in values], 0.38, yerr=[np.std(v) for v in values], label=f"{length} clips")
        for place, of_arm in zip(where, values, strict=True):
            left.plot([place] * len(of_arm), of_arm, ".", color="black", markersize=4)
        for arm, of_arm in zip(runs, values, strict=True):
            seconds = np.mean([sum(stage["seconds"] for stage in run["stages"]) for run in runs[arm]])
            right.errorbar(
                seconds,
                np.mean(of_arm),
                np.std(of_arm),
                marker="os"[number],
                color=f"C{list(ARMS).index(arm)}",
                capsize=3,
                label=f"{arm}, {length}",
            )
    left.set_xticks(range(len(runs)), list(runs), fontsize=8)
    left.set(ylim=(0, 1.05), ylabel="held-out accuracy")
    left.legend()
    right.set(xlabel="seconds of training", ylim=(0, 1.05))
    right.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
