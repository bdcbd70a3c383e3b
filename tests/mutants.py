"""Breaks the package in one place at a time, and runs the quick tests that have to notice.

    python tests/mutants.py [--only=NAME ...] [--suite] [--limit=900] [--list]

Works on a temporary copy of the checkout, committed or not. First the test files of all chosen mutants run unchanged
and have to pass. Then each mutant runs with its own files. `--suite` runs the whole quick suite for those that
survive. The exit code is 0 if all were killed, 1 if one survives or breaks the import instead of a test, 2 if the table
no longer fits the code.
"""

import argparse
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutant_table import MUTANTS, PACKAGE, Mutant

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the tests made of a mutant: `killed`, `survived` or `error`, and the test that failed first."""

    verdict: str
    seconds: float
    by: str = ""


def copy_checkout(target: Path) -> None:
    """Copies all files that git does not ignore, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(root: Path, paths: Sequence[str], limit: float) -> Outcome:
    """Runs test files of the copy in one process, up to the first failure; all quick tests if none are given."""
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same size and second would not be compiled anew
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root.with_name("compiled")),
    }
    start = time.monotonic()
    alone = ("-n", "0") if paths else ()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *alone, "-x", "-q", "-p", "no:cacheprovider", "-rfE", *paths],
        cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what the tests have started
        process.communicate()
        return Outcome("killed", time.monotonic() - start, f"not done after {limit:g} s")
    seconds = time.monotonic() - start
    if process.returncode == 0:
        return Outcome("survived", seconds)
    failed = re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", said, re.MULTILINE)
    if process.returncode == 1 and failed:
        return Outcome("killed", seconds, failed[0])
    return Outcome("error", seconds, " ".join(said.split()[-40:]))


def tried(mutant: Mutant, root: Path, limit: float, suite: bool) -> Outcome:
    """Applies a mutant to the copy, runs its tests and takes it back."""
    file = root / PACKAGE / mutant.file
    before = file.read_text()
    file.write_text(mutant.changed(root))
    try:
        outcome = run_tests(root, mutant.paths, limit)
        if outcome.verdict == "survived" and suite:
            outcome = run_tests(root, (), limit)
        return outcome
    finally:
        file.write_text(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="this mutant; may be repeated")
    parser.add_argument("--suite", action="store_true", help="run the whole quick suite for survivors")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one run; a mutant that hangs is killed")
    parser.add_argument("--list", action="store_true", help="list the mutants")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if mutant.name in (options.only or names)]
    width = max(len(mutant.name) for mutant in chosen)
    if options.list:
        print("\n".join(f"{mutant.name:{width}}  {mutant.file}" for mutant in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = Path(folder) / "checkout"
        copy_checkout(root)
        misfits = []
        for mutant in chosen:
            try:
                mutant.changed(root)
            except ValueError as error:
                misfits.append(str(error))
        if misfits:
            print("\n".join(misfits), file=sys.stderr)
            return 2
        files = list(dict.fromkeys(path for mutant in chosen for path in mutant.paths))
        print(f"{len(files)} test files without a mutant ...", flush=True)
        unchanged = run_tests(root, files, options.limit * len(chosen))
        if unchanged.verdict != "survived":
            print(f"the tests fail as they are: {unchanged.by}", file=sys.stderr)
            return 2
        verdicts = []
        for mutant in chosen:
            outcome = tried(mutant, root, options.limit, options.suite)
            verdicts.append(outcome.verdict)
            print(f"{mutant.name:{width}}  {outcome.verdict:8}  {outcome.seconds:4.0f} s  {outcome.by}", flush=True)
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts))))
    return int(any(verdict != "killed" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
