"""XProf traces of a few steps, asked for beforehand or while training runs. Read them with `xprof WORKDIR/profile`."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import jax

from vlvm_jax.console import say
from vlvm_jax.errors import InputError

STEPS = 5  # that a signal asks for
Steps = tuple[str, int, int]


class Profiler:
    """Traces the steps asked for: `STAGE:FIRST-LAST` (counted from 0), or the next few after SIGUSR1.

    Args:
      folder: where to write: of `storage.Logs`.
      asked: stage, first step and number of steps, of `parse`.
    """

    def __init__(self, folder: Path, asked: Steps | None):
        self.folder = folder / "profile"
        self._asked = asked
        self._signalled = False
        self._until: int | None = None

    def __enter__(self) -> "Profiler":
        self._previous = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGUSR1, self._previous)
        self.stop(None)

    def _on_signal(self, *_: object) -> None:
        self._signalled = True

    def before(self, stage: str, step: int, running: object) -> None:
        """Called before every step.

        Args:
          running: what the step before gives; waited for where a trace ends.
        """
        if self._until is not None and step >= self._until:
            self.stop(running)
        if self._until is None:
            if self._asked is not None and (stage, step) == self._asked[:2]:
                self._start(stage, step, self._asked[2])
            elif self._signalled:
                self._start(stage, step, STEPS)
            self._signalled = False

    def _start(self, stage: str, step: int, steps: int) -> None:
        self._until = step + steps
        say(f"{stage}: tracing steps {step} to {step + steps - 1} into {self.folder}")
        jax.profiler.start_trace(str(self.folder))

    def stop(self, running: object) -> None:
        """Ends a trace that is under way; called at a stage's end too."""
        if self._until is not None:
            jax.block_until_ready(running)
            jax.profiler.stop_trace()
            self._until = None


def parse(asked: str | None, stages: Sequence[str]) -> Steps | None:
    """`instruct:10-14` -> ("instruct", 10, 5)."""
    if asked is None:
        return None
    match = re.fullmatch(r"([^:]+):(\d+)-(\d+)", asked)
    if match is None or match[1] not in stages or int(match[3]) < int(match[2]):
        raise InputError(f"--profile={asked}: expected STAGE:FIRST-LAST with a stage of {', '.join(stages)}")
    first, last = int(match[2]), int(match[3])
    return match[1], first, last - first + 1
