"""What a model is shown of a request's media: the frames with their times, and where the adapter looks in each."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlvm_jax.data.sample.assemble import Medium
from vlvm_jax.inference.answering import Answering, Retention
from vlvm_jax.inference.requests import Answer, Request

_COLUMNS = 8
_COLOURS = ("tab:orange", "tab:cyan", "tab:green", "tab:pink")  # of the paths' outlines
_SEQUENCE = ("prompt", "uniform", "fast")  # `models.adapters._frame_paths`: in which order their tokens stand
_LABEL = 7  # points


def contact_sheet(answering: Answering, request: Request, answer: Answer) -> bytes:
    """A PNG of the frames that were taken.

    Over each lie the adapter's weights, where it has such, and the outline of what each of its paths keeps of it; above
    stand its time, which paths took it and how well it fits the question. The title counts tokens.
    """
    retention = answering.retention(request)
    return draw(
        retention,
        labels(retention.media, answer.picked or {}),
        budget(retention.media, answer, answering.prompts.longest),
    )


def draw(retention: Retention, labels: Sequence[str], title: str) -> bytes:
    """Draws the frames with what was chosen of them, as PNG bytes.

    Args:
    labels: one a frame.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    frames = np.concatenate([medium.frames for medium in retention.media])
    columns = min(_COLUMNS, len(frames))
    rows = math.ceil(len(frames) / columns)
    lines = max(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(max(4.0, 1.6 * columns), (1.6 + 0.14 * lines) * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes: Any = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    kept = outlined(retention)
    colours = dict(zip(kept, _COLOURS, strict=False))
    for number, (axis, frame, label) in enumerate(zip(axes, frames, labels, strict=False)):
        height, width = frame.shape[:2]
        axis.imshow(frame)
        axis.set_title(label, fontsize=_LABEL)
        if retention.weights is not None:
            side = math.isqrt(retention.weights.shape[1])
            axis.imshow(
                retention.weights[number].reshape(side, side),
                extent=(0, width, height, 0),
                cmap="magma",
                alpha=0.45,
                interpolation="nearest",
                vmin=0,
                vmax=retention.weights.max(),
            )
        for above, (name, patches) in enumerate(kept.items()):  # the first one's shows beside the one above it
            edges = outline(patches[number]) * (width, height)
            axis.add_collection(LineCollection(list(edges), colors=colours[name], linewidths=3.0 / (1 + above)))
    if kept:
        handles = [Line2D([], [], color=colour, label=f"kept by {name}") for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=_LABEL, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


# --- where a path looks ----------------------------------------------------------------------------------------------


def outlined(retention: Retention) -> dict[str, np.ndarray]:
    """[T, N] which patches each path has tokens of, without paths that leave out nothing of the clip."""
    of_clip = np.concatenate([np.full(len(medium.frames), medium.kind == "video") for medium in retention.media])
    kept = {name: retention.path_weights[name] > 0 for name in _SEQUENCE if name in retention.path_weights}
    return {name: patches for name, patches in kept.items() if not patches[of_clip].all()}


def outline(patches: np.ndarray) -> np.ndarray:
    """The edges of a set of patches, of any form.

    Args:
      patches: [N] which, of a square grid in raster order.

    Returns:
      [E, 2, 2] both ends of each edge, (x, y) as shares of the frame's sides.
    """
    side = math.isqrt(len(patches))
    grid = np.pad(patches.reshape(side, side), 1)
    y, x = np.nonzero(grid[1:, 1:-1] != grid[:-1, 1:-1])  # between a row and the one above it
    across = np.stack([np.stack([x, y], 1), np.stack([x + 1, y], 1)], 1)
    y, x = np.nonzero(grid[1:-1, 1:] != grid[1:-1, :-1])
    down = np.stack([np.stack([x, y], 1), np.stack([x, y + 1], 1)], 1)
    return np.concatenate([across, down]) / side


# --- words -----------------------------------------------------------------------------------------------------------


def labels(media: Sequence[Medium], picked: Mapping[str, Any]) -> list[str]:
    """For each frame its time and how well it fits the question, then the paths that took it.

    Args:
      picked: as `Answer.picked`; its frames are counted from the clip's first.
    """
    texts = []
    for medium in media:
        for number in range(len(medium.frames)):
            first, taken = _name(medium, number), []
            if medium.kind == "video":
                if "frame_scores" in picked:
                    first += f", score {picked['frame_scores'][number]:.3f}"
                often = {name: picked[f"{name}_idx"].count(number) for name in _paths(picked)}
                taken = [name if count == 1 else f"{name} x {count}" for name, count in often.items() if count]
            texts.append("\n".join([first, *([" + ".join(taken)] if picked else [])]))
    return texts


def _name(medium: Medium, number: int) -> str:
    if medium.times:
        return f"{medium.times[number]:.2f} s"
    return "image" if len(medium.frames) == 1 else f"tile {number + 1}"


def budget(media: Sequence[Medium], answer: Answer, longest: int) -> str:
    """Where the prompt's tokens go: `prompt 3 x 231 + fast 50 x 16 = 1493 visual + 40 text = 1533 of 4096`."""
    picked = answer.picked or {}
    parts, rest = [], answer.visual_tokens
    for name in _paths(picked):
        frames, tokens = sum(number >= 0 for number in picked[f"{name}_idx"]), picked[f"{name}_tokens"]
        each = f"{frames} x {tokens // frames}" if frames and tokens % frames == 0 else f"{frames} frames' {tokens}"
        parts.append(f"{name} {each}")
        rest -= tokens
    if not parts:
        count = sum(len(medium.frames) for medium in media)
        parts = [f"{count} frame{'s' * (count > 1)}:"]
    elif rest:
        parts.append(f"images {rest}")
    before = " + ".join(parts) + (" =" if picked else "")
    text = answer.prompt_tokens - answer.visual_tokens
    return f"{before} {answer.visual_tokens} visual + {text} text = {answer.prompt_tokens} of {longest}"


def _paths(picked: Mapping[str, Any]) -> list[str]:
    """Names of the paths that report, in the order of their tokens."""
    return [name for name in _SEQUENCE if f"{name}_tokens" in picked]
