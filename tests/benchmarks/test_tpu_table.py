"""The table of real sizes in docs/benchmarks.md, row by row: minutes each, and not part of CI (`pytest -m table`)."""

import pytest

from benchmarks import tpu

pytestmark = pytest.mark.table

GIB = 1 << 30


@pytest.fixture(scope="module")
def compiled():
    """Each row's report and its number of chips, compiled once."""
    found = {}

    def compile_(name):
        if name not in found:
            row = next(row for row in tpu.ROWS if row.name == name)
            made = tpu.compile_row(row)
            found[name] = made["stages"][0], made["chips"]
        return found[name]

    return compile_


@pytest.mark.parametrize("name", [row.name for row in tpu.ROWS])
def test_a_row_fits_and_gives_up_its_state(name, compiled):
    report, chips = compiled(name)
    assert report["fits"], report["message"]
    # Parameters in fp32 with two moments, a step and a key: all of it is overwritten in place.
    state = 12 * report["trainable"] / chips
    assert report["donated"] == pytest.approx(state, rel=0.01)
    assert report["collectives"]["count"]["all-gather"] > 0


def test_sampled_tokens_save_the_decoder_four_times_its_work(compiled):
    """And, where a batch is large enough that gathered weights and gradients are not most of it, of its memory."""
    for rows, less in (("", 2.5), ("-384", 4)):
        sampled, unsampled = (compiled(f"7B-{kind}{rows}-v5e-64")[0] for kind in ("sampled", "unsampled"))
        assert unsampled["flops"]["decoder"] > 4 * sampled["flops"]["decoder"]
        assert unsampled["temporaries"] > less * sampled["temporaries"]
