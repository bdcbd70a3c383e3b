"""What a person sees while work goes on: a bar with ETA on a terminal, plain lines otherwise."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)


class Meter:
    """One piece of work of a known size.

    Args:
      every: seconds between two plain lines when the output is not a terminal.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, every: float = 5.0):
        self.title, self.total, self.every = title, total, every
        self._start, self._first, self._last_line = time.monotonic(), done, 0.0
        self._bar = None
        if console.is_terminal and not console.quiet:
            columns = (
                TextColumn("{task.description:<12}"), BarColumn(bar_width=30), MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_error) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if console.quiet:
            return
        if now - self._last_line < self.every and done < self.total:
            return
        self._last_line = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = (self.total - done) / rate if rate > 0 else 0
        print(f"{self.title}: {done}/{self.total}  {note}  eta {_clock(left)}".replace("    ", "  "), flush=True)


def say(message: str) -> None:
    console.print(message, markup=False)
    sys.stdout.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
