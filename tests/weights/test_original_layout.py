"""Checkpoints as the LLaVA repositories save them: the same model, and the class of transformers that it is."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from etils import epath
from safetensors.numpy import save_file
from support import families
from support.exports import load_strictly, round_trip
from support.families import SPECS, read_tensors

from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.importing import import_checkpoint
from vlvm_jax.weights.sources import HFDirectory, open_source

pytestmark = pytest.mark.slow

ORIGINALS = [
    ("llava clip llama", "Llama", False),
    ("llava_next clip mistral", "Mistral", True),
    ("llava_onevision odd-grid shrink", "Qwen", True),
    ("llava_onevision remainder tied", "Qwen", True),
]


@pytest.mark.parametrize(("name", "language", "with_tower"), ORIGINALS)
def test_the_original_layout_is_the_same_model(checkpoints, name, language, with_tower):
    original = open_source(str(checkpoints.original(name, language, with_tower=with_tower)), "SRC")
    source = open_source(str(checkpoints(name, dtype="float32")), "SRC")
    assert isinstance(original, HFDirectory) and original.checkpoint.hf.hf_family == SPECS[name].family
    assert original.checkpoint.layout.name == ("original" if with_tower else "original-without-tower")
    assert (original.vision, original.decoder, original.adapter) == (source.vision, source.decoder, source.adapter)
    assert original.shapes == source.shapes
    for path in source.shapes:
        np.testing.assert_array_equal(original.read(path), source.read(path), err_msg=path)


@pytest.mark.parametrize(("name", "language", "with_tower"), ORIGINALS)
def test_the_original_layout_becomes_the_class(checkpoints, name, language, with_tower, tmp_path):
    """The same logits and the same settings; the vocabulary has gained rows for the media tokens."""
    family = SPECS[name].family
    import_checkpoint(str(checkpoints.original(name, language, with_tower=with_tower)), epath.Path(tmp_path / "in"))
    result = write.export_checkpoint(str(tmp_path / "in"), tmp_path / "out", Options())
    assert result.rung.family == family and result.verified is not None and result.verified.same_answer
    ours, theirs = load_strictly(tmp_path / "out", family), checkpoints.model(name)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, families.IMAGE, (1, 12)))
    with torch.no_grad():
        found, expected = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
    assert torch.equal(found[..., : families.VOCAB], expected)
    assert torch.equal(found[..., families.VOCAB :], expected[..., :1].expand(1, 12, found.shape[-1] - families.VOCAB))
    own, wanted = ours.config.to_dict(), theirs.config.to_dict()
    for key in ("image_grid_pinpoints", "vision_aspect_ratio", "vision_feature_layer", "tie_word_embeddings"):
        assert own.get(key) == wanted.get(key), key
    assert own["vision_feature_select_strategy"] == wanted["vision_feature_select_strategy"]
    assert ours.config.image_token_id >= families.VOCAB


def test_an_original_with_a_newline_that_it_does_not_use(checkpoints, tmp_path):
    """`mm_patch_merge_type` flat: the tensor is saved all the same."""
    source = tmp_path / "source"
    shutil.copytree(checkpoints.original("llava clip llama", "Llama", with_tower=True), source)
    tensors = read_tensors(source)
    save_file(tensors | {"model.image_newline": np.ones(32, np.float32)}, source / "model.safetensors")
    exported = round_trip(source, tmp_path)
    assert "image_newline" not in read_tensors(exported)
    load_strictly(exported, "llava")


@pytest.mark.parametrize("canvases", ["(1x1),(1x2),(2x1),(2x2)", "(1x1),...,(2x2)"])
def test_canvases_counted_in_tiles(checkpoints, tmp_path, canvases):
    source = tmp_path / "source"
    shutil.copytree(checkpoints.original("llava_onevision odd-grid shrink", "Qwen", with_tower=True), source)
    families.edit_config(source, lambda config: config.update(image_grid_pinpoints=canvases))
    config = transformers.AutoConfig.from_pretrained(round_trip(source, tmp_path))
    assert config.image_grid_pinpoints == [[20, 20], [40, 20], [20, 40], [40, 40]]
    assert config.vision_aspect_ratio == "anyres_max_2"


def test_an_original_with_one_layer_in_its_connector_has_no_class(checkpoints, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoints.original("llava clip llama", "Llama", with_tower=True), source)
    families.edit_config(source, lambda config: config.update(mm_projector_type="linear"))
    tensors = {name.replace("projector.0.", "projector."): t for name, t in read_tensors(source).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if "projector.2." not in name}
    save_file(tensors, source / "model.safetensors")
    result = write.export_checkpoint(str(source), tmp_path / "out", Options())
    assert (result.rung.number, result.rung.family) == (4, "vlvm")
    assert "a two-layer connector, this model a linear one" in result.rung.reason
    assert result.verified is not None and result.verified.difference < 1e-5 and result.verified.same_answer
