"""What `--help` prints of every command: each flag once, with its help string, which is the only text about it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.recipes import ROOT

import vlvm_jax
from vlvm_jax import cli
from vlvm_jax.__main__ import COMMANDS
from vlvm_jax.data.__main__ import COMMANDS as OF_DATA

PACKAGE = Path(vlvm_jax.__file__).parent
# Runs each command line in a fork, as `python -m` does, and tells how it ended and which flags were defined.
RUN = """
import contextlib, io, json, os, runpy, sys
from absl import flags
from vlvm_jax import cli

for line in json.loads(sys.argv[1]):
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    sys.argv = line
    out, code = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    known = flags.FLAGS.flags_by_module_dict()
    defined = {flag.name: flag.help for name in known if not name.startswith("absl.") for flag in known[name]}
    print(json.dumps([code, out.getvalue(), defined]), flush=True)
    os._exit(0)
"""
HELP = {
    **{name: [f"vlvm_jax.{name}", "--help"] for name in COMMANDS},
    **{f"data {name}": ["vlvm_jax.data", name, "--help"] for name in OF_DATA},
    "vlvm_jax": ["vlvm_jax", "--help"],
}
OTHERS = {"list": ["vlvm_jax"], "version": ["vlvm_jax", "--version"]}


@pytest.fixture(scope="module")
def printed():
    """Exit code, output and help strings of the defined flags, for each command line."""
    lines = {**HELP, **OTHERS}
    command = [sys.executable, "-c", RUN, json.dumps(list(lines.values()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not done.stderr, done.stderr
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", HELP)
def test_every_flag_is_there_once_with_its_help(printed, command):
    code, out, defined = printed[command]
    assert code == 0
    shown = re.findall(r"^  --(?:\[no\])?(\w+)", out, re.MULTILINE)
    assert sorted(shown) == sorted(defined)
    flat = " ".join(out.split())
    for name, text in defined.items():
        # Without what absl adds: the choices of an enum, and that a flag may be repeated.
        text = re.sub(r"^<[^>]*>: |; repeat this option.*", "", " ".join(text.split()))
        assert len(text.split()) > 2 and re.search(rf"--(\[no\])?{name} {re.escape(text)}", flat), name
    assert max(map(len, out.splitlines())) <= 120
    if command not in ("data", "data verify"):
        assert defined


def test_choices_defaults_and_repetition_are_told(printed):
    flat = " ".join(printed["evaluate"][1].split())
    assert "[one of exact, normalised, contains, yes_no; default: normalised]" in flat
    assert "shuffled_prompt, shuffled_question; may be repeated]" in flat
    assert re.search(r"--temperature [^-]*\[default: 0\]", flat)
    assert "--[no]verify" in printed["convert"][1] and "[default: true]" in printed["convert"][1]


def test_summary_usage_arguments_and_remarks_stay_in_order():
    doc = """Summarize.

    usage: x FILE

      FILE    what to
              read

      OTHER   more

    A remark.
    """
    expected = "Summarize.\n\nusage: x FILE\n\n  FILE   what to read\n  OTHER  more\n  sub    a command\n\nA remark."
    assert cli.help_text(doc, "no module", [("sub", "a command")]) == expected


def test_the_commands_are_listed_with_a_line_each(printed):
    code, out, _ = printed["list"]
    assert code == 0 and re.findall(r"^  (\w+) +\S", out, re.MULTILINE) == list(COMMANDS)
    assert printed["version"][:2] == [0, f"vlvm_jax {vlvm_jax.__version__}\n"]
    assert re.findall(r"^  (\w+) +\S", printed["data"][1], re.MULTILINE) == list(OF_DATA)


def test_no_command_is_left_out():
    of_package = {file.stem for file in PACKAGE.glob("[!_]*.py") if "sys.exit(cli.run(" in file.read_text()}
    assert {*of_package, "data"} == set(COMMANDS)
    assert {file.stem for file in (PACKAGE / "commands").glob("[!_]*.py")} == set(OF_DATA)


def test_the_pages_settings_are_all_flags():
    text = (PACKAGE / "commands" / "synthesize.py").read_text()
    from vlvm_jax.data.sources.text_pages import TextPages

    listed = set(re.findall(r'^    "(\w+)": "', text.partition("PAGES = {")[2].partition("\n}")[0], re.MULTILINE))
    assert listed == TextPages.model_fields.keys() - {"max_pages"}
