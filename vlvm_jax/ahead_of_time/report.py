"""What `vlvm_jax.compile` prints and writes."""

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
from rich.table import Table

from vlvm_jax.ahead_of_time import hlo
from vlvm_jax.ahead_of_time.programs import Report
from vlvm_jax.config import Config
from vlvm_jax.console import console
from vlvm_jax.parallel.topology import GIB, Topology
from vlvm_jax.printing import PlainConsole


def show(reports: Sequence[Report], topology: Topology) -> None:
    """Tables: memory, operations and bounds, collectives."""
    chip = topology.chip
    room = f"{chip.hbm / GIB:.2f} GiB of HBM to use each"
    memory = Table(title=f"{topology.name}: {topology.chips} chips, {room}; GiB per chip")
    for column in (
        "stage",
        "batch",
        "trained",
        "frozen",
        "arguments",
        "temporaries",
        "peak",
        "fits",
        "donated",
    ):
        memory.add_column(column, justify="left" if column == "stage" else "right")
    speed = Table(title="operations per step and least times (published peaks)")
    for column in (
        "stage",
        "tower",
        "adapter",
        "decoder",
        "backward",
        "again",
        "compute",
        "HBM",
        "links",
        "MFU at most",
    ):
        speed.add_column(column, justify="left" if column == "stage" else "right")
    moved = Table(title="collectives per step and chip: times run, GiB")
    for column in ("stage", *hlo.KINDS):
        moved.add_column(column, justify="left" if column == "stage" else "right")
    for report in reports:
        memory.add_row(*_memory(report, topology))
        speed.add_row(*_speed(report))
        if report.collectives is not None:
            counts, sizes = report.collectives.count, report.collectives.bytes
            least = "≥ " if report.collectives.at_least else ""
            cells = [f"{least}{counts[k]} {_gib(sizes[k])}" if k in counts else "-" for k in hlo.KINDS]
            moved.add_row(report.name, *cells)
    wide = PlainConsole(width=max(console.width, _WIDTH))  # figures cut short are of no use in a log
    wide.print(memory)
    console.print(_DONATED)
    for table in (speed, moved):
        wide.print(table)
    for report in reports:
        if report.message:
            console.print(f"{report.name}: {report.message}")


_DONATED = (
    "donated: results written over the step's arguments, which need no memory of their own (parameters and optimizer\n"
    "state in training, the cache in decode). prefill overwrites nothing: its whole result is new memory."
)
_WIDTH = 130


def _memory(report: Report, topology: Topology) -> list[str]:
    cells = [report.name, f"{report.batch_size}", f"{report.trainable / 1e6:,.0f}M", f"{report.frozen / 1e6:,.0f}M"]
    if report.needed is None:
        return [*cells, "-", "-", "-", "no", "-"]
    share = f"{_gib(report.needed)} ({report.needed / topology.chip.hbm:.0%})"
    yes = "yes" if report.fits else "no"
    donated = f"{_gib(report.donated)} of {_gib(report.results)}"
    return [*cells, _gib(report.arguments), _gib(report.temporaries), share, yes, donated]


def _speed(report: Report) -> list[str]:
    flops = report.flops
    parts = (flops.tower, flops.adapter, flops.decoder, flops.backward, flops.recomputed)
    cells = [report.name, *(f"{part:.2e}" for part in parts)]
    if report.compute is None or report.hbm is None or report.interconnect is None:
        return [*cells, "-", "-", "-", "-"]
    times = (report.compute, report.hbm, report.interconnect)
    return [*cells, *(f"{1000 * time:,.0f} ms" for time in times), f"{report.mfu_bound:.0%}"]


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def misfit(report: Report, topology: Topology) -> str:
    """One line on a stage that does not fit."""
    need = f"{_gib(report.needed)} GiB" if report.needed else report.message or "more than there is"
    return (
        f"{report.name}, {report.batch_size} rows: does not fit {topology.name}: needs {need}, where a chip has "
        f"{topology.chip.hbm / GIB:.2f} GiB; lower batch_size, raise accumulate, or take more chips (--search finds "
        "the largest batch)"
    )


def to_json(config: Config, reports: Sequence[Report], topology: Topology) -> dict[str, Any]:
    return {
        "config": config.name,
        "topology": dataclasses.asdict(topology),
        "chips": topology.chips,
        "versions": {"jax": jax.__version__, "libtpu": version("libtpu")},
        "stages": [{**dataclasses.asdict(report), "needed": report.needed} for report in reports],
    }
