"""Export directories with our PyTorch code, made by hand: the reference for what an exporter writes."""

import dataclasses
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from vlvm_jax.config import AdapterConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.weights.torch_model.names import adapter_tensor_name, config_fields, source_files

SIZE = 16  # pixels of a frame's side
IMAGE_ID, VIDEO_ID = 90, 91  # outside the vocabularies of the tests
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "idefics3": "smolvlm_vision"}
LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


@dataclasses.dataclass(frozen=True)
class Export:
    vision: dict
    adapter: dict
    decoder: dict
    decoder_type: str
    nested_tower: bool = False
    tower_type: str | None = None

    @property
    def config(self) -> ModelConfig:
        vision = {
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": SIZE, "patch_size": 4, "image_mean": (0.4, 0.5, 0.6), "image_std": (0.3, 0.2, 0.25),
        }  # fmt: skip
        decoder = {
            "vocab_size": 60, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 5000.0,
        }  # fmt: skip
        return ModelConfig(
            vision=VisionConfig(**(vision | self.vision)),
            adapter=AdapterConfig(**self.adapter),
            decoder=DecoderConfig(**(decoder | self.decoder)),
            dtype="float32",
        )


EXPORTS = {
    "clip-llama-soft_slots": Export(
        {"kind": "clip", "feature_layer": -2},
        {"name": "weighted_sampler", "options": {"num_tokens": 4, "hidden": 6, "temporal_embed": "learned"}},
        {},
        "llama",
        nested_tower=True,
    ),
    "siglip-qwen2-encoder_attn": Export(
        {"kind": "siglip", "feature_layer": -2, "post_norm": True, "hidden_act": "gelu_pytorch_tanh"}
        | {"attention_layer": 0, "layer_norm_eps": 1e-6},
        {"name": "weighted_sampler", "options": {"reading": "encoder_attn", "num_tokens": 5}}
        | {"connector": {"kind": "linear"}},
        {"tie_word_embeddings": True, "attention_bias": True, "rms_norm_eps": 1e-6},
        "qwen2",
        nested_tower=True,
    ),
    "smolvlm-llama-frames": Export(
        {"kind": "idefics3", "feature_layer": -1, "post_norm": True, "hidden_act": "gelu_pytorch_tanh"},
        {"name": "frames", "options": {"pool": "average", "newline": "video"}, "connector": {"kind": "pixel_shuffle"}},
        {},
        "llama",
    ),
    "clip-mistral-encoder_attn": Export(
        {"kind": "clip", "feature_layer": -1, "attention_layer": -1},
        {"name": "weighted_sampler", "options": {"reading": "encoder_attn", "placement": "before_connector"}
         | {"num_tokens": 4, "merge_rest": False}},
        {},
        "mistral",
    ),
}  # fmt: skip


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


def write_model(folder: Path, export: Export, model: nnx.Module) -> dict[str, np.ndarray]:
    """A model's export; returns its segmented parameters."""
    params = {"/".join(map(str, path)): np.array(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}
    weights = tensors(params, export.config.vision.patch_size, export.nested_tower)
    write(folder, config_json(export.config, export.decoder_type, export.tower_type), weights)
    return params
