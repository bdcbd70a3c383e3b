"""`config.json` of a transformers class, from our settings: the opposite of `hf_config`."""

import copy
import dataclasses
from typing import Any

from vlvm_jax.config import AdapterConfig, DecoderConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families import llava_layout
from vlvm_jax.models.adapters.frames import Adapter as FramesAdapter

ARCHITECTURES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_next_video": "LlavaNextVideoForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
# Rope moved in transformers 5; our position limit is the smaller of Mistral's two.
_SPELLED_OTHERWISE = ("rope_theta", "rope_scaling", "sliding_window", "max_position_embeddings")
_TOWER_TYPES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


@dataclasses.dataclass(frozen=True)
class MediaTokens:
    """Ids that stand for visual tokens in a class's `input_ids`."""

    image: int
    video: int


def vision_dict(vision: VisionConfig, family: str, has_head: bool = False) -> dict[str, Any]:
    """Settings of the tower. `has_head`: SigLIP's pooling head is among the tensors."""
    if vision.kind == "idefics3":
        kind = "smolvlm_vision" if family == "smolvlm" else "idefics3_vision"
    else:
        kind = _TOWER_TYPES[vision.kind]
    return {
        "model_type": kind,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_hidden_layers,
        "num_attention_heads": vision.num_attention_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
    } | ({"vision_use_head": has_head} if vision.kind == "siglip" else {})


def text_dict(decoder: DecoderConfig, model_type: str | None = None) -> dict[str, Any]:
    """Settings of the language model. `model_type` None picks the class that has these biases.

    Raises:
      InputError: no class has them.
    """
    if decoder.attention_out_bias and not decoder.attention_bias:
        raise InputError(
            "config.model.decoder.attention_out_bias: no class of transformers has a bias at the attention's output "
            "alone, so this model cannot be exported"
        )
    if model_type is None:
        model_type = "qwen2" if decoder.attention_bias and not decoder.attention_out_bias else "llama"
    values: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads,
        "num_key_value_heads": decoder.num_key_value_heads,
        "hidden_act": decoder.hidden_act,
        "rope_theta": decoder.rope_theta,
        "rms_norm_eps": decoder.rms_norm_eps,
        "max_position_embeddings": decoder.max_position_embeddings,
        "tie_word_embeddings": decoder.tie_word_embeddings,
    }
    if model_type != "qwen2" or decoder.head_dim * decoder.num_attention_heads != decoder.hidden_size:
        values["head_dim"] = decoder.head_dim  # Qwen2's config has no such key, but its code heeds one
    if model_type == "llama":
        values["attention_bias"] = decoder.attention_bias
    if model_type == "mistral":
        values["sliding_window"] = None
    if decoder.rope_scaling is not None:
        keys = {"rope_type", "factor"} if decoder.rope_scaling.rope_type == "linear" else None
        values["rope_scaling"] = decoder.rope_scaling.model_dump(include=keys)
    return values


def class_config(
    family: str,
    vision: VisionConfig | None,
    decoder: DecoderConfig | None,
    adapter: AdapterConfig | None,
    tokens: MediaTokens | None,
    base: dict[str, Any] | None,
    dtype: str,
    has_head: bool = False,
) -> dict[str, Any]:
    """What `config.json` of an export holds.

    Args:
      tokens: None for a bare tower or decoder.
      base: `config.json` of the checkpoint the model came from: all that it says and that still holds is kept.
    """
    same = base is not None and base.get("model_type") == family
    if adapter is None:
        fresh = vision_dict(vision, family) if vision is not None else text_dict(_some(decoder), family)
        kept = _kept_bare(base, fresh)
    else:
        fresh = _vlm(family, _some(vision), _some(decoder), adapter, _some(tokens), base)
        fresh["vision_config"] = vision_dict(_some(vision), family, has_head)
        kept = copy.deepcopy(base) if same and base is not None else {}
    config = _overlay(kept, fresh)
    config["architectures"] = [ARCHITECTURES[family]]
    config["dtype"] = dtype
    config.pop("torch_dtype", None)
    return config


def _vlm(
    family: str,
    vision: VisionConfig,
    decoder: DecoderConfig,
    adapter: AdapterConfig,
    tokens: MediaTokens,
    base: dict[str, Any] | None,
) -> dict[str, Any]:
    text_type = ((base or {}).get("text_config") or {}).get("model_type")
    config: dict[str, Any] = {
        "model_type": family,
        "text_config": text_dict(decoder, text_type),
        "tie_word_embeddings": decoder.tie_word_embeddings,
    }
    if family in ("smolvlm", "idefics3"):
        return config | {"scale_factor": adapter.connector.scale_factor, "image_token_id": tokens.image}
    config |= {
        "image_token_index": tokens.image,
        "vision_feature_layer": _feature_layer(vision, base),
        "vision_feature_select_strategy": "default" if vision.kind == "clip" else "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": adapter.connector.bias,
    }
    if family == "llava":
        return config | {"image_seq_length": vision.num_patches}
    if family in ("llava_next_video", "llava_onevision"):
        config["video_token_index"] = tokens.video
    if family == "llava_next_video":
        options = FramesAdapter.Options(**adapter.options)
        config |= {"spatial_pool_mode": options.pool, "spatial_pool_stride": options.pool_stride}
    config |= {"image_grid_pinpoints": _pinpoints(vision.image_size, family)} | _tiling(base, vision.image_size)
    if family != "llava_onevision":
        config.pop("vision_aspect_ratio", None)
    return config


def _feature_layer(vision: VisionConfig, base: dict[str, Any] | None) -> int:
    """Counted from the first or from the last hidden state, as the base does."""
    spelled = (base or {}).get("vision_feature_layer")
    if isinstance(spelled, int) and spelled - vision.num_hidden_layers - 1 == vision.feature_layer:
        return spelled
    return vision.feature_layer


def _tiling(base: dict[str, Any] | None, size: int) -> dict[str, Any]:
    """How the base cuts images into tiles, where it says so."""
    if base is None:
        return {}
    if llava_layout.language(base) is not None:
        return llava_layout.tiling(base, size)
    return {key: base[key] for key in ("image_grid_pinpoints", "vision_aspect_ratio") if base.get(key)}


def _pinpoints(size: int, family: str) -> list[list[int]]:
    """The classes' default resolutions, in multiples of this tower's size."""
    if family == "llava_onevision":
        return [[size * rows, size * columns] for rows in range(1, 7) for columns in range(1, 7)]
    return [[size * rows, size * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def _kept_bare(base: dict[str, Any] | None, fresh: dict[str, Any]) -> dict[str, Any]:
    """A full CLIP's config holds the tower's under `vision_config`; the export is the tower alone."""
    if base is None:
        return {}
    kept = base.get("vision_config", base) if "vision" in fresh["model_type"] else base
    return copy.deepcopy(kept)


def _overlay(kept: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """`fresh` over `kept`, but for keys that the class spells, or bounds, in its own way."""
    result = dict(kept)
    for key, value in fresh.items():
        if key in _SPELLED_OTHERWISE and kept:
            continue
        if isinstance(value, dict) and isinstance(kept.get(key), dict):
            result[key] = _overlay(kept[key], value)
        else:
            result[key] = value
    return result


def _some(value):
    assert value is not None
    return value
