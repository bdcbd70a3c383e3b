"""SIGTERM and SIGINT as a flag that long work looks at between two steps."""

import signal
from types import FrameType
from typing import Any

from vlvm_jax.errors import Interrupted


class StopSignal:
    """Context in which the first SIGTERM or SIGINT only sets `requested`; a second SIGINT interrupts at once."""

    def __init__(self):
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def check(self, message: str) -> None:
        """Raises `Interrupted` with `message` if a signal came. For work that has nothing to save."""
        if self.requested:
            raise Interrupted(message)
