"""What reaches stderr of a process that libtpu writes to."""

import subprocess
import sys

LINES = r"""
Failed to find host bounds for accelerator type: WARNING: could not determine TPU accelerator type, please set env var
WARNING: Logging before InitGoogle() is written to STDERR
E0000 00:00:1.0 4006 common_lib.cc:554] INVALID_ARGUMENT: Error: unexpected worker hostname 'WARNING: could not
=== Source Location Trace: ===
learning/45eac/tfrc/runtime/libtpu_init_utils.cc:327
E0000 00:00:2.0 4006 compiler.cc:1] something is really wrong
=== Source Location Trace: ===
learning/45eac/other.cc:1
"""
PROGRAM = """
import os, sys
from vlvm_jax.parallel.libtpu_log import without_harmless_lines
print("before", file=sys.stderr)
with without_harmless_lines():
    os.write(2, sys.argv[1].encode())
    print("python's own", file=sys.stderr)
    {body}
print("after", file=sys.stderr)
"""


def stderr_of(body: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", PROGRAM.format(body=body), LINES.lstrip()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr.splitlines()


KEPT = [
    "E0000 00:00:2.0 4006 compiler.cc:1] something is really wrong", "=== Source Location Trace: ===",
    "learning/45eac/other.cc:1", "python's own",
]  # fmt: skip


def test_only_known_lines_are_dropped():
    assert stderr_of("pass") == (0, ["before", *KEPT, "after"])


def test_what_is_said_before_an_abort_is_not_lost():
    code, lines = stderr_of("os.abort()")
    assert code != 0 and lines[: len(KEPT) + 1] == ["before", *KEPT]
