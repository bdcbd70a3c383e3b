"""What a person sees while work goes on: a bar with ETA on a terminal, plain lines otherwise."""

import contextlib
import threading
import time
from collections.abc import Iterator

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlvm_jax import printing
from vlvm_jax.printing import PlainConsole

console = PlainConsole(soft_wrap=True)

GRACE = 2.0  # seconds; work that is done by then is not worth a line
_TABLE_WIDTH = 120  # characters, at least, of a table that is not on a terminal


def _column(text: str) -> TextColumn:
    return TextColumn(text, markup=False)


class Meter:
    """One piece of work of a known size.

    Args:
      every: seconds between two plain lines when the output is not a terminal.
      unit: `bytes` shows sizes in GB; anything else shows plain numbers.
      grace: seconds in which nothing is shown; work that ends within them passes silently.
    """

    def __init__(
        self, title: str, total: int, *, done: int = 0, every: float = 5.0, unit: str = "", grace: float = 0.0
    ):
        self.title, self.total, self.every, self.unit, self.grace = printing.printable(title), total, every, unit, grace
        self._start, self._first, self._last_line = time.monotonic(), done, 0.0
        self._bar = None
        if not grace:
            self._show_bar(done)

    def _show_bar(self, done: int) -> None:
        if console.is_terminal and not console.quiet and self._bar is None:
            columns = (
                _column("{task.description:<12}"),
                BarColumn(bar_width=30),
                _column("{task.fields[count]}"),
                _column("{task.fields[note]}"),
                TimeElapsedColumn(),
                _column("eta"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            count = self._count(done)
            self._task = self._bar.add_task(self.title, total=self.total, completed=done, note="", count=count)
            self._bar.start()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_error) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the terminal to another meter."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if console.quiet or now - self._start < self.grace:
            return
        self._show_bar(done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=printing.printable(note), count=self._count(done))
            return
        if now - self._last_line < self.every and done < self.total:
            return
        self._last_line = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = (self.total - done) / rate if rate > 0 else 0
        say(f"{self.title}: {self._count(done)}  {note}  eta {_clock(left)}".replace("    ", "  "))

    def _count(self, done: int) -> str:
        if self.unit == "bytes":
            return f"{done / 1e9:.1f}/{self.total / 1e9:.1f} GB"
        return f"{done}/{self.total}"


class Reading:
    """Shows how much of the weights has been read, for `Initial.params`; a small model is read silently."""

    def __init__(self, title: str = "reading weights"):
        self.title, self._meter = title, None

    def __call__(self, done: int, total: int) -> None:
        if self._meter is None:
            self._meter = Meter(self.title, total, unit="bytes", grace=GRACE)
        self._meter.update(done)
        if done >= total:
            self._meter.__exit__()


class Waiting:
    """Says what is being waited for if it takes long, then repeats it every few seconds with the time elapsed.

    Args:
      what: "compiling the prefill step"; `now` changes it.
      every: seconds between two lines.
    """

    def __init__(self, what: str = "", every: float = 10.0, grace: float = GRACE):
        self.every, self.grace = every, grace
        self._what, self._since = what, time.monotonic()
        self._changed, self._closed = threading.Event(), False
        self._thread: threading.Thread | None = None
        if what:
            self.now(what)

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_error) -> None:
        self.close()

    def now(self, what: str) -> None:
        """Changes what is being waited for."""
        self._what, self._since = what, time.monotonic()
        if self._thread is None and not console.quiet:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        else:
            self._changed.set()

    def close(self) -> None:
        """Ends the messages; does nothing the second time."""
        self._closed = True
        self._changed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        pause = self.grace
        while not self._closed:
            if self._changed.wait(pause):
                self._changed.clear()
                pause = self.grace
                continue
            waited = time.monotonic() - self._since
            say(f"{self._what} ..." + (f" {waited:.0f} s" if pause == self.every else ""))
            pause = self.every


def number_of(count: int, noun: str) -> str:
    """A number of things in words: 1 stage, 2 stages."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def say(message: str) -> None:
    """Prints a message; names in it stay as they are, without their control characters."""
    console.print(message)
    console.file.flush()


def show_table(table: RenderableType) -> None:
    """Prints a table: as wide as the terminal, and wide enough for its figures in a log."""
    if console.is_terminal:
        console.print(table, soft_wrap=False)
    elif not console.quiet:
        width = max(console.width, _TABLE_WIDTH)
        PlainConsole(file=console.file, width=width).print(table)


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Shows progress on stderr, for commands whose stdout is their result."""
    before, console.stderr = console.stderr, True
    try:
        yield
    finally:
        console.stderr = before


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
