"""How many steps a stage takes."""

import pytest

from vlvm_jax.config import StageConfig, build
from vlvm_jax.errors import InputError
from vlvm_jax.training.prepare import num_steps


def stage(**values):
    usual = {"name": "align", "data": [{"path": "x.json"}], "frames": 1, "length": 8, "trainable": {"**": 1e-3}}
    return build(StageConfig, {**usual, "batch_size": 4, "pack": False, **values})


@pytest.mark.parametrize(
    ("records", "epochs", "batch_size", "steps"),
    [
        (12, 1, 4, 3),
        (10, 1, 4, 3),  # two rows of the third batch are the next epoch's
        (9, 1, 4, 3),
        (1, 1, 4, 1),
        (10, 2, 4, 5),
        (10, 3, 4, 8),
        (10, 0.5, 4, 2),
        (10, 0.1, 4, 1),
        (1000, 0.3, 4, 75),  # 0.3 * 1000 is not quite 300 in binary
        (558_128, 1, 256, 2181),
    ],
)
def test_epochs_show_every_record_that_often(records, epochs, batch_size, steps):
    found = num_steps(stage(epochs=epochs, batch_size=batch_size), records)
    assert found == steps
    assert (found - 1) * batch_size < records * epochs <= found * batch_size


def test_steps_are_steps():
    assert num_steps(stage(steps=7, pack=True), 10) == 7


def test_epochs_of_packed_rows():
    with pytest.raises(InputError) as caught:
        num_steps(stage(epochs=1, pack=True), 10)
    assert str(caught.value) == (
        "config.stages.align.epochs: how many rows packing makes of 10 samples is not known; give steps (without "
        "packing 3), or pack=False"
    )
