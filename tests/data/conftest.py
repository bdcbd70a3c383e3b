"""What several tests of the data path need."""

import multiprocessing
import multiprocessing.spawn
import os
from multiprocessing import resource_tracker

import pytest


@pytest.fixture
def starting(tmp_path):
    """Workers start with these lines of a shell."""
    resource_tracker.ensure_running()
    executable = os.fsdecode(multiprocessing.spawn.get_executable())

    def set_lines(lines: str) -> None:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\n{lines}\nexec "{executable}" "$@"\n')
        script.chmod(0o755)
        multiprocessing.set_executable(str(script))

    yield set_lines
    multiprocessing.set_executable(executable)
