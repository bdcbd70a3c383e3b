"""Samples as the model gets them, for the picture of `data check`: frames, prompt, and which tokens are learned."""

import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import Record, evenly
from vlvm_jax.data.sample.assemble import Medium, Sample
from vlvm_jax.data.tools.check import Finding

if TYPE_CHECKING:
    from vlvm_jax.data.sample.loader import SampleLoader
    from vlvm_jax.data.sample.spec import SampleSpec

Part = Literal["prompt", "visual", "learned"]
SAMPLES = 4  # in a picture
_FRAMES = 16  # of a sample in a picture
_LINES = 16  # of a sample's text in a picture
_DPI, _WIDTH = 110, 11.0  # inches
_FONT, _LINE = 8.0, 15.0  # points
_COLOURS = {"prompt": None, "visual": "#d9e2ef", "learned": "#bfe8c5"}  # behind the text
_LEGEND = {"prompt": "prompt: read, not learned", "visual": "visual tokens", "learned": "learned tokens"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """One sample.

    Attributes:
      title: which record it is and how many tokens it has.
      frames: of all media, as the image tower gets them.
      labels: one per frame, its time in a clip.
      parts: the text in order, each piece with what it is.
    """

    title: str
    frames: UInt8[np.ndarray, "T S S 3"]
    labels: tuple[str, ...]
    parts: tuple[tuple[str, Part], ...]


def choose(findings: Sequence[Finding], count: int = SAMPLES) -> list[int]:
    """Numbers of a few usable records, spread evenly over those of each kind in turn: clips, images, text."""
    usable = [finding for finding in findings if not finding.cause]
    kinds = [[finding.index for finding in usable if finding.kind == kind] for kind in ("video", "image", "text")]
    kinds = [group for group in kinds if group]
    if not kinds:
        return []
    # Clips first, where the kinds do not share the places evenly.
    shares = [count // len(kinds) + (number < count % len(kinds)) for number in range(len(kinds))]
    chosen = [[group[place] for place in evenly(len(group), share)] for group, share in zip(kinds, shares, strict=True)]
    return [index for part in chosen for index in part]


def show_samples(records: Sequence[Record], spec: "SampleSpec", indices: Sequence[int]) -> list[Shown]:
    """The samples of some records, made as in training, without those that turn out to be unusable."""
    from vlvm_jax.data.sample.loader import SampleLoader  # with Grain, which takes seconds

    loader = SampleLoader(records, spec)
    shown = []
    for index in indices:
        try:
            record = records[index]
            sample, media = loader.load(index), loader.media(record, index)
        except BadSampleError:
            continue
        shown.append(_shown(loader, record, index, sample, media))
    return shown


def _shown(loader: "SampleLoader", record: Record, index: int, sample: Sample, media: Sequence[Medium]) -> Shown:
    visual, learned = sample["media_mask"], sample["loss_mask"]
    count = len(visual)
    title = (
        f"record {index} ({record.source}): {count} tokens, {int(visual.sum())} of them visual, "
        f"{int(learned.sum())} learned"
    )
    labels = [label for medium in media for label in _labels(medium)]
    frames = sample["frames"]
    # In an order other than the text's the labels would stand over other media's frames.
    ordered = sum(len(medium.frames) for medium in media) == len(frames) and len({m.kind for m in media}) < 2
    return Shown(title, frames, tuple(labels) if ordered else ("",) * len(frames), parts(loader, sample))


def _labels(medium: Medium) -> list[str]:
    if medium.times:
        return [f"{time:.2f} s" for time in medium.times]
    return [""] if len(medium.frames) == 1 else [f"tile {number + 1}" for number in range(len(medium.frames))]


def parts(loader: "SampleLoader", sample: Sample) -> tuple[tuple[str, Part], ...]:
    """The sample's tokens as text, special tokens included; consecutive tokens of one kind are one piece."""
    ids, visual, learned = sample["token_ids"], sample["media_mask"], sample["loss_mask"]
    kinds = np.where(visual, 1, np.where(learned, 2, 0))
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1), len(kinds)]
    names: tuple[Part, ...] = ("prompt", "visual", "learned")
    labelled: list[tuple[str, Part]] = []
    text: list[int] = []
    before = ""
    for start, stop in itertools.pairwise(edges):
        kind = names[int(kinds[start])] if stop > start else "prompt"
        if kind == "visual":
            labelled.append((f"[{stop - start} visual]", kind))
        elif stop > start:
            # Decoded with all text before it, or a space at its beginning would be lost.
            text += ids[start:stop].tolist()
            whole = loader.processor.decode(text, special=True)
            labelled.append((whole[len(before) :], kind))
            before = whole
    return tuple(labelled)


# --- picture ---------------------------------------------------------------------------------------------------------


def draw(samples: Sequence[Shown]) -> tuple[bytes, str]:
    """A PNG with a block for each sample: title, frames, and the text with its learned tokens marked.

    Returns:
      The PNG, and what to tell the user about characters that no font here has; "" if there are none.
    """
    from vlvm_jax.pictures import PictureText

    texts = [text for sample in samples for text in (sample.title, *(text for text, _ in sample.parts))]
    writing = PictureText(texts)
    spelt = [
        dataclasses.replace(
            sample,
            title=writing.spelt(sample.title),
            parts=tuple((writing.spelt(text), kind) for text, kind in sample.parts),
        )
        for sample in samples
    ]
    with writing.fonts():
        return _drawn(spelt), writing.note


