"""How many steps a stage takes, and that the tiny recipes' rows are long enough for every record."""

import pytest
from support import small

from configs import ftfv, red_villm
from vlvm_jax.config import Config, StageConfig, build
from vlvm_jax.data.sample import loader as loader_lib
from vlvm_jax.data.sample import turns
from vlvm_jax.data.sources import mixture
from vlvm_jax.errors import InputError
from vlvm_jax.samples import sample_spec, with_checkpoint_files, with_embedded_data
from vlvm_jax.stop import StopSignal
from vlvm_jax.training.plan import num_steps, prepare_stage
from vlvm_jax.weights.initial import Initial


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
@pytest.mark.parametrize("recipe", [ftfv, red_villm, small])
def test_every_embedded_record_fits_the_rows_of_the_tiny_recipes(recipe):
    config = recipe.get_config("tiny")
    config.data.embedded.update(train_arrangements=60, train_clips=200, heldout_clips=60)
    config.data.max_bad_share = 0.0
    config = with_embedded_data(build(Config, config), StopSignal())
    config = with_checkpoint_files(config, Initial(config.model))
    for stage in config.stages:
        prepare_stage(config, stage)
    for held_out in config.evals:
        records = turns.split_turns(mixture.read_mixture(held_out.data, 0))
        loader = loader_lib.SampleLoader(records, sample_spec(config, held_out))
        loader_lib.check_lengths(loader, held_out.name, 0.0, probe=len(records))


# --- samples guided by their question ----------------------------------------------------------------------------


SCORING = {"prompt_tokenizer": "{embedded}/prompt_tokenizer.json", "prompt_length": 8}
SEARCHES = {"train_searches": 8, "heldout_searches": 8, "train_singles": 8}


@pytest.fixture
def guided(embedded):
    """The tiny recipe with a stage over searches, whose samples carry the question for CLIP."""
    config = small.get_config()
    config.data.embedded = {**small.DATA, **SEARCHES}
    config.data.update(SCORING)
    for held_out in config.evals:
        held_out.pack = False
    return config


def built(config):
    return with_embedded_data(build(Config, config), StopSignal())


def test_clips_of_guided_stages_have_rows_of_their_own(guided):
    with pytest.raises(InputError) as caught:
        prepare_stage(built(guided), built(guided).stages[-1])
    assert str(caught.value) == (
        f"config.stages.{guided.stages[-1].name}.pack: with config.data.prompt_tokenizer a question guides what is "
        "seen of its clip, and a row holds one question; set pack to False"
    )
    guided.stages[-1].pack = False
    config = built(guided)
    prepared = prepare_stage(config, config.stages[-1])
    sample = loader_lib.SampleLoader(prepared.records, prepared.spec)(0)
    assert sample["prompt_ids"].shape == (8,) and sample["prompt_ids"][0] == 2  # <s>


def test_packed_images_are_not_guided(guided):
    config = built(guided)
    prepared = prepare_stage(config, config.stages[0])
    assert config.stages[0].pack and prepared.spec.data.prompt_tokenizer is None


def test_evaluations_are_guided_in_rows_of_their_own(guided):
    guided.evals[0].pack = True
    with pytest.raises(InputError, match=r"videos: data\.prompt_tokenizer has a question guide .* set pack to False"):
        built(guided)


def test_where_the_scoring_tokenizer_lies(guided, tmp_path):
    class Files:
        def local_files(self, part, where):
            assert where == "config.data.prompt_tokenizer: '{clip}'"
            return str(tmp_path / part)

    (tmp_path / "clip").mkdir()
    guided.data.prompt_tokenizer = "{clip}"
    found = with_checkpoint_files(build(Config, guided), Files()).data.prompt_tokenizer
    assert found == str(tmp_path / "clip")
    guided.data.prompt_tokenizer = str(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"config\.data\.prompt_tokenizer: .* neither a directory that exists nor a hub"
    ):
        with_checkpoint_files(build(Config, guided), Files())
    (tmp_path / "own.json").write_text("{}")
    guided.data.prompt_tokenizer = str(tmp_path / "own.json")
    assert with_checkpoint_files(build(Config, guided), Files()).data.prompt_tokenizer == str(tmp_path / "own.json")


def test_settings_of_the_pixels_reach_the_samples(guided):
    guided.data.update({"frame_fit": "squash", "clips": "grid", "short_video": "identity"})
    guided.data.update({"frame_sampling": "segment_start", "clip_text": "question_and_options"})
    config = built(guided)
    spec = sample_spec(config, config.evals[0])
    assert (spec.data.frame_fit, spec.data.clips, spec.data.short_video) == ("squash", "grid", "identity")
    assert (spec.data.frame_sampling, spec.data.clip_text, spec.data.prompt_length) == (
        "segment_start",
        "question_and_options",
        8,
    )
    assert spec.image_mean == config.model.vision.image_mean
