"""What a model is shown of a request's media: the frames with their times, and where the adapter looks."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlvm_jax.inference.answering import Answering, Seen
from vlvm_jax.inference.requests import Answer, Request

_COLUMNS = 8


def contact_sheet(answering: Answering, request: Request, answer: Answer) -> bytes:
    """A PNG of the frames that were taken, the adapter's weights over them where it has such, the tokens above."""
    seen = answering.see(request)
    weights = answering.frame_weights(request)
    text = answer.prompt_tokens - answer.visual_tokens
    shown = sum(len(medium.frames) for medium in seen.media)
    title = (
        f"{shown} frames, {answer.visual_tokens} visual + {text} text tokens = {answer.prompt_tokens} of "
        f"{answering.prompts.longest}"
    )
    return draw(seen, None if weights is None else weights[0, :shown], title)


def draw(seen: Seen, weights: np.ndarray | None, title: str) -> bytes:
    """Args:
    weights: [T, N] of the patches of each frame.
    """
    from matplotlib.figure import Figure

    frames = np.concatenate([medium.frames for medium in seen.media])
    labels = [label for medium in seen.media for label in _labels(medium.times, len(medium.frames))]
    columns = min(_COLUMNS, len(frames))
    rows = math.ceil(len(frames) / columns)
    figure = Figure(figsize=(max(4.0, 1.6 * columns), 1.8 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes: Any = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    for number, (axis, frame, label) in enumerate(zip(axes, frames, labels, strict=False)):
        axis.imshow(frame)
        axis.set_title(label, fontsize=7)
        if weights is not None:
            side = math.isqrt(weights.shape[1])
            height, width = frame.shape[:2]
            axis.imshow(
                weights[number].reshape(side, side), extent=(0, width, height, 0), cmap="magma", alpha=0.45,
                interpolation="nearest",
            )  # fmt: skip
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _labels(times: Sequence[float], frames: int) -> list[str]:
    if times:
        return [f"{time:.2f} s" for time in times]
    return ["image"] if frames == 1 else [f"tile {number + 1}" for number in range(frames)]
