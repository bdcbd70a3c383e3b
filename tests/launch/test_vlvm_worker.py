"""vlvm_worker.sh for real, in homes that stand in for workers; only Python and pip are stubs."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="workers are Linux machines")

SCRIPT = LAUNCH / "vlvm_worker.sh"

# A Python that makes environments whose pip only notes what it is asked for.
PYTHON = """#!/bin/bash
if [[ $1 == -c ]]; then exit 0; fi
if [[ $1 == -m && $2 == venv ]]; then
  mkdir -p "$4/bin"
  cp "$0" "$4/bin/python"
else
  echo "$PWD: $*" >>"$HOME/pip"
fi
"""
NO_PYTHON = "#!/bin/bash\nexit 1\n"
UV = """#!/bin/bash
cat <<'INSTALLER'
mkdir -p ~/.local/bin
printf '%s\\n' '#!/bin/bash' 'mkdir -p "${@: -1}/bin"; cp "$HOME/python" "${@: -1}/bin/python"; echo "uv $*" >>~/pip' \
  >~/.local/bin/uv
chmod +x ~/.local/bin/uv
INSTALLER
"""


class Worker:
    def __init__(self, home: Path):
        self.home = home
        self.base = home / "vlvm_jax"
        (home / "bin").mkdir(parents=True)
        self.tool("python3.12", PYTHON)

    def tool(self, name: str, text: str) -> None:
        (self.home / "bin" / name).write_text(text)
        (self.home / "bin" / name).chmod(0o755)

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "HOME": str(self.home), "PATH": f"{self.home}/bin:{os.environ['PATH']}"}
        return subprocess.run(["bash", SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=30)

    def do(self, *arguments: str) -> str:
        done = self.call(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> str:
        """The state without the command's id."""
        line = re.fullmatch(r"vlvm_jax: (absent|running|lost|exit \d+)( \d+)?\n", self.do("status"))
        assert line
        return line[1]

    def ended(self) -> str:
        """The state once the command is over."""
        deadline = time.monotonic() + 20
        while self.status() == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.status()

    @property
    def log(self) -> list[str]:
        return (self.base / "log").read_text().splitlines()

    @property
    def pip(self) -> list[str]:
        return (self.home / "pip").read_text().splitlines()


@pytest.fixture
def make_worker(tmp_path):
    workers = []

    def make(name: str) -> Worker:
        workers.append(Worker(tmp_path / "workers" / name))
        return workers[-1]

    yield make
    for worker in workers:
        if (worker.base / "lock").exists():
            worker.call("stop", "0")


@pytest.fixture
def worker(make_worker) -> Worker:
    """Installed and idle."""
    worker = make_worker("w-0")
    (worker.base / "src").mkdir(parents=True)
    return worker


