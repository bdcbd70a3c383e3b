"""The launch scripts with stubs on the PATH instead of gcloud, kubectl, xpk and git."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
TOOLS = ("gcloud", "kubectl", "xpk", "git")


@dataclass
class Cloud:
    """A folder with stubs; `scenario` is a list of (words, replies): the first whose words are in a command line
    answers with its next reply, a dict of `out`, `err` and `code`. `act` runs ssh and scp on folders, `reads` keeps
    what comes on stdin."""

    home: Path

    def script(self, *scenario: tuple[str, list[dict]]) -> None:
        (self.home / "scenario").write_text(repr(scenario))

    def environment(self, **env: str) -> dict[str, str]:
        return {
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "REAL_PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "STUB_DIR": str(self.home),
            "VLVM_LAUNCH_POLL": "0",
            "VLVM_LAUNCH_GRACE": "5",
            **env,
        }

    def run(self, script: str, *args: str, launch: Path = LAUNCH, **env: str) -> subprocess.CompletedProcess:
        """Runs a script of launch/ (or of a copy) to its end."""
        return subprocess.run(
            [launch / script, *args],
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[list[str]]:
        """Every command the scripts ran, in order: the tool's name and its arguments."""
        log = self.home / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "stub"
    stub.write_text(f"#!{sys.executable} -IS\n" + (Path(__file__).parent / "stub.py").read_text())
    stub.chmod(0o755)
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(stub)
    result = Cloud(tmp_path)
    result.script()
    return result
