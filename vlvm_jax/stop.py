"""SIGTERM and SIGINT as a flag that long work looks at between two steps.

With several processes a signal to any of them stops them all, at the same step: JAX's own service takes SIGTERM and
agrees on the step in the background, so that nothing waits.
"""

import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from vlvm_jax.errors import Interrupted


class StopSignal:
    """Context in which the first SIGTERM or SIGINT only asks to stop; a second SIGINT interrupts at once."""

    def __init__(self):
        self.requested = False  # never where processes stop together
        self._noted = False
        self._shared = jax.distributed.is_initialized()
        self._looks = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = True
        if self._shared:
            signal.raise_signal(signal.SIGTERM)
        else:
            self.requested = True

    def reached(self) -> bool:
        """Whether to stop here. Every process must ask equally often, and all get the same answers."""
        self._looks += 1
        return multihost_utils.reached_preemption_sync_point(self._looks) if self._shared else self.requested

    def check(self, message: str) -> None:
        """Raises `Interrupted` with `message` where `reached`. For work that has nothing to save."""
        if self.reached():
            raise Interrupted(message)