def git(where: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", where, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A git checkout with the launch scripts."""
    where = tmp_path / "checkout"
    shutil.copytree(LAUNCH, where / "launch")
    (where / "pyproject.toml").write_text("committed\n")
    git(tmp_path, "init", "--quiet", str(where))
    git(where, "add", ".")
    git(where, "commit", "--quiet", "--message=one")
    return where


def test_tpu_vm_installs_starts_follows_and_starts_again_on_real_workers(cloud, make_worker, checkout):
    workers = [make_worker("w-0"), make_worker("w-1")]
    (cloud.home / "bin/git").unlink()  # the real one
    (checkout / "pyproject.toml").write_text("not committed\n")
    cloud.script(
        ("tpu-vm describe", [{"err": "NOT_FOUND", "code": 1}, {"out": "READY\tv5litepod-16"}]),
        ("tpu-vm scp", [{"act": True}]),
        ("tpu-vm ssh", [{"act": True}]),
    )
    program = 'echo "$PWD" "$KEY" "$(command -v python)" "$@"; [[ -e ~/again ]] || { touch ~/again; exit 75; }'
    arguments = ["it's", 'a "b" $HOME', "", "*", "new\nline", "--", "ümlaut"]
    flags = ["--name=run", "--zone=z", "--type=v5e-16", "--env", "KEY=a 'b' $c"]
    command = ["bash", "-c", program, "bash", *arguments]
    done = cloud.run("tpu_vm.sh", *flags, "--", *command, launch=checkout / "launch")
    assert done.returncode == 0, done.stderr
    assert "uncommitted changes are left out" in done.stderr

    for worker in workers:
        line = " ".join([f"{worker.base}/src", "a 'b' $c", f"{worker.base}/venv/bin/python", *arguments])
        log = (worker.base / "log").read_text()
        assert log.count(f"\n{line}\n") == 2  # once until exit code 75, once until 0
        assert (worker.base / "src/pyproject.toml").read_text() == "committed\n"
        assert worker.pip == [f"{worker.base}/src: -m pip install --quiet .[tpu]"]  # the second start needs none
    assert done.stdout == (workers[0].base / "log").read_text()  # all of it, each byte once


def test_a_run_outlives_its_starter_and_says_how_it_ended(worker):
    assert worker.do("status") == "vlvm_jax: absent\n"
    worker.do("start", "--", "bash", "-c", "until [[ -e ~/go ]]; do sleep 0.02; done; exit 7")
    assert worker.status() == "running"
    assert os.getsid(int((worker.base / "group").read_text())) == int((worker.base / "group").read_text())
    (worker.home / "go").touch()
    assert worker.ended() == "exit 7"


def test_a_second_start_is_refused_while_the_first_runs(worker):
    worker.do("start", "--", "sleep", "60")
    refused = worker.call("start", "--", "true")
    assert refused.returncode == 1
    assert "already running a command" in refused.stderr and refused.stderr.count("\n") == 1
    assert worker.status() == "running"


def test_stop_lets_the_command_save(worker):
    worker.do("start", "--", "bash", "-c", "trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.02; done")
    while "ready" not in worker.log:
        time.sleep(0.02)
    worker.do("stop", "20")
    assert worker.status() == "exit 75"
    assert worker.log[-1] == "saved"
    worker.do("stop", "20")  # nothing left to stop


def test_stop_kills_what_does_not_end(worker):
    worker.do("start", "--", "bash", "-c", "trap '' TERM; echo ready; sleep 60 & sleep 60; sleep 60")
    while "ready" not in worker.log:
        time.sleep(0.02)
    worker.do("stop", "0.1")
    assert worker.status() == "lost"  # nobody holds the lock any more, so nobody lives


def test_what_a_finished_run_left_behind_does_not_stand_in_the_way(worker):
    worker.do("start", "--", "bash", "-c", "sleep 60 & exit 1")
    assert worker.ended() == "exit 1"
    worker.do("start", "--", "true")
    assert worker.ended() == "exit 0"


def test_a_run_that_vanished_is_lost(worker):
    worker.do("start", "--", "sleep", "60")
    os.killpg(int((worker.base / "group").read_text()), 9)
    assert worker.ended() == "lost"


def test_the_id_names_the_command_and_its_environment(worker):
    ids = set()
    for arguments in (["--", "true"], ["--", "true", "x"], ["A=1", "--", "true"]):
        worker.do("start", *arguments)
        worker.ended()
        ids.add(worker.do("status").split()[-1])
    assert len(ids) == 3


def test_the_same_command_goes_on_in_the_same_log_and_another_in_a_new_one(worker):
    logs = []
    for word in ("one", "one", "two"):
        worker.do("start", "--", "echo", word)
        worker.ended()
        logs.append([line for line in worker.log if not line.startswith("launch: ")])
    assert logs == [["one"], ["one", "one"], ["two"]]


def test_follow_reads_on_until_the_end(worker):
    worker.do("start", "--", "bash", "-c", "echo one; sleep 0.3; echo two")
    text = worker.do("follow", "0", "20")
    assert text.splitlines()[1:] == ["one", "two"]
    assert worker.do("follow", str(text.index("one\n")), "0") == "one\ntwo\n"
    assert worker.do("follow", str(len(text)), "20") == ""


def test_follow_ends_with_its_time(worker):
    worker.do("start", "--", "sleep", "60")
    assert worker.do("follow", "0", "1").endswith("sleep 60\n")
    assert worker.status() == "running"


@pytest.mark.parametrize(("code", "shown"), [(0, 0), (75, 0), (2, 5), (1, 5)])
def test_why_shows_the_last_lines_of_failures(worker, code, shown):
    worker.do("start", "--", "bash", "-c", f"seq 8; exit {code}")
    assert worker.ended() == f"exit {code}"
    lines = worker.do("why").splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["4", "5", "6", "7", "8"][:shown]


def test_install_from_a_repository_follows_its_revision(make_worker, checkout):
    worker = make_worker("w-0")
    first = git(checkout, "rev-parse", "HEAD")
    (checkout / "pyproject.toml").write_text("newer\n")
    git(checkout, "commit", "--quiet", "--all", "--message=two")

    worker.do("install", "tpu", str(checkout), first)
    assert (worker.base / "src/pyproject.toml").read_text() == "committed\n"
    worker.do("install", "tpu", str(checkout), first)
    assert len(worker.pip) == 1
    worker.do("install", "tpu", str(checkout), "HEAD")
    assert (worker.base / "src/pyproject.toml").read_text() == "newer\n"
    assert len(worker.pip) == 2
    worker.do("install", "tpu,wandb", str(checkout), "HEAD")
    assert worker.pip[-1].endswith("pip install --quiet .[tpu,wandb]")


def test_without_a_fitting_python_uv_brings_one(make_worker, checkout):
    worker = make_worker("w-0")
    (worker.home / "python").write_text(PYTHON)
    (worker.home / "python").chmod(0o755)
    for name in ("python3.12", "python3.13", "python3.11", "python3"):
        worker.tool(name, NO_PYTHON)
    worker.tool("curl", UV)
    worker.do("install", "tpu", str(checkout), "HEAD")
    assert worker.pip == [
        f"uv venv --quiet --seed --python 3.12 {worker.base}/venv",
        f"{worker.base}/src: -m pip install --quiet .[tpu]",
    ]


def test_a_failed_installation_is_not_taken_for_one(make_worker, checkout):
    worker = make_worker("w-0")
    worker.do("install", "tpu", str(checkout), "HEAD")
    worker.tool("python3.12", PYTHON.replace('"$HOME/pip"', '"$HOME/pip"; exit 1'))
    for _ in range(2):
        assert worker.call("install", "tpu,wandb", str(checkout), "HEAD").returncode == 1
    worker.tool("python3.12", PYTHON)
    worker.do("install", "tpu", str(checkout), "HEAD")  # what was installed at first is broken now
    assert len(worker.pip) == 4
