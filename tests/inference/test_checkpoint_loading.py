"""What a checkpoint may be: a run, a stage of it, an import, a Hugging Face directory; with its recipe or another."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from support import tiny_checkpoints as tiny
from support.one_stage import get_config as one_stage

from configs import own
from vlvm_jax.config import Config, MeshConfig, build
from vlvm_jax.data.prompt.conversation import load_tokenizer
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import final
from vlvm_jax.inference.answering import Answering, Decoding, Request
from vlvm_jax.inference.engine import Engine
from vlvm_jax.inference.loading import load
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.weights.importing import import_checkpoint

SHORT = Decoding(max_new_tokens=12)
ONE = MeshConfig()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("loading")
    tiny.checkpoint(root / "hf", "llava_onevision")
    import_checkpoint(str(root / "hf"), epath.Path(root / "imported"))
    tiny.clip(root / "clip.mp4")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_root):
    """A run of a few steps over the embedded data."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    values = one_stage()
    values.stages[0].update(steps=2, batch_size=8)
    values.evals = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLVM_JAX_DATA", str(data_root))
        stages.run(build(Config, values), epath.Path(workdir), StopSignal(), final.evaluate)
    return workdir


def ask(answering, path, question="what is it ?"):
    (answer,) = answering.answer([Request("1", (("video", str(path)),), question)], SHORT)
    return answer


def test_an_import_answers_as_the_directory_it_came_from(folder):
    answers = [ask(load(str(folder / name), frames=4, mesh=ONE), folder / "clip.mp4") for name in ("hf", "imported")]
    assert answers[0].text == answers[1].text and answers[0].visual_tokens == answers[1].visual_tokens == 17


def test_on_a_cpu_every_layer_has_its_own_arrays(folder):
    """Stacked ones would be copied for every token."""
    answering = load(str(folder / "hf"), frames=4, mesh=ONE)
    engine, layers = answering.engine, answering.engine.model.config.decoder.num_hidden_layers
    parts = {path: value for path, value in engine.params.items() if path.endswith("/self_attn/q_proj/kernel")}
    of_decoder = [value for path, value in parts.items() if path.startswith("decoder/")]
    assert len(of_decoder) == layers and {value.shape[0] for value in of_decoder} == {1}
    stacked = Engine(Model(engine.model.config), params_lib.split(params_lib.join(engine.params), {}), engine.mesh)
    whole = Answering(stacked, answering.prompts)
    assert ask(answering, folder / "clip.mp4").text == ask(whole, folder / "clip.mp4").text


def test_a_run_answers_with_its_own_tokenizer_template_and_frames(run, data_root):
    clip = next(data_root.rglob("heldout_clips/*.mp4"))
    answering = load(str(run), mesh=ONE)
    spec = answering.prompts.spec
    assert spec.frames_per_video == 2 and spec.data.chat_template == "bare"
    assert spec.data.tokenizer == str(run / "hf" / "tokenizer.json")
    assert answering.prompts.end_ids == (load_tokenizer(spec.data.tokenizer).token_to_id("</s>"),)
    answer = ask(answering, clip, "What color is the shape?")
    assert answer.visual_tokens == 2 * 4
    of_stage = load(str(run / "instruct"), mesh=ONE)
    assert ask(of_stage, clip, "What color is the shape?").text == answer.text
    assert ask(load(str(run), frames=4, mesh=ONE), clip).visual_tokens == 4 * 4


def test_a_question_is_written_as_in_training(run, data_root):
    """Greedy decoding is what `evaluation.heldout` scores: the same token ids up to the answer."""
    from vlvm_jax.data.record import Record, Turn

    clip = str(next(data_root.rglob("heldout_clips/*.mp4")))
    prompts = load(str(run), mesh=ONE).prompts
    request = Request("1", (("video", clip),), "What color is the shape?")
    media = prompts.media(request)
    sample = prompts.sample(request, prompts.prompt(request), media)
    turn = Turn("<image>\nWhat color is the shape?", "red")
    trained = prompts.loader.encode(Record("1", "", request.media, (turn,)), [m.expansion for m in media])
    start = int(np.argmax(trained.loss_mask))
    np.testing.assert_array_equal(sample["token_ids"], trained.ids[:start])
    np.testing.assert_array_equal(sample["media_mask"], trained.media_mask[:start])


