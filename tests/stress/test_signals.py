"""A few rounds of the stress script; fifty are run by hand."""

import pytest
from stress import signals

pytestmark = pytest.mark.slow


def test_runs_end_and_continue_to_equal_losses(tmp_path, data_root):
    counts = signals.stress(tmp_path, data_root, rounds=3, seed=0, limit=60)
    assert counts.total() == 3
