"""Whether the question's guidance pays: Free Video-LLM against uniform frames, SlowFast, IG-VLM and FreeVA.

usage: python -m benchmarks.free_video_llm [--workdir DIR] [--seeds 0 1 2] [--only ARM ...]

Every setting asks the models in the package, without training, the same held-out questions about clips in which a thing
shows in few frames (`rare`) or small in a corner (`small`). A seed draws other clips. Guided settings also answer with
another question's words to guide them. Every result is a file of its own in DIR/results; what is done is not run again.
Prints the table of docs/free_video_llm.md and draws DIR/free_video_llm.png.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.arms import Results, arguments
from benchmarks.red_villm import spread
from configs import free_video_llm
from configs.free_video_llm import BUDGETS, FRAMES, budget
from vlvm_jax.config import Config, build
from vlvm_jax.models.params import Model
from vlvm_jax.stop import StopSignal

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FAST = {"num_frames": "all", "grid": [1, 1]}
OFF = {"num_frames": 0}
LENGTH = 376  # tokens: SlowFast's 352 and a question
# Name -> the adapter's options that differ from the recipe's; slow_fast's where there is a slow path.
SETTINGS: dict[str, dict[str, Any]] = {
    "guided 513": {**BUDGETS["513"], "fast_path": OFF},
    "uniform 513": {**budget(0, 3, 0.6), "fast_path": OFF, "roi_box": "centre"},
    "guided 1026": {**BUDGETS["1026"], "fast_path": OFF},
    "uniform 1026": {**budget(0, 6, 0.6), "fast_path": OFF, "roi_box": "centre"},
    "guided 2648": {**BUDGETS["2648"], "fast_path": FAST},
    "uniform 2648": {**budget(0, 8, 0.8), "fast_path": FAST, "roi_box": "centre"},
    "guided 2648, corrected boxes": {**BUDGETS["2648"], "fast_path": FAST, "roi_layout": "corrected"},
    "guided 2648, random boxes": {**BUDGETS["2648"], "fast_path": FAST, "roi_box": "random"},
    "guided 2648, no fast frames": {**BUDGETS["2648"], "fast_path": OFF},
    "random frames 2648": {**BUDGETS["2648"], "fast_path": FAST, "frame_select": "random"},
    "guided, alpha 0.25": {**budget(3, 0, 0.25), "fast_path": OFF},
    "guided, alpha 0.25, corrected boxes": {**budget(3, 0, 0.25), "fast_path": OFF, "roi_layout": "corrected"},
    "guided, alpha 0.25, random boxes": {
        **budget(3, 0, 0.25),
        "fast_path": OFF,
        "roi_layout": "corrected",
        "roi_box": "random",
    },
    "SlowFast": {"slow_path": {"num_frames": 10}, "fast_path": FAST},
    "SlowFast, no fast frames": {"slow_path": {"num_frames": 10}, "fast_path": OFF},
    "FreeVA D1": {"slow_path": {"num_frames": "all", "pool": "concat"}, "fast_path": OFF},
    "FreeVA D2": {"slow_path": {"num_frames": "all"}, "fast_path": OFF},
    "IG-VLM": {},
}
TAKEN = {"FreeVA D1": 4, "FreeVA D2": 8, "IG-VLM": 6}  # frames of a clip, where not all
FAMILIES = {"guided": "guided", "uniform": "uniform"}
GROUPS = ("rare", "small")


def setting(name: str, seed: int) -> Config:
    """The tiny recipe with a setting's adapter, on the clips of that seed."""
    config = free_video_llm.get_config(f"tiny,seed={seed}")
    config.tensorboard = False
    held_out, options = config.evals[0], dict(SETTINGS[name])
    held_out.controls = ["shuffled_prompt"] if name.startswith("guided") else []
    if name == "guided 2648":
        held_out.controls = ["blank_video", "shuffled_prompt"]
    if name in TAKEN:
        held_out.frames = TAKEN[name]
    if "slow_path" in options or name == "IG-VLM":
        config.model.adapter.name = "frames" if name == "IG-VLM" else "slow_fast"
        config.model.adapter.options = options
        config.data.prompt_tokenizer = config.model.init_from.clip = None
    else:
        config.model.adapter.options = {**config.model.adapter.options.to_dict(), **options}
    if name == "IG-VLM":
        config.data.update({"clips": "grid", "frame_sampling": "segment_start", "frame_fit": "squash"})
    held_out.length = LENGTH
    return build(Config, config)


def main() -> None:
    args = arguments(__doc__, "free_video_llm", list(SETTINGS)).parse_args()
    workdir = Path(args.workdir).expanduser().resolve()
    results = Results(workdir)
    with StopSignal() as stop:
        for seed in args.seeds:
            for name in args.only:
                results.once(name, seed, setting(name, seed), stop)
    by_setting = results.by_arm(list(SETTINGS))
    runs = {name: [run["eval"]["searches"] for run in setting_runs] for name, setting_runs in by_setting.items()}
    print(table(runs))
    draw(runs, workdir / "free_video_llm.png")


def groups(run: dict[str, Any]) -> dict[str, float]:
    """Accuracy over all questions and by kind of clip."""
    by_type = run["by_type"]
    accuracies = {
        group: float(np.mean([value for kind, value in by_type.items() if kind.startswith(group)])) for group in GROUPS
    }
    return {"all": run["accuracy"], **accuracies}


def tokens(name: str) -> int:
    config = setting(name, 0)
    adapter = Model(config.model).adapter
    return adapter.num_image_tokens() if name == "IG-VLM" else adapter.num_video_tokens(TAKEN.get(name, FRAMES))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| setting | visual tokens | all | rare | small | seeds |", "|---|---:|---:|---:|---:|---:|"]

    def row(name: str, count: str, setting_runs: list[dict[str, Any]]) -> str:
        cells = [spread([groups(run)[group] for run in setting_runs]) for group in ("all", *GROUPS)]
        return f"| {name} | {count} | {' | '.join(cells)} | {len(setting_runs)} |"

    for name, setting_runs in runs.items():
        lines.append(row(name, str(tokens(name)), setting_runs))
        for control in setting_runs[0]["controls"]:
            if control != "majority":
                given = [run["controls"][control] for run in setting_runs]
                lines.append(row(f"{name}, {control.replace('_', ' ')}", "", given))
    return "\n".join(lines)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Accuracy over visual tokens, by kind of clip."""
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for panel, group in zip(panels, GROUPS, strict=True):
        for family in FAMILIES:
            names = [name for name in runs if name.startswith(family) and "," not in name]
            values = [[groups(run)[group] for run in runs[name]] for name in names]
            panel.errorbar(
                [tokens(name) for name in names],
                [np.mean(v) for v in values],
                [np.std(v) for v in values],
                marker="o",
                capsize=3,
                label=FAMILIES[family],
            )
        for name in ("SlowFast", "FreeVA D1", "FreeVA D2", "IG-VLM", "random frames 2648"):
            if name in runs:
                values = [groups(run)[group] for run in runs[name]]
                panel.errorbar(tokens(name), np.mean(values), np.std(values), marker="s", capsize=3, label=name)
        panel.set(title=group, xlabel="visual tokens", ylim=(0, 1.05))
    panels[0].set_ylabel("held-out accuracy")
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
