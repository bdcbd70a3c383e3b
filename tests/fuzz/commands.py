"""Runs command lines fast and apart: each in a fork of one process that has imported everything and runs nothing.

Run as a script it is that process: it reads one request a line from stdin and writes one result a line to stdout.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HEAVY = (
    "jax", "flax.nnx", "optax", "orbax.checkpoint", "transformers", "tokenizers", "ml_collections.config_flags", "av",
    "PIL.Image", "rich.progress", "yaml", "pydantic", "etils.epath", "matplotlib.pyplot", "jinja2.sandbox",
    "transformers.models.auto.configuration_auto", "transformers.configuration_utils",
    # What commands import once their flags are parsed. Modules that define flags, or set what parsing flags sets anew
    # (`weights.param_store`), are not here.
    "grain", "tensorstore", "vlvm_jax.errors", "vlvm_jax.cli", "vlvm_jax.config", "vlvm_jax.data.batch.dataset",
    "vlvm_jax.data.sample.loader",
    "vlvm_jax.data.tools.check_report", "vlvm_jax.models.video_llm", "vlvm_jax.models.adapters",
    "vlvm_jax.models.params", "vlvm_jax.training.optimizer", "vlvm_jax.training.step", "vlvm_jax.parallel.rules",
    "vlvm_jax.evaluation.question_lists",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended: `code` is None if it took too long and was ended."""

    code: int | None
    out: str
    err: str
    seconds: float

    def fault(self, allowed: Sequence[int] = (0, 2)) -> str:
        """What is wrong with how it ended, "" if nothing is."""
        if self.code is None:
            return f"not done after {self.seconds:.0f} s"
        if "Traceback" in self.err or self.code not in allowed:
            return f"exit code {self.code}: {self.err[-1500:]}"
        if found := CONTROL.search(self.out + self.err):
            return f"a control character is written: {found[0]!r}"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code == 2 and (len(errors) != 1 or not self.err.rstrip("\n").splitlines()[-1].startswith("error: ")):
            return f"not one line that says what is wrong: {self.err[-1500:]}"
        return ""


class Commands:
    """The process that forks, started by the first command."""

    def __init__(self):
        self._process: subprocess.Popen[str] | None = None

    def run(self, module: str, arguments: Sequence[str], folder: Path, limit: float = 30.0) -> Result:
        """Runs `python -m module arguments` in a folder, for at most `limit` seconds."""
        if self._process is None:
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"module": module, "arguments": list(arguments), "folder": str(folder), "limit": limit}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Result(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=30)


def _serve() -> None:
    warm()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        result = run(request["module"], request["arguments"], Path(request["folder"]), request["limit"])
        answers.write(json.dumps(dataclasses.asdict(result)) + "\n")
        answers.flush()


def warm() -> None:
    """Imports what commands import, once for all of them; starts no device and defines no flag of a command."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Forks of this process would otherwise look through all of these objects, and copy their memory by that.
    gc.collect()
    gc.freeze()


def run(module: str, arguments: Sequence[str], folder: Path, limit: float = 30.0) -> Result:
    """Runs `python -m module arguments` in a folder, for at most `limit` seconds."""
    warm()
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _become(module, arguments, folder, out.fileno(), err.fileno())
        code = _wait(child, started + limit)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", errors="backslashreplace"))
    return Result(code, *texts, time.monotonic() - started)


def _become(module: str, arguments: Sequence[str], folder: Path, out: int, err: int) -> None:
    """The child: never returns."""
    code = 1
    try:
        os.setsid()  # what it starts is ended with it
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int, until: float) -> int | None:
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    _serve()