def test_another_recipe_over_a_checkpoint(folder):
    """Average pooling over 4 x 4 patches leaves one token a frame; the parameters are the checkpoint's."""
    recipe = own.get_config(f"llava-1.5-7b,base={folder / 'hf'},pool=4,frames=3,length=256")
    recipe.model.dtype = "float32"
    recipe.data.chat_template = "chatml"
    answering = load(str(folder / "imported"), config=build(Config, recipe))
    answer = ask(answering, folder / "clip.mp4")
    assert answer.visual_tokens == 3
    assert "You are a helpful assistant." in answering.prompts.prompt(Request("1", (), "why ?")).text
    whole = load(str(folder / "hf"))
    assert np.array_equal(
        answering.engine.params["decoder/embed_tokens/embedding"], whole.engine.params["decoder/embed_tokens/embedding"]
    )
    assert ask(load(None, config=build(Config, recipe)), folder / "clip.mp4").text == answer.text


def test_parameters_that_the_checkpoint_lacks_are_not_drawn(folder):
    recipe = own.get_config(f"llava-1.5-7b,base={folder / 'hf'},frames=3,length=256")
    recipe.model.adapter.name = "weighted_sampler"
    recipe.model.adapter.options = {"reading": "soft_slots", "num_tokens": 4}
    with pytest.raises(InputError, match=r"hf has no adapter/sampler/.* of the 'weighted_sampler' adapter; train it"):
        load(str(folder / "hf"), config=build(Config, recipe))


def test_lora_is_folded_in(run, folder, tmp_path):
    recipe = own.get_config(f"llava-1.5-7b,base={folder / 'hf'},frames=2,length=256,lora=2,data={tmp_path}/notes.jsonl")
    recipe.model.dtype = "float32"
    shutil.copy(folder / "clip.mp4", tmp_path / "clip.mp4")
    note = {"video": "clip.mp4", "question": "what is it ?", "answer": "a cat"}
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for _ in range(8)))
    recipe.update(tensorboard=False)
    recipe.data.workers = 0
    recipe.stages[0].trainable = {"decoder/**/lora_*": 0.5}
    recipe.stages[0].warmup_ratio = 0.0
    recipe.stages[0].length = 512
    stages.run(build(Config, recipe), epath.Path(tmp_path / "run"), StopSignal(), final.evaluate)
    answering = load(str(tmp_path / "run"), mesh=ONE)
    assert answering.engine.model.config.lora is None
    assert not any("lora" in path for path in answering.engine.params)
    before = load(str(folder / "hf"), frames=2, mesh=ONE).engine.params
    name = "decoder/layers/segments/0/self_attn/q_proj/kernel"
    assert jnp.abs(answering.engine.params[name] - before[name]).max() > 1e-3
    ask(answering, folder / "clip.mp4")


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("nowhere", {}, r"--checkpoint: 'nowhere' is neither a directory that exists nor a hub id"),
        ("{empty}", {}, r"--checkpoint: .* is neither a Hugging Face directory"),
        (None, {}, r"--checkpoint: name a run"),
        ("{hf}", {"chat_template": "klingon"}, "no template 'klingon'; there are vicuna_v1"),
        ("{hf}", {"chat_template": "vicuna_v1"}, "writes <s>, which is no token of the tokenizer"),
        ("{hf}", {"length": 9999}, "length: 9999; expected 1 to 512"),
    ],
)
def test_what_cannot_be_loaded(folder, tmp_path, checkpoint, options, message):
    given = checkpoint and checkpoint.format(empty=tmp_path, hf=folder / "hf")
    with pytest.raises(InputError, match=message):
        load(given, **options)


def test_a_checkpoint_without_a_template_says_what_to_do(folder, tmp_path):
    shutil.copytree(folder / "hf", tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        load(str(tmp_path / "hf"))
    assert load(str(tmp_path / "hf"), chat_template="chatml").prompts.end_ids
