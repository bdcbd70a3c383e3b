"""What `data check` shows: tables and a picture."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from vlvm_jax.data.tools.check import Finding
from vlvm_jax.printing import PlainConsole

_SHOWN = 3  # examples of a cause


def tables(summary: Mapping[str, Any]) -> Group:
    """Records and causes, each with examples; how the figures spread."""
    records = Table(title=f"{summary['checked']} of {summary['records']} records checked", title_justify="left")
    for column in ("", "records", "share", "for example"):
        records.add_column(column, justify="right" if column in ("records", "share") else "left", overflow="fold")
    records.add_row("usable", *_share(summary["usable"], summary), _mix(summary))
    for kind, name in _KINDS.items():
        records.add_row(name, *_share(summary["kinds"].get(kind, 0), summary), "")
    if summary["empty_answers"]:
        records.add_row("with an empty answer", *_share(summary["empty_answers"], summary), "only its end is learned")
    if summary["respelled"]:
        name, file = next(iter(summary["respelled"].items()))
        records.add_row("media names respelled", f"{len(summary['respelled'])}", "", f"{file} is read for {name}")
    for cause, count in summary["causes"].items():
        records.add_row(cause, *_share(count, summary), "\n".join(examples(summary, cause)))
    figures = Table(title="figures", title_justify="left")
    marks = ("min", "p25", "median", "p75", "p99", "max", "sum")
    for column in ("", *marks):
        figures.add_column(column, justify="right" if column else "left")
    for key, name in _FIGURES.items():
        if summary[key]:
            figures.add_row(name, *(f"{summary[key][mark]:,.6g}" for mark in marks))
    return Group(records, figures)


_KINDS = {"video": "with a clip", "image": "with an image, no clip", "text": "with neither"}
_FIGURES = {
    "seconds": "clip, seconds",
    "shorter_side": "shorter side, pixels",
    "characters": "text, characters",
    "tokens": "sample, tokens",
    "visual_tokens": "of them visual",
}


def examples(summary: Mapping[str, Any], cause: str) -> list[str]:
    """Details that say different things."""
    different: dict[str, str] = {}
    for bad in summary["bad"]:
        if bad["cause"] == cause:
            different.setdefault(re.sub(r"[0-9]+|'[^']*'", "", bad["detail"]), bad["detail"])
    return list(different.values())[:_SHOWN]


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Prints the tables, wide enough for their figures also into a log."""
    PlainConsole(file=console.file, width=max(console.width, 110)).print(tables(summary))


def _share(count: int, summary: Mapping[str, Any]) -> tuple[str, str]:
    return f"{count}", f"{count / max(1, summary['checked']):.2%}"


def _mix(summary: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())


def draw(findings: Sequence[Finding], summary: Mapping[str, Any], file: Path, samples: bytes | None = None) -> None:
    """Durations, token lengths with the stage's limit, resolutions and causes, as PNG.

    Args:
      samples: a PNG of some samples (`check_samples.draw`), to put below.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    (durations, lengths), (sizes, causes) = axes
    media = [medium for finding in findings for medium in finding.media]
    _bars(durations, [m.seconds for m in media if m.seconds is not None], "clips by duration", "seconds")
    tokens = [finding.tokens for finding in findings if finding.tokens]
    if tokens:
        _bars(lengths, tokens, "samples by length", "tokens")
        if max(tokens) > 0.5 * summary["length"]:
            lengths.axvline(summary["length"], color="tab:red", label=f"length {summary['length']}")
            lengths.legend()
    else:
        _bars(lengths, [finding.characters for finding in findings if finding.kind], "records by text", "characters")
    sizes.scatter([m.width for m in media], [m.height for m in media], s=12, alpha=0.3)
    sizes.set(title="media by size", xlabel="width, pixels", ylabel="height, pixels")
    counts = {"usable": summary["usable"], **summary["causes"]}
    causes.barh(list(counts), list(counts.values()), color=["tab:green"] + ["tab:red"] * (len(counts) - 1))
    causes.set(title=f"{summary['checked']} records", xlabel="records")
    causes.invert_yaxis()
    file.parent.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    plt.close(figure)
    file.write_bytes(_stacked(png.getvalue(), *([samples] if samples else [])))


def _stacked(*pictures: bytes) -> bytes:
    """PNGs below each other as one."""
    from PIL import Image

    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    sheet = Image.new("RGB", (max(p.width for p in opened), sum(p.height for p in opened)), "white")
    top = 0
    for picture in opened:
        sheet.paste(picture, (0, top))
        top += picture.height
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    return png.getvalue()


def _bars(axes: Any, values: Sequence[float], title: str, unit: str) -> None:
    if values:
        axes.hist(values, 40)
    else:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
    axes.set(title=title, xlabel=unit)
