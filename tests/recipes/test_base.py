"""The recipe of the small image model: its rows hold what it learns from."""

import pytest

from configs import base
from vlvm_jax.config import Config, InitFrom, build
from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.embedded.shapes import ShapesOptions
from vlvm_jax.data.sample.loader import SampleLoader
from vlvm_jax.data.tools.prepare import open_records
from vlvm_jax.errors import InputError
from vlvm_jax.samples import sample_spec

MANY = 150


def test_a_base_starts_from_a_tower_and_nothing_else_does():
    start = build(Config, base.get_config("tiny,tower=runs/base-tower")).model.init_from
    assert start == InitFrom(encoder="runs/base-tower", connector="runs/base-tower")
    assert all(build(Config, base.get_config(preset)).model.init_from is None for preset in base.PRESETS)
    with pytest.raises(InputError, match="tower has no effect on clip"):
        base.get_config("clip,tower=runs/base-tower")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {f"train_{name}": MANY for name in ("arrangements", "sets", "signs", "sheets", "timeless_texts")}
    embedded = {**base.get_config().data.embedded, **counts, "train_singles": 1200}
    embedded |= {name: 0 for name in embedded if name.startswith("heldout_")}
    return shapes.ensure(ShapesOptions(**embedded), tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("preset", "stage"), [("tower", "patches"), ("tiny", "things"), ("tiny", "questions")])
def test_no_record_is_too_long_for_a_row(folder, preset, stage):
    config = build(Config, base.get_config(preset))
    tokenizers = {"tokenizer": f"{folder}/tokenizer.json", "prompt_tokenizer": f"{folder}/prompt_tokenizer.json"}
    data = config.data.model_copy(update={name: tokenizers[name] for name in tokenizers if getattr(config.data, name)})
    config = config.model_copy(update={"data": data})
    stage = next(each for each in config.stages if each.name == stage)
    records = open_records([entry.path.format(embedded=folder) for entry in stage.data])
    loader = SampleLoader(records, sample_spec(config, stage))
    assert len(records) >= MANY * len(stage.data)
    for number in range(len(records)):
        loader.load(number)  # raises `BadSampleError` for one that is
