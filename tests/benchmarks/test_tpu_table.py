"""The table of real sizes in docs/benchmarks.md, row by row: minutes each, and not part of CI (`pytest -m table`)."""

from importlib.metadata import version

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
    """And its memory, at as many rows as the unsampled step has room for; with few rows, gathered weights and gradients
    are most of it, which do not depend on the tokens."""
    whole = [compiled(f"7B-{kind}-v5e-64")[0] for kind in ("unsampled", "sampled")]
    part = [compiled(f"decoder-{kind}-384-v5e-64")[0] for kind in ("unsampled", "sampled")]
    for unsampled, sampled in (whole, part):
        assert unsampled["flops"]["decoder"] > 4 * sampled["flops"]["decoder"]
    assert part[0]["temporaries"] > 4 * part[1]["temporaries"]
    assert whole[0]["temporaries"] > 2.5 * whole[1]["temporaries"]


def test_the_decoder_alone_needs_no_more_than_maxtext(compiled):
    """2.80 GiB of temporaries is MaxText 0.2.5's figure for this shape (jax 0.12.0.1, libtpu 0.0.51)."""
    report, _ = compiled("decoder-v5e-64")
    newer = tuple(int(part) for part in version("jax").split(".")[:2]) >= (0, 12)
    assert report["temporaries"] <= (2.80 if newer else 3.45) * GIB
    assert report["peak"] <= 3.5 * GIB
