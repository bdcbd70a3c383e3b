"""Names and texts of other people on a terminal: shown as they are, without the control characters in them."""

import io
import json
import re
import sys

import pytest
from rich.table import Table

from vlvm_jax import console as progress
from vlvm_jax import errors, json_text, printing
from vlvm_jax.errors import InputError

HOSTILE = "[/x] [red]r :smile: \x1b]0;owned\x07\x1b[2J \x9b2J \r$x\b é 视频"
SHOWN = r"[/x] [red]r :smile: \x1b]0;owned\x07\x1b[2J \x9b2J \r$x\x08 é 视频"


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def shown(request, monkeypatch):
    """What is printed, without the escape sequences that rich makes itself for a terminal."""
    file = io.StringIO()
    console = printing.PlainConsole(soft_wrap=True, file=file, force_terminal=request.param, width=200)
    monkeypatch.setattr(progress, "console", console)

    def read() -> str:
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text), text
        return text

    return read


def test_a_line(shown):
    progress.say(f"{HOSTILE}\n\tnext")
    assert shown() == f"{SHOWN}\n        next\n"


def test_a_table(shown):
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    progress.show_table(table)
    assert shown().count(SHOWN) == 3


def test_a_bar(shown):
    with progress.Meter(HOSTILE, 2) as meter:
        meter.update(1, HOSTILE)
        meter.update(2, HOSTILE)
    assert SHOWN in shown()


def test_a_message_is_one_line(capsys):
    errors.tell(InputError(f"{HOSTILE}\n\tnext\u2028"))
    assert capsys.readouterr().err == f"error: {SHOWN}\\n\\tnext\\u2028\n"


def test_json_holds_no_control_character():
    text = json_text.readable({HOSTILE: "\x7f\x85"})
    assert text.isprintable() and json.loads(text) == {HOSTILE: "\x7f\x85"}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_result_is_unchanged_where_no_terminal_reads_it(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    printing.write(f"{HOSTILE}\n\tnext")
    assert capsys.readouterr().out == f"{SHOWN if terminal else HOSTILE}\n\tnext\n"
