"""The inference benchmark at its smallest: it runs, both say the same, nothing is missing from the table."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import inference

pytestmark = pytest.mark.slow
NEW = 6
VISUAL = {"2648": 2648, "1026": 1026, "513": 513, "slowfast": 3680, "igvlm": 2640}
ALONE = {"tower", "products of the prompt"}
PARTS = {"clip", "tower", "first", "decode"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What is printed, and the file."""
    file = tmp_path_factory.mktemp("inference") / "result.json"
    command = [sys.executable, "-m", "benchmarks.inference", "--scale=tiny", "--rounds=1", f"--new={NEW}"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # one device
    done = subprocess.run([*command, f"--json={file}"], env=environment, capture_output=True, text=True, timeout=900)
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout, json.loads(file.read_text())


def test_budgets_have_their_real_tokens_and_both_say_the_same(made):
    _, result = made
    assert {name: case["visual_tokens"] for name, case in result["budgets"].items()} == VISUAL
    for name, case in result["budgets"].items():
        assert case["equal_tokens"] == 1.0, name
        assert case["prompt_tokens"] > case["visual_tokens"] + 50


def test_every_part_is_measured(made):
    _, result = made
    for name, case in result["budgets"].items():
        guided = name in inference.FREE
        assert set(case["ours"]) == PARTS | ({"selection"} if guided else set()), name
        assert set(case["theirs"]) == {"first", "decode"}
        for costs in (*case["ours"].values(), *case["theirs"].values()):
            assert len(costs) == 1 and costs[0]["wall"] > 0
    assert len(result["ratios"]) == 2 * len(VISUAL) + len(inference.FREE) * len(inference.BASELINES) + len(ALONE)
    assert set(result["alone"]) == ALONE


def test_the_table_is_whole(made):
    printed, result = made
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    first, second = rows[: 2 + len(VISUAL)], rows[2 + len(VISUAL) :]
    assert tuple(first[0]) == inference.COLUMNS
    for row in first[2:]:
        missing = [column for column, cell in zip(inference.COLUMNS, row, strict=True) if not cell]
        assert missing == ([] if row[0] in inference.FREE else ["selection, s"])
    assert [row[0] for row in second[2:]] == list(result["ratios"])
    assert "transformers" in printed and "load_before" in printed


def test_answers_count_up_to_where_they_part():
    def case(ours, theirs):
        return SimpleNamespace(answer=lambda: ours, generate=lambda: theirs, generate_from_pixels=lambda: theirs[::-1])

    assert inference.equal_tokens("513", case([1, 2, 3, 4], [1, 2, 3, 4])) == 1  # type: ignore[arg-type]
    assert inference.equal_tokens("513", case([1, 2, 3, 4], [1, 9, 3, 4])) == 0.25  # type: ignore[arg-type]
    assert inference.equal_tokens("igvlm", case([4, 3], [3, 4])) == 1  # type: ignore[arg-type]
