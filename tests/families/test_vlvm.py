"""An export with our own PyTorch code is read back as the model it was; nothing of the code is run."""

import json

import numpy as np
import pytest
from flax import nnx
from support import hf, torch_export
from support.torch_export import EXPORTS

from vlvm_jax import families
from vlvm_jax.config import AnswerConfig, DataConfig, to_json
from vlvm_jax.errors import InputError
from vlvm_jax.families.base import Preparation
from vlvm_jax.models import adapters
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.video_llm import VideoLLM
from vlvm_jax.weights.sources import open_source

PREPARED = {
    "data": {"chat_template": "bare", "frame_sampling": "segment_mid", "frame_fit": "pad"},
    "answers": {"max_new_tokens": 7},
    "frames": 12,
    "dtype": "float32",
    "processor": False,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each export, and the parameters that it was made of."""
    folder = tmp_path_factory.mktemp("exports")
    models = {
        name: hf.fill(lambda export=export: VideoLLM(export.config, rngs=nnx.Rngs(0)), seed=5)
        for name, export in EXPORTS.items()
    }
    params = {
        name: params_lib.join(torch_export.write_model(folder / name, EXPORTS[name], model))
        for name, model in models.items()
    }
    return folder, params


@pytest.mark.parametrize("name", EXPORTS)
def test_it_is_read_as_it_was_written(written, name):
    folder, params = written
    source, config = open_source(str(folder / name), "SRC"), EXPORTS[name].config
    params = params[name]
    wanted = config.adapter
    options = adapters.options_of(wanted.name, wanted.options)
    assert source.adapter == wanted.model_copy(update={"options": to_json(options)})
    assert source.decoder is not None
    assert source.decoder.model_copy(update={"max_position_embeddings": 1}) == config.decoder.model_copy(
        update={"max_position_embeddings": 1}
    )
    free = {"feature_layer": 0}  # counted from the other end
    assert source.vision is not None
    assert source.vision.model_copy(update=free) == config.vision.model_copy(update=free)
    assert source.vision.num_used_layers == config.vision.num_used_layers
    assert source.shapes.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(source.read(path), value, err_msg=path)


def changed(written, tmp_path, **fields):
    folder = tmp_path / "changed"
    folder.mkdir()
    original = written[0] / "clip-llama-soft_slots"
    raw = json.loads((original / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "model.safetensors").symlink_to(original / "model.safetensors")
    return folder


def test_an_internvit_has_sides_of_one_number(written, tmp_path):
    sides = {"image_size": [448, 448], "patch_size": [14, 14]}
    raw = json.loads((changed(written, tmp_path) / "config.json").read_text())
    raw |= {"vision_config": {"model_type": "internvl_vision", "hidden_size": 32, "num_attention_heads": 4, **sides}}
    family = families.of_config(raw)
    assert family is not None
    vision = family.read(tmp_path, raw, lambda *_: None).vision  # type: ignore[arg-type]
    assert vision is not None and (vision.kind, vision.image_size, vision.patch_size) == ("internvl", 448, 14)
    raw["vision_config"]["image_size"] = [448, 224]
    with pytest.raises(InputError, match=r"image_size \[448, 224\]: only squares"):
        family.read(tmp_path, raw, lambda *_: None)  # type: ignore[arg-type]


def test_it_says_how_it_is_asked(written, tmp_path):
    assert families.preparation(written[0] / "clip-llama-soft_slots") is None
    folder = changed(written, tmp_path, preparation=PREPARED)
    data = DataConfig(tokenizer=str(folder), chat_template="bare", frame_sampling="segment_mid", frame_fit="pad")
    assert families.preparation(folder) == Preparation(data, AnswerConfig(max_new_tokens=7), 12, "float32")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter": {"name": "nothing"}}, "adapter.name: no adapter 'nothing'"),
        ({"adapter": None}, "config.json: adapter"),
        ({"adapter": {"name": "weighted_sampler", "options": {"tokens": 3}}}, "adapter.options"),
        ({"text_config": None}, "text_config has no model_type"),
        ({"text_config": {"model_type": "nothing"}}, "text_config"),
        ({"vision_config": {"model_type": "llama"}}, "vision_config"),
        ({"attention_layer": "last"}, "attention_layer"),
        ({"image_mean": 0.5}, "image_mean 0.5 is no list of numbers"),
        ({"vision_config": {"model_type": "idefics3"}}, "vision_config.model_type 'idefics3' is of a whole model"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(written, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        open_source(str(changed(written, tmp_path, **fields)), "SRC")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "preparation"),
        ({}, "expected data, answers, frames, dtype and processor"),
        (PREPARED | {"frames": 0}, "frames: 0"),
        (PREPARED | {"dtype": "int8"}, "dtype: 'int8'; expected one of float32"),
        (PREPARED | {"data": {"tokenizer": "/etc"}}, "tokenizer has no place"),
        (PREPARED | {"data": {"chat_template": 3}}, "chat_template"),
        (PREPARED | {"answers": {"prompt_template": "/etc/secret.txt"}}, "a file has no place"),
    ],
)
def test_a_preparation_that_cannot_be_used_is_refused(written, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        families.preparation(changed(written, tmp_path, preparation=given))


def test_processors_of_nothing_are_not_used(written, tmp_path):
    folder = changed(written, tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))
    with pytest.raises(InputError, match="processed_as"):
        families.read_settings(str(folder))
