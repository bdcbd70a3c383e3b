"""How a command ends, whatever its processes shared; what it writes on a terminal without UTF-8."""

import errno
import os
import subprocess
import sys

import pytest
from support.recipes import ROOT

from vlvm_jax import cli
from vlvm_jax.errors import InputError

SHARE_AND_FAIL = """
import sys
from multiprocessing import shared_memory
from vlvm_jax import cli
from vlvm_jax.storage import StorageError

def main():
    memory = shared_memory.SharedMemory(create=True, size=1000)
    print(memory.name, flush=True)
    raise StorageError("gs://b/f: storage does not work")

sys.exit(cli.run(main, "", ["command"]))
"""


def test_ending_at_once_says_one_line_and_leaves_nothing_behind():
    done = subprocess.run([sys.executable, "-c", SHARE_AND_FAIL], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert done.stderr.splitlines() == [
        "interrupted: gs://b/f: storage does not work",
        "run the same command again to continue",
    ]
    open_it = f"from multiprocessing import shared_memory; shared_memory.SharedMemory({done.stdout.strip()!r})"
    gone = subprocess.run([sys.executable, "-c", open_it], capture_output=True, text=True, timeout=60)
    assert "FileNotFoundError" in gone.stderr


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (InputError("--a=b: no"), 2, "error: --a=b: no"),
        (MemoryError("9 GiB"), 2, "error: not enough memory (9 GiB); use fewer frames, rows or workers"),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), 2, "error: out.json: No space left on device"),
        (OSError(errno.EACCES, "Permission denied"), 2, "error: a file: Permission denied"),
        (OSError(errno.EIO, "I/O error"), None, ""),  # nobody knows what that is: with its traceback
    ],
)
def test_what_a_command_dies_of_is_one_line_and_a_code(fault, code, said, capsys):
    def main():
        raise fault

    if code is None:
        with pytest.raises(OSError):
            cli.run(main, "", ["command"])
    else:
        assert cli.run(main, "", ["command"]) == code
    assert capsys.readouterr().err.strip() == said


INTERRUPT = """
import os, signal, sys
from vlvm_jax import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without
sys.exit(cli.run(lambda: os.kill(os.getpid(), signal.SIGINT), "", ["command"]))
"""


def test_control_c_says_one_line():
    done = subprocess.run([sys.executable, "-c", INTERRUPT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


READ_AND_WRITE = """
import sys
from vlvm_jax import cli
from vlvm_jax.errors import InputError
from vlvm_jax.console import say

def main():
    line = cli.typed(sys.stdin.readline().strip(), "the question")
    print(line, flush=True)
    say(line)
    print("\\udcff")
    raise InputError(line)

sys.exit(cli.run(main, "", ["command"]))
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_that_lacks_characters_shows_their_escapes(encoding):
    said = "\u89c6\u9891 \u0645 \U0001f3ac"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_WRITE], cwd=ROOT, env=environment, input=f"{said}\n".encode(),
        capture_output=True, timeout=120,
    )  # fmt: skip
    shown = said.encode(encoding, errors="backslashreplace")
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
    assert done.stdout.splitlines() == [shown, shown, b"\\udcff"]
    assert shown in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("utf8", "found"), [("", True), ("0", False)])
def test_file_names_in_a_locale_without_utf_8(tmp_path, utf8, found):
    """`LC_ALL=C` alone is no hindrance; where Python's UTF-8 mode is off too, the command says so at once."""
    (tmp_path / "cl\xefp").write_text("here")
    said = f"open({str(tmp_path)!r} + '/cl\\xefp').read()"
    script = f"import sys\nfrom vlvm_jax import cli\nsys.exit(cli.run(lambda: print({said}), '', ['command']))"
    environment = {**os.environ, "LC_ALL": "C"} | ({"PYTHONUTF8": utf8} if utf8 else {})
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    if found:
        assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
    else:
        assert done.returncode == 2 and done.stderr.startswith("error: Python is set to find files with ASCII names")
        assert done.stderr.count("\n") == 1


def test_bytes_that_are_no_text_are_refused():
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_WRITE], cwd=ROOT, input=b"what \xff ?\n", capture_output=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.decode().splitlines() == ["error: the question: not UTF-8 text"]
