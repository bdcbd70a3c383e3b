"""What a run writes about itself: tables before and after it, `run_card.json`, `summary.json` and `summary.png`."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from rich.table import Table

from vlvm_jax import config as config_lib
from vlvm_jax import json_text, run_card, storage
from vlvm_jax import pictures as pictures_lib
from vlvm_jax.console import number_of, say, show_table
from vlvm_jax.models.params import Model
from vlvm_jax.parallel import processes
from vlvm_jax.pictures import Picture
from vlvm_jax.training.plan import RunPlan

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_NAME = 40  # characters of a stage's or a question type's name


def write_run_card(plan: RunPlan, workdir: epath.Path) -> None:
    """What would be needed to repeat the run, beside its result."""
    if not processes.primary():
        return
    config, prepared = plan.config, plan.stages
    card = {
        "config": config.name,
        "config_hash": config_lib.fingerprint(config),
        **run_card.environment(),
        "seeds": {"model": config.seed, **{p.stage.name: p.stage.seed for p in prepared}},
        "data": {p.stage.name: {"records": len(p.records), "hash": p.records.digest()[:16]} for p in prepared},
    }
    storage.write_text(os.fspath(workdir / run_card.FILE), json_text.readable(card, indent=2))


def print_plan(plan: RunPlan) -> None:
    """What will be trained, on what, before anything starts."""
    config, prepared = plan.config, plan.stages
    adapter = Model(config.model).adapter
    patches = config.model.vision.num_patches
    parts = config.stages or config.evals
    frames = max(part.frames_per_video for part in parts)
    if prepared:
        _print_stages_to_come(plan)
    in_clip = adapter.num_video_tokens(frames)
    say(
        f"tokens per frame: {patches} -> {in_clip / frames:g} in clips ({frames} frames: {in_clip} visual tokens), "
        f"{adapter.num_image_tokens()} for an image"
    )
    for note in config.notes:
        say(note)


def _print_stages_to_come(plan: RunPlan) -> None:
    config, prepared = plan.config, plan.stages
    table = Table(title=f"{config.name}: {number_of(len(prepared), 'stage')}", title_justify="left")
    for column in ("stage", "records", "steps", "rows", "trains", "parameters", "frozen"):
        words = column in ("stage", "trains")
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for part in prepared:
        sizes = {
            path: int(np.prod(a.shape)) for path, a in Model(config.model, part.partition.splits).abstract().items()
        }
        trained = sum(size for path, size in sizes.items() if path in part.partition.rates)
        trains = "\n".join(f"{pattern} at {rate:g}" for pattern, rate in part.stage.trainable)
        mixed = "\n".join(f"{count:,} {kind}" for kind, count in part.records.kind_counts.items() if count)
        table.add_row(
            part.stage.name,
            mixed,
            f"{part.num_steps:,}",
            str(part.stage.batch_size),
            trains,
            f"{trained:,}",
            f"{sum(sizes.values()) - trained:,}",
        )
    show_table(table)


def write(
    workdir: epath.Path,
    summary: Mapping[str, Any],
    losses: Mapping[str, list[tuple[int, float]]],
    pictures: Sequence[Picture],
) -> None:
    """Prints the closing tables and writes `summary.json` and `summary.png`."""
    storage.write_text(os.fspath(workdir / "summary.json"), json_text.readable(summary, indent=2))
    png, written = io.BytesIO(), _written(summary, losses, pictures)
    with written.fonts():
        draw(summary, losses, pictures, written).savefig(png, format="png", dpi=110, bbox_inches="tight")
    storage.write_bytes(os.fspath(workdir / "summary.png"), png.getvalue())
    plt.close("all")
    if summary["stages"]:
        print_stages(summary)
    for name, result in summary["eval"].items():
        print_eval(name, result)
    if summary["stages"]:
        goodput = summary["goodput"]
        say(
            f"goodput {goodput['goodput']:.0%}: {goodput['productive']:.0f} s of steps in {goodput['wall']:.0f} s of "
            "all processes that worked here"
        )
    if summary["skipped"]:
        say("skipped samples: " + ", ".join(f"{count} {cause}" for cause, count in summary["skipped"].items()))
    if summary["cut_prompts"]:
        cut = number_of(summary["cut_prompts"], "question")
        say(f"cut to the length of CLIP's text tower: {cut}; the samples were used")
    if written.note:
        say(f"summary.png: {written.note}")
    say(f"written: {workdir / 'summary.json'}, {workdir / 'summary.png'}, {workdir / 'metrics.jsonl'}")


def print_stages(summary: Mapping[str, Any]) -> None:
    table = Table(title="stages", title_justify="left")
    for column in ("stage", "steps", "first loss", "last loss", "seconds", "compilations"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in summary["stages"]:
        table.add_row(
            stage["name"],
            f"{stage['steps']:,}",
            _number(stage["first_loss"]),
            _number(stage["last_loss"]),
            f"{stage['seconds']:.0f}",
            str(stage["compilations"]),
        )
    show_table(table)


def print_eval(name: str, result: Mapping[str, Any]) -> None:
    controls = list(result["controls"])
    table = Table(title=f"held out: {name}, {number_of(result['questions'], 'question')}", title_justify="left")
    table.add_column("question type")
    for column in ("accuracy", *(control.replace("_", " ") for control in controls)):
        table.add_column(column, justify="right")
    for kind, accuracy in result["by_type"].items():
        table.add_row(
            kind, f"{accuracy:.2f}", *(_number(result["controls"][c]["by_type"].get(kind), 2) for c in controls)
        )
    table.add_section()
    table.add_row("all", f"{result['accuracy']:.2f}", *(f"{result['controls'][c]['accuracy']:.2f}" for c in controls))
    show_table(table)


def _written(
    summary: Mapping[str, Any], losses: Mapping[str, Any], pictures: Sequence[Picture]
) -> pictures_lib.PictureText:
    """The user's texts in the picture, prepared for drawing."""
    kinds = [kind for result in summary["eval"].values() for kind in result["by_type"]]
    return pictures_lib.PictureText([*losses, *summary["eval"], *kinds, *(picture.title for picture in pictures)])