def _drawn(samples: Sequence[Shown]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measure = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=_DPI)).get_renderer()
    width = _WIDTH * _DPI - 2 * _px(10)
    blocks = [(sample, _cut(_lines(sample.parts, width, measure))) for sample in samples]
    heights = [_block_height(sample, len(lines)) for sample, lines in blocks]
    total = sum(heights) + _px(_LINE * 2)
    figure = Figure(figsize=(_WIDTH, total / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    top = total - _px(_LINE)
    _draw_line(figure, [(text, kind, 0.0) for kind, text in _LEGEND.items()], top, total, measure, gap=_px(14))
    top -= _px(_LINE)
    for (sample, lines), height in zip(blocks, heights, strict=True):
        _draw_block(figure, sample, lines, top, total, measure)
        top -= height
    png = io.BytesIO()
    canvas.print_png(png)
    return png.getvalue()


_Line = list[tuple[str, Part, float]]  # pieces with their x, in pixels


def _px(points: float) -> float:
    return points * _DPI / 72


def _width(text: str, renderer: Any) -> float:
    from matplotlib.font_manager import FontProperties

    return renderer.get_text_width_height_descent(text, FontProperties(size=_FONT), False)[0] if text else 0.0


def _lines(pieces: Sequence[tuple[str, Part]], width: float, renderer: Any) -> list[_Line]:
    """Breaks text into lines at spaces; words longer than a line are cut. Line ends show as an arrow."""
    lines: list[_Line] = [[]]
    x = 0.0
    for text, kind in pieces:
        for row, line in enumerate(text.split("\n")):
            ended = row < text.count("\n")
            for word in _words(f"{line}↵" if ended else line):
                for part in _cut_word(word, width, renderer):
                    size = _width(part, renderer)
                    if x and x + size > width:
                        lines.append([])
                        x = 0.0
                    _add(lines[-1], part, kind, x)
                    x += size
            if ended:
                lines.append([])
                x = 0.0
    return [line for line in lines if line]


def _words(text: str) -> list[str]:
    """The words of a text, each with the space after it."""
    words = text.split(" ")
    return [f"{word} " for word in words[:-1]] + ([words[-1]] if words[-1] else [])


def _cut_word(word: str, width: float, renderer: Any) -> list[str]:
    size = _width(word, renderer)
    if size <= width:
        return [word]
    step = max(1, int(len(word) * width / size * 0.9))
    return [piece for at in range(0, len(word), step) for piece in _cut_word(word[at : at + step], width, renderer)]


def _add(line: _Line, text: str, kind: Part, x: float) -> None:
    """Appends text to a line, to the last piece if that is of the same kind."""
    if line and line[-1][1] == kind:
        before, _, start = line[-1]
        line[-1] = (before + text, kind, start)
    else:
        line.append((text, kind, x))


def _cut(lines: list[_Line]) -> list[_Line]:
    """If there are too many lines, keeps those around the first learned token, and says how many are left out."""
    if len(lines) <= _LINES:
        return lines
    learned = next((number for number, line in enumerate(lines) if any(p[1] == "learned" for p in line)), 0)
    first = min(max(0, learned - _LINES // 2), len(lines) - _LINES)
    shown = lines[first : first + _LINES]
    if first:
        shown = [[(f"... {first} lines before ...", "prompt", 0.0)], *shown]
    if rest := len(lines) - first - _LINES:
        shown.append([(f"... {rest} lines more ...", "prompt", 0.0)])
    return shown


def _grid(sample: Shown) -> tuple[int, int, float]:
    """Rows and columns of the frames that are shown, and the side of one in pixels."""
    count = min(len(sample.frames), _FRAMES)
    columns = 8
    side = (_WIDTH * _DPI - 2 * _px(10)) / columns - _px(4)
    return math.ceil(count / columns), columns, side


def _block_height(sample: Shown, lines: int) -> float:
    rows, _, side = _grid(sample)
    return _px(_LINE) * (lines + 2.6) + rows * (side + _px(_LINE))


def _draw_block(figure: Any, sample: Shown, lines: list[_Line], top: float, total: float, renderer: Any) -> None:
    full = _WIDTH * _DPI
    y = top - _px(_LINE) * 1.2
    more = f"; the first {_FRAMES} of {len(sample.frames)} frames" if len(sample.frames) > _FRAMES else ""
    figure.text(_px(10) / full, y / total, sample.title + more, fontsize=_FONT, weight="bold", parse_math=False)
    y -= _px(4)
    rows, columns, side = _grid(sample)
    for number, frame in enumerate(sample.frames[:_FRAMES]):
        row, column = divmod(number, columns)
        left, bottom = _px(10) + column * (side + _px(4)), y - (row + 1) * (side + _px(_LINE)) + _px(2)
        axes = figure.add_axes((left / full, bottom / total, side / full, side / total))
        axes.imshow(frame, interpolation="nearest" if frame.shape[0] < side else "antialiased", aspect="auto")
        axes.set_axis_off()
        label = sample.labels[number]
        if label:
            figure.text(
                (left + side / 2) / full, (bottom + side + _px(2)) / total, label, fontsize=_FONT - 1, ha="center"
            )
    y -= rows * (side + _px(_LINE))
    for line in lines:
        y -= _px(_LINE)
        _draw_line(figure, line, y, total, renderer)


def _draw_line(figure: Any, line: Sequence[Any], y: float, total: float, renderer: Any, gap: float = 0.0) -> None:
    from matplotlib.patches import Rectangle

    full, x = _WIDTH * _DPI, _px(10)
    for text, kind, _ in line:
        size = _width(text, renderer)
        if _COLOURS[kind] is not None:
            box = (x / full, (y - _px(3.2)) / total)
            figure.add_artist(
                Rectangle(box, size / full, _px(_LINE - 3) / total, color=_COLOURS[kind], transform=figure.transFigure)
            )
        figure.text(x / full, y / total, text, fontsize=_FONT, parse_math=False)
        x += size + gap
