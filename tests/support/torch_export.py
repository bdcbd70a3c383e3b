"""Export directories with our PyTorch code, made by hand: the reference for what an exporter writes."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from vlvm_jax.config import ModelConfig
from vlvm_jax.weights.torch_model.names import adapter_tensor_name, config_fields, source_files

IMAGE_ID, VIDEO_ID = 90, 91  # outside the vocabularies of the tests
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "idefics3": "smolvlm_vision"}
LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def copy_code(adapter: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in source_files(adapter).items():
        shutil.copy(source, folder / name)
    return folder


def import_code(adapter: str, folder: Path, module: str):
    """A module of an export's code, in this process."""
    package = copy_code(adapter, folder / f"code_{adapter}")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{package.name}.{module}")
    finally:
        sys.path.remove(str(folder))


def config_json(config: ModelConfig, decoder_type: str, tower_type: str | None = None) -> dict:
    vision, text = config.vision, config.decoder
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    tower = {name: getattr(vision, name) for name in (*shared, "image_size", "patch_size", "layer_norm_eps")}
    tower["model_type"] = tower_type or TOWERS[vision.kind]
    if vision.kind == "siglip":
        tower["vision_use_head"] = False
    decoder = {name: getattr(text, name) for name in (*shared, "vocab_size", "num_key_value_heads", "rms_norm_eps")}
    decoder |= {"model_type": decoder_type, "head_dim": text.head_dim, "tie_word_embeddings": text.tie_word_embeddings}
    decoder["eos_token_id"] = None  # the classes' defaults are ids of some words here
    decoder["rope_parameters"] = {"rope_type": "default", "rope_theta": text.rope_theta}
    if decoder_type == "mistral":
        decoder["sliding_window"] = None
    return {
        **config_fields(config, image_token_id=IMAGE_ID, video_token_id=VIDEO_ID),
        "vision_config": tower,
        "text_config": decoder,
        "dtype": "float32",
    }


def tensors(params: dict[str, np.ndarray], patch: int, nested_tower: bool) -> dict[str, np.ndarray]:
    """From segmented parameters to the tensors of an export; `nested_tower` keeps the inner prefix of CLIP and SigLIP
    that transformers 5 drops in memory."""
    out = {}
    tower = "model.vision_tower.vision_model." if nested_tower else "model.vision_tower."
    for path, value in params.items():
        if path.startswith("adapter/"):
            name, transpose = adapter_tensor_name(path)
            out[name] = value.T if transpose else value
            continue
        part, *names, last = path.split("/")
        stacked = names[:1] == ["layers"]
        names = names[3:] if stacked else names
        name = ".".join([*names, LAST.get(last, last)])
        if part == "decoder":
            prefix = "" if "lm_head" in names else "model.language_model."
        else:
            prefix = tower
            name = name + ".weight" if last == "position_embedding" else name
            name = f"embeddings.{name}" if re.match("patch_embedding|class_emb|position_emb", name) else name
        if last == "kernel" and "patch_embedding" in names:
            value = value.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
        elif last == "kernel":
            value = np.swapaxes(value, -1, -2)
        if stacked:
            stack = "layers" if part == "decoder" else "encoder.layers"
            out |= {f"{prefix}{stack}.{i}.{name}": layer for i, layer in enumerate(value)}
        else:
            out[prefix + name] = value
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


def write(folder: Path, config: dict, weights: dict[str, np.ndarray]) -> Path:
    copy_code(config["adapter"]["name"], folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
