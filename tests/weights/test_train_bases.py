"""Recipes that start from a tower and a decoder of their own, and from a SmolVLM: trained, exported, started from."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers
from etils import epath
from support.families import bare, clip, llama, randomized
from support.hf_checkpoints import TOKENIZERS, checkpoint, image_processor

from configs import ftfv
from vlvm_jax.config import Config, build, to_json
from vlvm_jax.data.sample.processor import load_processor
from vlvm_jax.evaluation import final
from vlvm_jax.samples import with_checkpoint_files
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.initial import Initial
from vlvm_jax.weights.sources import open_source

pytestmark = pytest.mark.slow

SIZE = 16


def recipe(arg: str, stage: int, **model: Any) -> Config:
    """A few steps of one stage of the recipe, in fp32."""
    config = ftfv.get_config(arg)
    config.stages = [config.stages[stage]]
    config.stages[0].update(batch_size=8, frozen_dtype="float32")
    config.model.update(dtype="float32", **model)
    config.data.workers = 0
    config.tensorboard = False
    return build(Config, config)


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """The one stage's entry of the summary."""
    (stage,) = stages.run(config, epath.Path(workdir), StopSignal(), final.evaluate)["stages"]
    assert stage["steps"] >= 2 and stage["compilations"] == 1 and np.isfinite(stage["last_loss"])
    return stage


def export(run: Path, folder: Path) -> Path:
    result = write.export_checkpoint(str(run), folder, Options())
    assert result.verified is not None and result.verified.difference < 1e-5 and result.verified.same_answer
    return folder


def assert_as_in(run: Path, source: Path, part: str) -> None:
    """A part that no stage has trained, bit for bit."""
    ours, theirs = open_source(str(run), "run"), open_source(str(source), "source")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(a.shape, np.float32, sharding=device)
        for path, a in ours.shapes.items()
        if path.startswith(f"{part}/")
    }
    assert wanted
    found, expected = ours.load(wanted), theirs.load(wanted)
    assert all(np.array_equal(found[path], expected[path]) for path in wanted)


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> Path:
    """CLIP as on the hub, with its image processor."""
    folder = tmp_path_factory.mktemp("tower")
    bare("CLIPVisionModel", clip(SIZE)).save_pretrained(folder)
    image_processor("llava", SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """A Llama with its tokenizer and without a template, as Vicuna."""
    folder = tmp_path_factory.mktemp("decoder")
    TOKENIZERS["llama_like"]().save_pretrained(folder)
    bare("LlamaForCausalLM", llama(vocab_size=400)).save_pretrained(folder)
    return folder


def test_a_model_from_parts(tower, decoder, recipe_data, tmp_path):
    arg = f"data={recipe_data},tokens=4,frames=4,length=400"
    parts = {
        "vision": to_json(open_source(str(tower), "tower").vision),
        "decoder": to_json(open_source(str(decoder), "decoder").decoder),
        "init_from": {"encoder": str(tower), "decoder": str(decoder)},
    }
    run = tmp_path / "run"
    stage = train(recipe(f"vicuna-7b,{arg}", 0, **parts), run)
    assert stage["name"] == "align" and stage["visual_tokens_per_sample"] == {"image": 16}
    assert_as_in(run, tower, "encoder")
    assert_as_in(run, decoder, "decoder")

    folder, name = export(run, tmp_path / "export"), "preprocessor_config.json"
    assert (folder / name).read_text() == (tower / name).read_text()

    again = recipe(f"vicuna-7b,base={run},{arg}", 0)
    again = with_checkpoint_files(again, Initial(again.model))
    assert again.data.processor is not None
    assert load_processor(again.data.processor, again.data.tokenizer).image_size == SIZE


def test_a_smolvlm(recipe_data, tmp_path):
    folder = checkpoint(tmp_path / "smolvlm", "smolvlm")
    config = transformers.AutoConfig.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    config.image_token_id = words.convert_tokens_to_ids("<image>")
    randomized(transformers.SmolVLMForConditionalGeneration, config).save_pretrained(folder)
    arg = f"smolvlm2-256m,base={folder},data={recipe_data},tokens=2,frames=4,length=320,video_fraction=1"
    stage = train(recipe(arg, -1), tmp_path / "run")
    assert stage["name"] == "instruct" and stage["visual_tokens_per_sample"] == {"image": 4, "video": 8}
    assert_as_in(tmp_path / "run", folder, "encoder")
    export(tmp_path / "run", tmp_path / "export")
