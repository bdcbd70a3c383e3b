"""How a command ends, whatever its processes shared."""

import subprocess
import sys

from recipes import ROOT

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
