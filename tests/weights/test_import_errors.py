"""Bad input: one line that names the thing and what to do, and nothing half-written."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file
from support import xla
from support.families import Checkpoints, edit_config, read_tensors
from support.recipes import ROOT

from vlvm_jax.errors import InputError
from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.importing import import_checkpoint
from vlvm_jax.weights.sources import open_source

FILE = "model.safetensors"
INDEX = f"{FILE}.index.json"
EMBEDDINGS = "language_model.model.embed_tokens.weight"
KERNEL = "language_model.model.layers.1.mlp.up_proj.weight"


def refused(source: Path | str, folder: Path, pattern: str) -> None:
    """An import and an export of the source fail alike, in one line, and leave nothing."""
    for convert in (
        lambda: import_checkpoint(str(source), epath.Path(folder / "destination")),
        lambda: write.export_checkpoint(str(source), folder / "destination", Options(verify=False)),
    ):
        before = sorted(folder.iterdir())
        with pytest.raises(InputError) as caught:
            convert()
        message = str(caught.value)
        assert re.search(pattern, message), message
        assert "\n" not in message and len(message) < 500
        assert sorted(folder.iterdir()) == before


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path) -> Callable[..., Path]:
    """A checkpoint of its own to spoil."""

    def make(name: str = "llava clip llama", layout: str = "hub", **kwargs: Any) -> Path:
        source = tmp_path / "source"
        shutil.copytree(checkpoints(name, layout, **kwargs), source)
        return source

    return make


def with_tensors(source: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    tensors = read_tensors(source)
    change(tensors)
    save_file(tensors, source / FILE, metadata={"format": "pt"})
    return source


def with_config(source: Path, part: str | None = None, **values: Any) -> Path:
    edit_config(source, lambda config: (config if part is None else config[part]).update(values))
    return source


# --- files


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_file_that_is_cut_off(copy, tmp_path, size):
    """In nothing, in the length of the header, in the header, and in the last tensor."""
    file = copy() / FILE
    file.write_bytes(file.read_bytes()[:size])
    refused(file.parent, tmp_path, f"^{file}: not a whole safetensors file .*download or copy it again$")


def test_one_shard_of_several_that_is_cut_off(copy, tmp_path):
    source = copy(shards=True)
    file = sorted(source.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-4])
    refused(source, tmp_path, f"^{file}: not a whole safetensors file")


def test_an_index_that_names_a_missing_shard(copy, tmp_path):
    source = copy(shards=True)
    gone = sorted(source.glob("*.safetensors"))[1]
    gone.unlink()
    refused(source, tmp_path, f"^{source / INDEX}: names the shard {gone.name}, which is not in {source}; download it")


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}', '{"weight_map": 3}'])
def test_an_index_that_is_none(copy, tmp_path, text):
    source = copy(shards=True)
    (source / INDEX).write_text(text)
    refused(source, tmp_path, f"^{source / INDEX}: not a safetensors index")


def test_a_directory_with_bin_files_only(copy, tmp_path):
    source = copy()
    (source / FILE).rename(source / "pytorch_model.bin")
    refused(
        source, tmp_path, f"^{source}: no .*safetensors file here .there is pytorch_model.bin: save the model again"
    )


def test_a_directory_without_weights(copy, tmp_path):
    source = copy()
    (source / FILE).unlink()
    refused(source, tmp_path, f"^{source}: no .*safetensors file here$")


def test_a_directory_without_a_config(copy, tmp_path):
    source = copy()
    (source / "config.json").unlink()
    refused(source, tmp_path, rf"^SRC: {source} is neither a Hugging Face directory \(config.json\), nor an import")


@pytest.mark.parametrize("text", ["{", "\xff", "[1]", "null"])
def test_a_config_that_is_no_json_object(copy, tmp_path, text):
    source = copy()
    (source / "config.json").write_text(text, encoding="latin-1")
    refused(source, tmp_path, f"^{source / 'config.json'}: (not JSON|expected a JSON object)")


def test_quantised_weights(copy, tmp_path):
    source = with_tensors(copy(), lambda t: t.update({KERNEL: t[KERNEL].astype(ml_dtypes.float8_e4m3fn)}))
    refused(source, tmp_path, f"{FILE}: tensor {KERNEL} is of type F8_E4M3; only F32, F16, BF16 can be read")


# --- tensors


def test_a_missing_tensor(copy, tmp_path):
    source = with_tensors(copy(), lambda tensors: tensors.pop(KERNEL))
    refused(source, tmp_path, f"^{source}: 1 tensor missing that its config.json asks for: {KERNEL}$")


def test_missing_tensors_of_a_renamed_module(copy, tmp_path):
    def rename(tensors):
        for name in [name for name in tensors if ".mlp.up_proj." in name]:
            tensors[name.replace("up_proj", "other_proj")] = tensors.pop(name)

    pattern = f"2 tensors missing .*: .*{KERNEL}; of its own there is language_model.model.layers.0.mlp.other_proj"
    refused(with_tensors(copy(), rename), tmp_path, pattern)


def test_a_tensor_that_has_no_place(copy, tmp_path):
    source = with_tensors(copy(), lambda t: t.update({"language_model.model.extra.weight": t[KERNEL]}))
    refused(
        source, tmp_path, f"^{source}: 1 tensor that this model has no place for: language_model.model.extra.weight;"
    )


def test_a_tensor_in_two_files(copy, tmp_path):
    source = copy(shards=True)
    first, *_, last = sorted(source.glob("*.safetensors"))
    doubled = next(iter(read_one(first)))
    save_file(read_one(last) | {doubled: read_one(first)[doubled]}, last)
    refused(source, tmp_path, f"^{last}: tensor {doubled} stands in {first.name} too$")


def read_one(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(file)


def test_a_misshapen_tensor(copy, tmp_path):
    source = with_tensors(copy(), lambda t: t.update({KERNEL: t[KERNEL][:, :-1].copy()}))
    refused(source, tmp_path, rf"{FILE}: tensor {KERNEL} has shape \[40, 31\], but config.json asks for \[40, 32\]")


def test_a_transposed_patch_embedding(copy, tmp_path):
    name = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    source = with_tensors(copy(), lambda t: t.update({name: t[name].transpose(0, 2, 3, 1).copy()}))
    refused(source, tmp_path, rf"tensor {name} has shape \[16, 4, 4, 3\], but config.json asks for \[16, 3, 4, 4\]")


@pytest.mark.parametrize("change", [lambda head: head + 1, lambda head: head[:-1].copy()])
def test_a_head_of_its_own_where_the_config_ties_it(copy, tmp_path, change):
    head = "language_model.lm_head.weight"
    source = copy("llava siglip qwen2 tied")
    with_tensors(source, lambda tensors: tensors.update({head: change(tensors[EMBEDDINGS])}))
    refused(source, tmp_path, f"tensor {head} holds other values than {EMBEDDINGS}, .*set tie_word_embeddings to false")


def test_a_tied_head_without_the_embeddings(copy, tmp_path):
    source = copy("llava siglip qwen2 tied")
    head = "language_model.lm_head.weight"
    with_tensors(source, lambda tensors: tensors.update({head: tensors.pop(EMBEDDINGS)}))
    refused(source, tmp_path, f"1 tensor missing that its config.json asks for: {EMBEDDINGS}")


def test_the_files_of_another_family(copy, checkpoints, tmp_path):
    source = copy()
    shutil.copy(checkpoints("smolvlm remainder tied") / FILE, source)
    refused(
        source, tmp_path, f"^{source}: .* tensors missing .*; of its own there is model.connector.modality_projection"
    )


# --- configs that cannot be run exactly

LLAVA, NEXT_VIDEO, SMOLVLM = "llava clip llama", "llava_next_video average", "smolvlm remainder tied"
INTERNVL = "internvl qwen2"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("name", "part", "values", "pattern"),
    [
        (LLAVA, None, {"model_type": "qwen2_vl"}, "model_type 'qwen2_vl' is not one this library knows; it knows "),
        (LLAVA, None, {"model_type": "nonsense"}, "(transformers cannot read it|not one this library knows).*nonsense"),
        (LLAVA, "text_config", {"hidden_act": "relu"}, "text_config: hidden_act 'relu' cannot be run exactly"),
        (LLAVA, "vision_config", {"hidden_act": "silu"}, "vision_config: hidden_act 'silu' cannot be run exactly"),
        (LLAVA, None, {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu': only 'gelu' can be run exactly"),
        (LLAVA, "text_config", {"rope_scaling": YARN}, "text_config: rope scaling of type 'yarn' is not one .*linear"),
        (
            LLAVA, "text_config", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "text_config: rope scaling of type 'dynamic'",
        ),
        (LLAVA, "text_config", {"mlp_bias": True}, "text_config: mlp_bias true"),
        (LLAVA, "text_config", {"model_type": "gemma"}, "text_config.model_type 'gemma': this library runs llama"),
        (LLAVA, "vision_config", {"model_type": "pixtral"}, "vision_config.model_type 'pixtral': this library runs"),
        (LLAVA, None, {"vision_feature_layer": [-2, -5]}, r"vision_feature_layer \[-2, -5\]: features of several"),
        (LLAVA, None, {"vision_feature_layer": 7}, "vision_config: feature_layer 3 is outside 3 layers"),
        (LLAVA, None, {"vision_feature_select_strategy": "full"}, "strategy 'full' with a clip tower: only 'default'"),
        (
            "llava siglip qwen2 tied", None, {"vision_feature_select_strategy": "default"},
            "strategy 'default' with a siglip tower: only 'full'",
        ),
        (NEXT_VIDEO, None, {"spatial_pool_mode": "conv"}, "spatial_pool_mode 'conv': only 'average' and 'max' can"),
        (SMOLVLM, None, {"scale_factor": 3}, "scale_factor 3 does not divide the tower's grid of 4 x 4"),
        (
            "llava siglip qwen2 tied", "text_config", {"use_sliding_window": True, "max_window_layers": 0},
            "use_sliding_window true: sliding attention in some layers",
        ),
        (LLAVA, "text_config", {"num_attention_heads": 5}, "transformers refuses it: .*attention heads"),
        (
            LLAVA, None, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "quantization_config says that the weights are quantised",
        ),
        (LLAVA, "text_config", {"quantization_config": {}}, "text_config: quantization_config says that the weights"),
        (
            LLAVA, "text_config", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            "text_config: rope_theta 10000.0 contradicts rope_parameters.rope_theta 5.0; keep the one",
        ),
        (
            LLAVA, "text_config",
            {"rope_parameters": {"rope_type": "linear", "factor": 2}, "rope_scaling": {"type": "linear", "factor": 4}},
            "text_config: rope_parameters .*'factor': 2.* contradicts rope_scaling .*'factor': 4",
        ),
        (INTERNVL, None, {"downsample_ratio": 0.0}, "downsample_ratio 0.0 is not 1 over a whole number"),
        (INTERNVL, None, {"downsample_ratio": -0.5}, "downsample_ratio -0.5 is not 1 over a whole number"),
        (INTERNVL, None, {"downsample_ratio": 0.3}, "downsample_ratio 0.3 is not 1 over a whole number"),
        (LLAVA, "text_config", {"vocab_size": "many"}, "transformers refuses it: .*vocab_size"),
        (LLAVA, "text_config", {"vocab_size": 97}, rf"{EMBEDDINGS} has shape \[96, 32\], but .* asks for \[97, 32\]"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_run_exactly(copy, tmp_path, name, part, values, pattern):
    source = with_config(copy(name), part, **values)
    refused(source, tmp_path, f"{source}.*: .*{pattern}")


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"mm_vision_tower": None}, "mm_vision_tower is missing; expected the tower's hub id or directory"),
        (
            {"mm_vision_tower": "someone/odd-tower"},
            "mm_vision_tower: someone/odd-tower (is not in the cache|does not exist)",
        ),
        ({"mm_vision_tower": ["a"]}, r"mm_vision_tower \['a'\]: expected a text"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer '-2': expected a whole number"),
        ({"mm_vision_select_layer": [-2]}, r"mm_vision_select_layer \[-2\]: expected a whole number"),
        ({"mm_spatial_pool_stride": True}, "mm_spatial_pool_stride True: expected a whole number"),
        (
            {"mm_vision_select_feature": "cls_patch"},
            "mm_vision_select_feature 'cls_patch': only 'patch' can be run exactly",
        ),
        (
            {"mm_projector_type": "mlp3x_gelu"},
            "mm_projector_type 'mlp3x_gelu': only 'linear', 'mlp2x_gelu' can be run exactly",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config says that the weights are quantised"),
        ({"rope_theta": 5.0}, "rope_theta 5.0 contradicts rope_parameters.rope_theta 10000.0; keep the one"),
        ({"add_time_instruction": "yes"}, "add_time_instruction 'yes': only False, True can be run exactly"),
        ({"force_sample": "yes"}, "force_sample 'yes': only False, True can be run exactly"),
        ({"add_faster_video": True}, "add_faster_video True: only False can be run exactly"),
        *(
            ({"image_aspect_ratio": f"anyres_max_{n}"}, f"image_aspect_ratio 'anyres_max_{n}': ")
            for n in ("0", "00", "-2")
        ),
    ],
)
def test_an_original_checkpoint_that_cannot_be_run(checkpoints, tmp_path, values, pattern):
    source = tmp_path / "source"
    shutil.copytree(checkpoints.original(LLAVA, "Llama", with_tower=False), source)
    refused(with_config(source, **values), tmp_path, f"^{source / 'config.json'}: {pattern}")


def test_keys_of_lmms_lab_s_script_that_ask_for_nothing(checkpoints, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoints.original(LLAVA, "Llama", with_tower=True), source)
    open_source(str(with_config(source, add_time_instruction=False, force_sample=False, rope_theta=None)), "SRC")


LORA = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("name", [*LORA, "mm_projector.bin"])
def test_weights_beside_the_model_s_own(checkpoints, tmp_path, name, original):
    source = tmp_path / "source"
    shutil.copytree(checkpoints.original(LLAVA, "Llama", with_tower=True) if original else checkpoints(LLAVA), source)
    (source / name).write_bytes(b"{}")
    what = (
        "belongs to a LoRA adapter, .*merge it into its base model first" if name in LORA else "a projector in a file"
    )
    refused(source, tmp_path, f"^{source / name}: {what}")


def test_a_lora_adapter_alone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(source, tmp_path, f"^{source / 'adapter_config.json'}: belongs to a LoRA adapter, .*merge it")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(copy, tmp_path, dtype, value):
    def spoil(tensors):
        tensors[KERNEL][3, 2] = value

    source = with_tensors(copy(dtype=dtype), spoil)
    with pytest.raises(InputError, match=f"^{source / FILE}: tensor {KERNEL} holds NaN or infinity: "):
        import_checkpoint(str(source), epath.Path(tmp_path / "destination"))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("with_tower", [False, True])
def test_an_original_checkpoint_whose_tower_is_not_finite(checkpoints, tmp_path, with_tower):
    source, tower = tmp_path / "source", tmp_path / "tower"
    original = checkpoints.original(LLAVA, "Llama", with_tower=with_tower)
    shutil.copytree(original, source)
    shutil.copytree(original.with_name(f"{original.name}-tower"), tower)
    place = source if with_tower else tower
    name = (
        "model.vision_tower.vision_tower." if with_tower else ""
    ) + "vision_model.embeddings.position_embedding.weight"

    def spoil(tensors):
        tensors[name][0, 0] = np.nan

    with_tensors(place, spoil)
    with pytest.raises(InputError, match=f"^{place / FILE}: tensor {name} holds NaN"):
        import_checkpoint(str(with_config(source, mm_vision_tower=str(tower))), epath.Path(tmp_path / "destination"))
    assert not (tmp_path / "destination").exists()


def test_a_carried_tensor_that_is_not_finite(copy, tmp_path):
    source = copy("llava siglip-head mistral gqa1")
    (name, *_) = sorted(name for name in read_tensors(source) if ".head." in name)
    with_tensors(source, lambda tensors: tensors.update({name: tensors[name] * np.float16(np.nan)}))
    with pytest.raises(InputError, match=f"^{source / FILE}: tensor {name} holds NaN"):
        import_checkpoint(str(source), epath.Path(tmp_path / "destination"))


def test_an_original_checkpoint_whose_tower_is_another(checkpoints, tmp_path):
    """The directory that `mm_vision_tower` names holds a decoder."""
    source = tmp_path / "source"
    shutil.copytree(checkpoints.original(LLAVA, "Llama", with_tower=False), source)
    with_config(source, mm_vision_tower=str(checkpoints("qwen2 tied")))
    refused(source, tmp_path, "config.json: model_type 'qwen2': mm_vision_tower must name a CLIP or a SigLIP")


def test_an_original_checkpoint_whose_tower_s_config_is_broken(checkpoints, tmp_path):
    source, tower = tmp_path / "source", tmp_path / "tower"
    shutil.copytree(checkpoints.original(LLAVA, "Llama", with_tower=False), source)
    tower.mkdir()
    (tower / "config.json").write_text("{")
    refused(with_config(source, mm_vision_tower=str(tower)), tmp_path, f"^{tower / 'config.json'}: not JSON")


# --- source and destination


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "/not/there", "a b/c"])
def test_a_source_that_is_nothing(tmp_path, source):
    refused(source, tmp_path, f"^SRC: '{source}' is neither a directory that exists nor a hub id")


def test_a_source_that_is_a_file(copy, tmp_path):
    file = copy() / FILE
    refused(file, tmp_path, f"^SRC: '{file}' is neither a directory that exists nor a hub id")


def test_an_import_is_not_imported_again(copy, tmp_path):
    import_checkpoint(str(copy()), epath.Path(tmp_path / "imported"))
    with pytest.raises(
        InputError, match=f"^{tmp_path}/imported: is an import or a training run of this library already$"
    ):
        import_checkpoint(str(tmp_path / "imported"), epath.Path(tmp_path / "destination"))
    assert not (tmp_path / "destination").exists()


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (
            lambda folder: shutil.rmtree(folder / "params"),
            "^{}: damaged: params/.*: missing, and .*import the checkpoint again$",
        ),
        (
            lambda folder: (folder / "model.json").write_text("{"),
            "^{}: damaged: model.json: 1 bytes, expected .*import the checkpoint again$",
        ),
    ],
)
def test_an_import_that_is_not_whole(copy, tmp_path, spoil, pattern):
    import_checkpoint(str(copy()), epath.Path(tmp_path / "imported"))
    spoil(tmp_path / "imported")
    with pytest.raises(InputError, match=pattern.format(tmp_path / "imported")):
        write.export_checkpoint(str(tmp_path / "imported"), tmp_path / "destination", Options(verify=False))
    assert not (tmp_path / "destination").exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_destination_that_is_taken(copy, tmp_path, kind):
    source, taken = copy(), tmp_path / "destination"
    if kind == "folder":
        taken.mkdir()
        (taken / "mine").write_text("kept")
    else:
        taken.write_text("kept")
    refused(source, tmp_path, f"^{taken}: exists already; remove it, or name another destination$")
    assert (taken / "mine" if kind == "folder" else taken).read_text() == "kept"


# --- failures in the middle


class Stopped(Exception):
    pass


def stop_at(share: float) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise Stopped

    return progress


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_import_that_is_stopped_leaves_nothing(copy, tmp_path, share):
    source = copy()
    with pytest.raises(Stopped):
        import_checkpoint(str(source), epath.Path(tmp_path / "destination"), stop_at(share))
    assert list(tmp_path.iterdir()) == [source]
    import_checkpoint(str(source), epath.Path(tmp_path / "destination"))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_export_that_is_stopped_leaves_nothing(copy, tmp_path, share):
    source = copy()
    with pytest.raises(Stopped):
        write.export_checkpoint(str(source), tmp_path / "destination", Options(verify=False), stop_at(share))
    assert list(tmp_path.iterdir()) == [source]


def test_what_a_killed_conversion_left_is_cleared_away(copy, tmp_path):
    source = copy()
    for suffix in ("importing", "exporting"):
        (tmp_path / f"destination.{suffix}").mkdir()
        (tmp_path / f"destination.{suffix}" / "half").write_text("")
    import_checkpoint(str(source), epath.Path(tmp_path / "destination"))
    shutil.rmtree(tmp_path / "destination")
    write.export_checkpoint(str(source), tmp_path / "destination", Options(verify=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["destination", "source"]
    assert not list((tmp_path / "destination").rglob("half"))


def test_a_source_that_shrinks_while_it_is_read(copy, tmp_path):
    """The headers were fine: the file is cut when the first parameters are through."""
    source = copy()

    def cut(done: int, total: int) -> None:
        (source / FILE).write_bytes((source / FILE).read_bytes()[:4000])

    for convert in (
        lambda: import_checkpoint(str(source), epath.Path(tmp_path / "destination"), cut),
        lambda: write.export_checkpoint(str(source), tmp_path / "destination", Options(verify=False), cut),
    ):
        whole = (source / FILE).read_bytes()
        with pytest.raises(InputError, match=f"^{source / FILE}: not a whole safetensors file"):
            convert()
        assert list(tmp_path.iterdir()) == [source]
        (source / FILE).write_bytes(whole)


# --- the command


def command(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "NO_COLOR": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla.flags(1),
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-m", "vlvm_jax.convert", *map(str, arguments)], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(f"error: .*{pattern}.*\n", done.stderr), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_command_says_it_in_one_line_with_code_2(copy, tmp_path):
    source = with_config(copy(), "text_config", rope_scaling=YARN)
    one_line(command("import", source, tmp_path / "destination"), "rope scaling of type 'yarn'")
    assert list(tmp_path.iterdir()) == [source]


def test_the_command_refuses_a_cut_file(copy, tmp_path):
    source = copy()
    (source / FILE).write_bytes((source / FILE).read_bytes()[:-1])
    one_line(command("export", source, tmp_path / "destination"), f"{source / FILE}: not a whole safetensors file")
    assert list(tmp_path.iterdir()) == [source]


def test_without_network_and_cache_the_message_says_how_to_go_on(tmp_path):
    cache = tmp_path / "cache"
    done = command("import", "llava-hf/llava-1.5-7b-hf", tmp_path / "d", HF_HUB_OFFLINE="1", HF_HOME=str(cache))
    one_line(done, rf"SRC: llava-hf/llava-1.5-7b-hf is not in the cache {cache}/hub and .* cannot be reached .*"
                   r"`hf download llava-hf/llava-1.5-7b-hf`\) and pass its directory")  # fmt: skip
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((), ""),
        (("import", "x"), "; DST is missing"),
        (("exprt", "x", "y"), "; there is no 'exprt'"),
        (("export", "x", "y", "z"), ""),
    ],
)
def test_the_command_s_own_arguments(arguments, found):
    one_line(command(*arguments), f"expected `import SRC DST` or `export SRC DST`{found}; see --help")