def draw(
    summary: Mapping[str, Any],
    losses: Mapping[str, list[tuple[int, float]]],
    pictures: Sequence[Picture],
    written: pictures_lib.PictureText,
):
    """Loss per stage, accuracy by type against its controls, sampled frames with the sampler's weights."""
    evals = list(summary["eval"].items())
    heights = [3.0] * bool(losses) + [3.2] * bool(evals) + [1.5] * len(pictures)
    figure = plt.figure(figsize=(12, sum(heights)), layout="constrained")
    panels: list[Any] = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if losses:
        validated = {stage["name"]: stage.get("validation", ()) for stage in summary["stages"]}
        _draw_losses(panels.pop(0), losses, validated, written)
    if evals:
        axes = panels.pop(0).subplots(1, len(evals), squeeze=False)[0]
        for axis, (name, result) in zip(axes, evals, strict=True):
            _draw_accuracy(axis, name, result, written)
    for panel, picture in zip(panels, pictures, strict=True):
        _draw_frames(panel, picture, written)
    return figure


def _draw_losses(
    panel: Any,
    losses: Mapping[str, list[tuple[int, float]]],
    validated: Mapping[str, Sequence[Mapping[str, Any]]],
    written: pictures_lib.PictureText,
) -> None:
    axes = np.atleast_1d(panel.subplots(1, len(losses), sharey=True))
    for axis, (name, curve) in zip(axes, losses.items(), strict=True):
        steps, values = zip(*curve, strict=True)
        axis.plot(steps, values, linewidth=0.8, label="training")
        if entries := validated.get(name):
            places = [entry["step"] for entry in entries]
            axis.plot(places, [entry["loss"] for entry in entries], "o-", markersize=3, label="validation")
            axis.legend(fontsize=7)
        axis.set(title=written(name, _NAME), xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss")


def _draw_accuracy(axis, name: str, result: Mapping[str, Any], written: pictures_lib.PictureText) -> None:
    kinds = list(result["by_type"])
    series = {"model": result["by_type"], **{c.replace("_", " "): v["by_type"] for c, v in result["controls"].items()}}
    width = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        places = np.arange(len(kinds)) + (number - (len(series) - 1) / 2) * width
        axis.bar(places, [values.get(kind, 0) for kind in kinds], width, label=label)
    axis.set_xticks(np.arange(len(kinds)), [written(kind.replace("_", "/"), _NAME) for kind in kinds], rotation=20)
    # The legend stands above the bars.
    axis.set(title=f"held-out {written(name, _NAME)}", ylim=(0, 1.2), ylabel="accuracy")
    axis.legend(fontsize=7, ncols=4, loc="upper right")


def _draw_frames(panel: Any, picture: Picture, written: pictures_lib.PictureText) -> None:
    panel.suptitle(written(picture.title), fontsize=9)
    axes = np.atleast_1d(panel.subplots(1, len(picture.frames)))
    for index, axis in enumerate(axes):
        axis.imshow(picture.frames[index])
        if picture.weights is not None:
            height, width = picture.frames.shape[1:3]
            axis.imshow(
                picture.weights[index], extent=(0, width, height, 0), cmap="magma", alpha=0.45, interpolation="nearest"
            )
        axis.set_axis_off()


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
