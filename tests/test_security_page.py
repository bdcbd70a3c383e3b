"""What docs/security.md claims has a test, and the test that it names exists."""

import functools
import re

import pytest
from support.recipes import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| **")]


@functools.cache
def functions() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("row", ROWS, ids=[row.split("**")[1] for row in ROWS])
def test_every_threat_names_tests_that_exist(row):
    named = re.findall(r"`(\S+?)`", row.rpartition(" | ")[2])
    assert named
    for name in named:
        assert (ROOT / name).is_file() if name.startswith("tests/") else name in functions(), name


def test_every_test_that_is_named_anywhere_exists():
    assert len(ROWS) > 10
    for name in re.findall(r"`(tests/[^\s`]+)`", PAGE):
        assert (ROOT / name).is_file(), name
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= functions()
