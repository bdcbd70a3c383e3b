"""The table of mutants still fits the code: a fault that cannot be made any more would count as noticed."""

import mutants
import pytest
from mutant_table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant):
    compile(mutant.changed(mutants.ROOT), mutant.file, "exec")
    assert mutant.old != mutant.new and mutant.paths
    for path in mutant.paths:
        assert "pytestmark = pytest.mark.slow" not in (mutants.ROOT / path).read_text(), f"{path} is no quick test"


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_mutant_that_no_longer_fits_is_named(tmp_path):
    (tmp_path / "vlvm_jax").mkdir()
    (tmp_path / "vlvm_jax" / "a.py").write_text("one = 1\none = 1\n")
    mutant = type(MUTANTS[0])("two-for-one", "a.py", "test_mutants.py", "one = 1", "one = 2")
    with pytest.raises(ValueError, match=r"two-for-one: vlvm_jax/a.py holds 'one = 1' 2 times, expected once"):
        mutant.changed(tmp_path)


def test_what_kills_a_mutant_is_told(tmp_path):
    """Over a checkout of one test file."""
    root = tmp_path / "checkout"
    (root / "tests").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    outcomes = {}
    for name, text in (("good", "def test_it(): pass"), ("bad", "def test_it(): assert 0"), ("unread", "import none_")):
        (root / "tests" / f"test_{name}.py").write_text(text)
        outcomes[name] = mutants.run_tests(root, [f"tests/test_{name}.py"], 60)
    verdicts = [outcomes[name].verdict for name in ("good", "bad", "unread")]
    assert verdicts == ["survived", "killed", "error"] and outcomes["bad"].by == "test_bad.py::test_it"
