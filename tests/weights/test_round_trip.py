"""Import, then export: the same bits under the names of the hub, in a directory that transformers takes as its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from safetensors.numpy import save_file
from support import families
from support.exports import assert_same_state, assert_same_tensors, load_strictly, round_trip
from support.families import LLAVA_FAMILIES, SPECS, read_tensors

from vlvm_jax.config import MeshConfig
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.importing import import_checkpoint
from vlvm_jax.weights.sources import open_source

pytestmark = pytest.mark.slow

DTYPES = ("float32", "bfloat16", "float16")
# Every config in every dtype and every layout, in one file and in shards, though not all of each with all.
CASES = [
    (name, ways[turn % len(ways)], DTYPES[(number + turn) % 3], bool((number + turn) % 2))
    for number, name in enumerate(SPECS)
    for turn in range(3)
    for ways in [families.layouts(name)]
]
# Keys that follow from where a config came from, not from what it says.
PROVENANCE = ("transformers_version", "_name_or_path", "architectures", "dtype")


def hub_tensors(folder: Path, family: str) -> dict[str, np.ndarray]:
    """The tensors of a directory by the names they have on the hub; of a bare tower only what is the tower's."""
    tensors = {}
    for name, tensor in read_tensors(folder).items():
        if family in LLAVA_FAMILIES:
            name = name.replace("model.language_model.", "language_model.model.").removeprefix("model.")
            name = f"language_{name}" if name.startswith("model.") else name
            name = f"language_model.{name}" if name.startswith("lm_head.") else name
            name = name.replace("vision_model.", "").replace("vision_tower.", "vision_tower.vision_model.")
        if family in ("clip", "siglip"):
            if name.startswith(("text_", "logit_", "visual_projection.")) or "head." in name:
                continue
            name = f"vision_model.{name.removeprefix('vision_model.')}"
        tensors[name] = tensor
    return tensors


