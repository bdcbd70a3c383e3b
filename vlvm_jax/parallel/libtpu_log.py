"""Filters what libtpu writes to stderr on a host without a TPU: alarming lines that mean nothing there."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Written if the host has no TPU, which is not needed to compile for other machines.
HARMLESS = (
    r"Failed to find host bounds for accelerator type: WARNING: could not determine TPU",
    r"WARNING: Logging before InitGoogle\(\) is written to STDERR",
    r"WARNING: could not determine TPU",
    r"[EW]\d{4} .*common_lib\.cc:\d+\] INVALID_ARGUMENT: Error: unexpected worker hostname 'WARNING: could not",
)
_TRACE = (r"=== Source Location Trace: ===", r"learning/\S+\.cc:\d+\s*$", r"\s*$")  # follow such a line

# Runs in a process of its own, which passes on what is left in the pipe if this one aborts.
_FILTER = """
import re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
split = sys.argv.index("--")
harmless, trace, dropped = sys.argv[1:split], sys.argv[split + 1:], False
for line in sys.stdin.buffer:
    text = line.decode(errors="replace")
    patterns = harmless + trace if dropped else harmless
    dropped = any(re.match(pattern, text) for pattern in patterns)
    if not dropped:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


@contextlib.contextmanager
def without_harmless_lines() -> Iterator[None]:
    """Keeps the known harmless lines out of this process's stderr, and passes on all others."""
    command = [sys.executable, "-I", "-S", "-c", _FILTER, *HARMLESS, "--", *_TRACE]
    sys.stderr.flush()
    kept = os.dup(2)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=kept)
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)  # closes the pipe's last end, which ends the filter
        os.close(kept)
        process.wait()
