"""What is shown of work that takes long, on a terminal and in a log."""

import queue
import re
import time

import pytest

from vlvm_jax import console
from vlvm_jax.console import Meter, Reading, Waiting, show_table


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_weights_are_told_in_bytes_with_an_estimate(clock, capsys):
    tell = Reading()
    for second in range(1, 11):
        clock[0] += 1
        tell(second * 1_400_000_000, 14_000_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "reading weights: 4.2/14.0 GB  eta 0:05"
    assert lines[-1] == "reading weights: 14.0/14.0 GB  eta 0:00" and len(lines) == 3


def test_small_weights_are_read_silently(clock, capsys):
    tell = Reading()
    for done in range(5):
        clock[0] += 0.3
        tell(done, 4)
    assert capsys.readouterr().out == ""


def test_a_meter_counts(clock, capsys):
    with Meter("data", 40) as meter:
        clock[0] += 10
        meter.update(10, "files")
        clock[0] += 1
        meter.update(11, "files")
        clock[0] += 29
        meter.update(40, "files")
    assert capsys.readouterr().out.splitlines() == ["data: 10/40  files  eta 0:30", "data: 40/40  files  eta 0:00"]


def test_waiting_is_told_again_with_its_time(monkeypatch):
    """However late a busy machine wakes the thread, each line comes in its turn."""
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(console, "say", lines.put)
    with Waiting("compiling the prefill step", every=0.05, grace=0.01) as waits:
        assert lines.get(timeout=30) == "compiling the prefill step ..."
        assert re.fullmatch(r"compiling the prefill step \.\.\. \d+ s", lines.get(timeout=30))
        waits.now("running it")
        while (line := lines.get(timeout=30)) != "running it ...":
            assert line.startswith("compiling the prefill step ... ")
    assert waits._thread is None


def test_a_short_wait_is_not_told(capsys):
    with Waiting("compiling", grace=30.0):
        pass
    assert capsys.readouterr().out == ""


def test_a_process_that_shows_nothing_waits_silently(capsys, monkeypatch):
    monkeypatch.setattr(console.console, "quiet", True)
    with Waiting("compiling", every=0.05, grace=0.01):
        time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_progress_on_stderr(capsys):
    with console.on_stderr():
        console.say("reading")
    console.say("written")
    assert capsys.readouterr() == ("written\n", "reading\n")


@pytest.mark.parametrize("width", [40, 80])
def test_tables_are_whole(width, capsys, monkeypatch):
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(console.console, "_width", width)  # the console read COLUMNS when it was made
    pattern = "adapter/temporal_connector/**/lora_[ab]/kernel at 2e-05"
    table = Table()
    for column in ("stage", "trains", "parameters"):
        table.add_column(column, overflow="fold", no_wrap=column == "parameters")
    table.add_row("instruct", pattern, "6,738,415,616")
    show_table(table)
    out = capsys.readouterr().out
    assert pattern in out and "6,738,415,616" in out and "…" not in out
    monkeypatch.setattr(console.console, "_force_terminal", True)
    monkeypatch.setattr(console.console, "no_color", True)
    show_table(table)
    out = capsys.readouterr().out
    cells = [re.split("[┃│]", line) for line in out.splitlines()]
    folded = "".join(cell[2].strip() for cell in cells if len(cell) > 3)
    assert folded.replace(" ", "").endswith(pattern.replace(" ", ""))
    assert "6,738,415,616" in out and max(map(len, out.splitlines())) <= width
