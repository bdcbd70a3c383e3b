"""What a temporal branch brings: arms of the RED-VILLM recipe against each other, and how much video they need.

usage: python -m benchmarks.red_villm [--workdir DIR] [--steps N] [--seeds 0 1 2] [--only ARM ...]

Every arm trains the recipe's `video` stage from the image model in the package for `--steps` steps on the same clips
and answers the held-out questions; a seed is that of training. Arms: frames one after the other (`frames`), space
tokens alone, time tokens alone, both through one connector (`shared`, Video-ChatGPT's way), both through their own
(`red_villm`), that with a random temporal connector, and with the decoder frozen; then `red_villm` on 10, 25 and 50% of
the video instructions, for as many steps. `red_villm` also answers the controls. Every result is a file of its own in
DIR/results; what is done is not run again. Prints the tables of docs/red_villm.md and
draws DIR/red_villm.png.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.arms import Results, arguments
from configs import red_villm
from vlvm_jax.config import Config, build
from vlvm_jax.data.embedded.events import TEMPORAL_TYPES
from vlvm_jax.models.params import Model
from vlvm_jax.recipes._common import CLIP_TEXT, PATCHES, QUESTION
from vlvm_jax.stop import StopSignal

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ARMS = {
    "frames": "",
    "space_only": "join=space_only",
    "time_only": "join=time_only",
    "shared": "temporal=shared",
    "red_villm": "",
    "random init": "init=random",
    "decoder frozen": "train=aligners",
    "10%": "video_fraction=0.1",
    "25%": "video_fraction=0.25",
    "50%": "video_fraction=0.5",
}
STUDY = ("10%", "25%", "50%", "red_villm")


def setting(arm: str, seed: int, steps: int) -> Config:
    """The tiny recipe of one arm."""
    config = red_villm.get_config(f"tiny,seed={seed},{ARMS[arm]}".rstrip(","))
    config.tensorboard = False
    config.stages[-1].steps = steps
    if arm == "frames":
        config.model.adapter.name, config.model.adapter.options = "frames", {}
        config.stages[-1].copied = []
        config.stages[-1].length = 2 * (8 * PATCHES + CLIP_TEXT)
        config.evals[0].length = 8 * PATCHES + QUESTION
    if arm != "red_villm":
        config.evals[0].controls = []
    return build(Config, config)


def main() -> None:
    parser = arguments(__doc__, "red_villm", list(ARMS))
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    workdir = Path(args.workdir).expanduser().resolve()
    results = Results(workdir, f"-{args.steps}")
    with StopSignal() as stop:
        for seed in args.seeds:
            for arm in args.only:
                results.once(arm, seed, setting(arm, seed, args.steps), stop)
    runs = {arm: [run["eval"]["videos"] for run in arm_runs] for arm, arm_runs in results.by_arm(list(ARMS)).items()}
    print(table(runs))
    draw({arm: runs.get(arm, []) for arm in ARMS}, workdir / "red_villm.png")


def by_type(run: dict[str, Any]) -> dict[str, float]:
    """Accuracy by type and over groups of types."""
    accuracies = run["by_type"]
    groups = {
        "temporal": [value for kind, value in accuracies.items() if kind in TEMPORAL_TYPES],
        "static": [value for kind, value in accuracies.items() if kind not in TEMPORAL_TYPES],
    }
    return {"all": run["accuracy"], **{name: float(np.mean(values)) for name, values in groups.items()}, **accuracies}


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values):.2f}"


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One row an arm, one column a type; then each control of `red_villm`."""
    types = list(by_type(next(iter(runs.values()))[0]))
    lines = [
        f"| arm | visual tokens | {' | '.join(types)} | seeds |",
        "|---|---:|" + "---:|" * (len(types) + 1),
    ]
    for arm, arm_runs in runs.items():
        tokens = Model(setting(arm, 0, 1).model).adapter.num_video_tokens(8)
        cells = [spread([by_type(run)[kind] for run in arm_runs]) for kind in types]
        lines.append(f"| {arm} | {tokens} | {' | '.join(cells)} | {len(arm_runs)} |")
    for control in runs.get("red_villm", [{"controls": {}}])[0]["controls"]:
        controlled = [run["controls"][control] for run in runs["red_villm"]]
        cells = [spread([by_type(run)[kind] for run in controlled]) for kind in types]
        lines.append(f"| red_villm, {control.replace('_', ' ')} | | {' | '.join(cells)} | {len(controlled)} |")
    return "\n".join(lines)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Arms by group of types; where there are runs on shares of the video instructions, accuracy over the share."""
    shares = {"10%": 10, "25%": 25, "50%": 50, "red_villm": 100}
    arms = [arm for arm in ARMS if runs[arm] and arm not in STUDY[:-1]]
    studied = [arm for arm in STUDY if runs[arm]]
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    widths = (max(1, len(arms)), 3 * (len(studied) > 1))
    panels = figure.subplots(1, 2 if widths[1] else 1, squeeze=False, width_ratios=widths[: 1 + (widths[1] > 0)])[0]
    for number, group in enumerate(("temporal", "static")):
        values = [[by_type(run)[group] for run in runs[arm]] for arm in arms]
        where = np.arange(len(arms)) + 0.4 * number - 0.2
        panels[0].bar(
            where, [np.mean(v) for v in values], 0.38, yerr=[np.std(v) for v in values], label=f"{group} questions"
        )
        for place, of_arm in zip(where, values, strict=True):
            panels[0].plot([place] * len(of_arm), of_arm, ".", color="black", markersize=4)
        if len(studied) > 1:
            points = [[by_type(run)[group] for run in runs[arm]] for arm in studied]
            panels[1].errorbar(
                [shares[arm] for arm in studied],
                [np.mean(v) for v in points],
                [np.std(v) for v in points],
                marker="o",
                capsize=3,
                label=group,
            )
    tokens = [Model(setting(arm, 0, 1).model).adapter.num_video_tokens(8) for arm in arms]
    names = [f"{arm}\n{count} tokens" for arm, count in zip(arms, tokens, strict=True)]
    panels[0].set_xticks(range(len(arms)), names, fontsize=8)
    panels[0].set(ylim=(0, 1.15), ylabel="held-out accuracy")
    panels[0].legend(loc="upper left", ncols=2)
    if len(studied) > 1:
        panels[1].set(xlabel="% of the video instructions, equal steps", ylim=(0, 1.15))
        panels[1].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
