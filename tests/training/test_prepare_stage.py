"""How many steps a stage takes, and that the tiny recipes' rows are long enough for every record."""

import pytest
import recipes

from configs import ftfv, red_villm
from vlvm_jax.config import Config, StageConfig, build
from vlvm_jax.data import pipeline
from vlvm_jax.data.sources import mixture
from vlvm_jax.errors import InputError
from vlvm_jax.training.interrupt import StopSignal
from vlvm_jax.training.prepare import num_steps, prepare_stage, sample_spec, with_embedded_data


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
    found = num_steps(stage(epochs=epochs, batch_size=batch_size), records, [])
    assert found == steps
    assert (found - 1) * batch_size < records * epochs <= found * batch_size


def test_steps_are_steps():
    assert num_steps(stage(steps=7, pack=True), 10, []) == 7


def test_epochs_of_packed_rows():
    """Rows of 8 tokens and one frame, four a batch: two texts of four tokens fit a row, one image of four does."""
    assert num_steps(stage(epochs=1, pack=True), 80, [(4, 0)]) == 10
    assert num_steps(stage(epochs=2, pack=True), 80, [(4, 1)]) == 40
    with pytest.raises(InputError, match=r"config.stages.align.epochs: no record probed can be used; give steps"):
        num_steps(stage(epochs=1, pack=True), 10, [])


@pytest.mark.usefixtures("embedded")
@pytest.mark.parametrize("recipe", [ftfv, red_villm])
def test_every_embedded_record_fits_the_rows_of_the_tiny_recipes(recipe):
    config = recipe.get_config("tiny")
    config.data.embedded = dict(recipes.DATA)
    config.data.max_bad_share = 0.0
    config = with_embedded_data(build(Config, config), StopSignal())
    for stage in config.stages:
        prepare_stage(config, stage)
    for held_out in config.evals:
        records = pipeline.split_turns(mixture.read_mixture(held_out.data, 0))
        loader = pipeline.SampleLoader(records, sample_spec(config, held_out))
        pipeline.check_lengths(loader, held_out.name, 0.0, probe=len(records))