def config_of(folder: Path) -> dict[str, Any]:
    """As transformers understands it; of a CLIP with its text side, the tower's."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return _without_provenance((config.vision_config if config.model_type in ("clip", "siglip") else config).to_dict())


def _without_provenance(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_provenance(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in PROVENANCE
    }


@pytest.mark.parametrize(("name", "layout", "dtype", "shards"), CASES)
def test_round_trip_is_bit_exact(checkpoints, name, layout, dtype, shards, tmp_path):
    family = SPECS[name].family
    source = checkpoints(name, layout, dtype, shards)
    exported = round_trip(source, tmp_path)
    assert_same_tensors(read_tensors(exported), hub_tensors(source, family))

    ours, theirs = load_strictly(exported, family), load_strictly(source, family)
    expected = getattr(theirs, "vision_model", theirs).state_dict()
    if family == "siglip":  # its pooling head is no part of the tower
        expected = {key: value for key, value in expected.items() if not key.startswith("head.")}
    assert_same_state(ours.state_dict(), expected)

    found, wanted = config_of(exported), config_of(source)
    if family == "siglip":
        assert not found.pop("vision_use_head") and wanted.pop("vision_use_head") is not None
    assert found == wanted
    written = json.loads((exported / "config.json").read_text())
    assert written["architectures"] == [type(ours).__name__] and written["dtype"] == dtype


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_parameters_arrive_in_their_shards(checkpoints, imported, axes, tmp_path):
    """On eight devices, in fp32, from a directory and from an import of it: the values of the files."""
    source = open_source(str(checkpoints("llava odd-grid biases linear-rope", "hub", "float16", True)), "SRC")
    if imported:
        import_checkpoint(source.name, epath.Path(tmp_path / "imported"))
        source = open_source(str(tmp_path / "imported"), "SRC")
    mesh = make_mesh(MeshConfig(data=1, **axes))
    wanted = {
        path: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=rules.parameter_sharding(path, a.shape, mesh))
        for path, a in source.shapes.items()
    }
    split = 0
    for path, value in source.load(wanted).items():
        assert value.sharding == wanted[path].sharding and value.dtype == jnp.float32
        np.testing.assert_array_equal(value, source.read(path).astype(np.float32), err_msg=path)
        split += not value.is_fully_replicated
    assert split > 15


def test_the_config_is_the_class_s_own(checkpoints, tmp_path):
    """Said once in plain values, whatever else the comparisons above leave out."""
    exported = round_trip(checkpoints("llava_next_video max odd-grid", "hub"), tmp_path)
    config = transformers.AutoConfig.from_pretrained(exported)
    assert type(config) is transformers.LlavaNextVideoConfig
    assert (config.image_token_index, config.video_token_index) == (families.IMAGE, families.VIDEO)
    assert (config.spatial_pool_mode, config.spatial_pool_stride) == ("max", 2)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.image_grid_pinpoints == [[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]]
    assert (config.vision_config.image_size, config.vision_config.hidden_act) == (20, "quick_gelu")
    assert (config.text_config.hidden_act, config.text_config.head_dim) == ("silu", 12)
    assert type(config.text_config) is transformers.MistralConfig and config.projector_hidden_act == "gelu"


def test_a_directory_is_exported_without_an_import_too(checkpoints, tmp_path):
    source = checkpoints("llava siglip-head mistral gqa1", "hub")
    result = write.export_checkpoint(str(source), tmp_path / "exported", Options(verify=False))
    assert_same_tensors(read_tensors(tmp_path / "exported"), read_tensors(source))
    assert result.parameters == sum(tensor.size for tensor in read_tensors(source).values())
    assert result.bytes == sum(tensor.nbytes for tensor in read_tensors(source).values())


def test_dtype_and_shard_size(checkpoints, tmp_path):
    source = checkpoints("smolvlm remainder tied", dtype="float32")
    exported = round_trip(source, tmp_path, dtype="bfloat16", max_shard_bytes=10_000)
    assert len(list(exported.glob("model-*.safetensors"))) > 2
    expected = copy_of(checkpoints.model("smolvlm remainder tied"), torch.bfloat16)
    assert_same_state(load_strictly(exported, "smolvlm").state_dict(), expected)


def copy_of(model, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}


def test_layers_of_several_dtypes_are_kept_apart(checkpoints, tmp_path):
    """Norms in fp32 beside bf16 matrices: each tensor keeps its own."""
    source = tmp_path / "mixed"
    shutil.copytree(checkpoints("llava_next_video average", "hub", "bfloat16"), source)
    tensors = read_tensors(source)
    mixed = {name: t.astype(np.float32) if "norm" in name else t for name, t in tensors.items()}
    save_file(mixed, source / "model.safetensors", metadata={"format": "pt"})
    assert_same_tensors(read_tensors(round_trip(source, tmp_path)), mixed)


def test_a_head_that_repeats_the_embeddings_is_left_out(checkpoints, tmp_path):
    source = tmp_path / "repeated"
    shutil.copytree(checkpoints("llava siglip qwen2 tied", "hub"), source)
    tensors = read_tensors(source)
    head = {"language_model.lm_head.weight": tensors["language_model.model.embed_tokens.weight"]}
    save_file(tensors | head, source / "model.safetensors", metadata={"format": "pt"})
    exported = round_trip(source, tmp_path)
    assert_same_tensors(read_tensors(exported), tensors)
    assert_same_state(load_strictly(exported, "llava").state_dict(), load_strictly(source, "llava").state_dict())


def test_files_beside_the_weights_come_along(checkpoints, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoints("llava clip llama"), source)
    (source / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    exported = round_trip(source, tmp_path)
    for name in ("preprocessor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (exported / name).read_bytes() == (source / name).read_bytes(), name
    vision = open_source(str(exported), "SRC").vision
    assert vision is not None and vision.image_mean == (0.1, 0.1, 0.1) and vision.image_std == (0.2, 0.2, 0.2)
