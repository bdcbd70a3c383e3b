"""Image models that recipes start from: sizes, where the weights are, how text and pixels are prepared.

Sizes are written out, so that a recipe can be compiled and planned without the weights; they are compared with the
checkpoint's `config.json` when it is opened. `directory(path)` takes everything from a checkpoint instead.
"""

from typing import Any

_CLIP_L = {
    "kind": "clip", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14, "feature_layer": -2,
}  # fmt: skip
_VICUNA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip
_CHECKPOINT_DATA = {"tokenizer": "{decoder}", "processor": "{encoder}", "chat_template": "checkpoint"}

# llava-hf/llava-1.5-7b-hf: its vocabulary holds 64 rows more than Vicuna's, among them `<image>`.
LLAVA_1_5_7B = {
    "model": {
        "vision": {**_CLIP_L, "image_size": 336},
        "connector": {"kind": "mlp2x_gelu"},
        "decoder": {**_VICUNA_7B, "vocab_size": 32064},
        "init_from": "llava-hf/llava-1.5-7b-hf",
    },
    "data": _CHECKPOINT_DATA,
}

# llava-hf/llava-v1.6-vicuna-7b-hf: LLaVA-1.5's sizes; the tower was trained too.
LLAVA_1_6_VICUNA_7B = {
    "model": {**LLAVA_1_5_7B["model"], "init_from": "llava-hf/llava-v1.6-vicuna-7b-hf"},
    "data": _CHECKPOINT_DATA,
}

# CLIPs that score frames by a question: openai/clip-vit-large-patch14-336 beside a tower of its own sizes, and
# openai/clip-vit-base-patch16.
CLIP_L_336: dict[str, Any] = {"source": "openai/clip-vit-large-patch14-336", "sizes": {}}
CLIP_B_16: dict[str, Any] = {
    "source": "openai/clip-vit-base-patch16",
    "sizes": {
        "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
        "vision": {
            "kind": "clip", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
        },
        "projection_dim": 512,
    },
}  # fmt: skip

# FTFV's own setting, as far as it is known: Vicuna-7B; the tower is the commonest of its time. No connector is
# pretrained: the first stage aligns one.
VICUNA_7B = {
    "model": {
        "vision": {**_CLIP_L, "image_size": 224},
        "connector": {"kind": "mlp2x_gelu"},
        "decoder": {**_VICUNA_7B, "vocab_size": 32000},
        "init_from": {"encoder": "openai/clip-vit-large-patch14", "decoder": "lmsys/vicuna-7b-v1.5"},
    },
    "data": {**_CHECKPOINT_DATA, "chat_template": "vicuna_v1"},
}

# LLaVA-Lightning-7B-v1-1 as Video-ChatGPT's readme links it, with which that project begins: 224 pixels, one affine
# map, three rows of special tokens. The number of rows is compared with the checkpoint when that is opened.
LLAVA_V1_7B = {
    "model": {
        "vision": {**_CLIP_L, "image_size": 224},
        "connector": {"kind": "linear"},
        "decoder": {**_VICUNA_7B, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "vocab_size": 32003},
        "init_from": "mmaaz60/LLaVA-7B-Lightening-v1-1",
    },
    "data": {"tokenizer": "{decoder}", "chat_template": "vicuna_v1"},
}

# A base that speaks Chinese and whose connector is a resampler of Qwen-VL's form, aligned from the start.
QWEN2_7B = {
    "model": {
        "vision": {**_CLIP_L, "image_size": 336},
        "connector": {"kind": "resampler", "num_queries": 256},
        "decoder": {
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "head_dim": 128, "rope_theta": 1e6,
            "rms_norm_eps": 1e-6, "attention_bias": True, "max_position_embeddings": 32768,
        },
        "init_from": {"encoder": "openai/clip-vit-large-patch14-336", "decoder": "Qwen/Qwen2-7B-Instruct"},
    },
    "data": _CHECKPOINT_DATA,
}  # fmt: skip

# HuggingFaceTB/SmolVLM2-256M-Video-Instruct: SigLIP-base/16-512, 4 x 4 patches joined, SmolLM2-135M.
SMOLVLM2_256M = {
    "model": {
        "vision": {
            "kind": "idefics3", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 512, "patch_size": 16, "feature_layer": -1, "post_norm": True,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.5, 0.5, 0.5),
        },
        "connector": {"kind": "pixel_shuffle", "bias": False, "scale_factor": 4},
        "decoder": {
            "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "rope_theta": 1e5,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        },
        "init_from": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    },
    "data": _CHECKPOINT_DATA,
}  # fmt: skip

_SO400M = {
    "kind": "idefics3", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14, "feature_layer": -1, "post_norm": True,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}  # fmt: skip

# HuggingFaceM4/Idefics3-8B-Llama3: SigLIP-so400m/14 at 364 pixels, 2 x 2 patches joined (169 tokens), Llama-3-8B and
# three rows of special tokens.
IDEFICS3_8B = {
    "model": {
        "vision": {**_SO400M, "image_size": 364},
        "connector": {"kind": "pixel_shuffle", "bias": False, "scale_factor": 2},
        "decoder": {
            "vocab_size": 128259, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5e5,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        },
        "init_from": "HuggingFaceM4/Idefics3-8B-Llama3",
    },
    "data": _CHECKPOINT_DATA,
}  # fmt: skip

# HuggingFaceTB/SmolVLM2-2.2B-Instruct: the same tower at 384 pixels, 3 x 3 patches joined (81 tokens), SmolLM2-1.7B
# with its positions stretched.
SMOLVLM2_2B = {
    "model": {
        "vision": {**_SO400M, "image_size": 384},
        "connector": {"kind": "pixel_shuffle", "bias": False, "scale_factor": 3},
        "decoder": {
            "vocab_size": 49280, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64, "rope_theta": 273768.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 16384,
        },
        "init_from": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    },
    "data": _CHECKPOINT_DATA,
}  # fmt: skip

BASES: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": LLAVA_1_5_7B,
    "llava-v1.6-vicuna-7b": LLAVA_1_6_VICUNA_7B,
    "vicuna-7b": VICUNA_7B,
    "llava-v1-7b": LLAVA_V1_7B,
    "qwen2-7b": QWEN2_7B,
    "smolvlm2-256m": SMOLVLM2_256M,
    "smolvlm2-2.2b": SMOLVLM2_2B,
    "idefics3-8b": IDEFICS3_8B,
}


def directory(path: str) -> dict[str, Any]:
    """The same for any checkpoint that `init_from` takes: sizes from its own files.

    Raises:
      InputError: it cannot be read, or is a bare tower or decoder.
    """
    from vlvm_jax.config import to_json
    from vlvm_jax.errors import InputError
    from vlvm_jax.weights.sources import open_source

    source = open_source(path, "--config: base")
    if source.vision is None or source.decoder is None or source.connector is None:
        raise InputError(f"--config: base={path!r} is a bare tower or decoder; a recipe starts from a whole model")
    return {
        "model": {
            "vision": to_json(source.vision),
            "connector": to_json(source.connector),
            "decoder": to_json(source.decoder),
            "init_from": path,
        },
        "data": _CHECKPOINT_DATA,
    }


def scorer(default: dict[str, Any], path: str) -> dict[str, Any]:
    """A CLIP that scores frames: the default, or the one that `path` names, with sizes from its own files.

    Raises:
      InputError: it cannot be read, or is no whole CLIP.
    """
    if not path:
        return default
    from vlvm_jax.config import to_json
    from vlvm_jax.errors import InputError
    from vlvm_jax.weights.hf import clip_source

    sizes = clip_source.sizes(clip_source.open_clip(path, "--config: clip"))
    if sizes.vision is None:
        raise InputError(
            f"--config: clip={path!r} shares its image tower with the model it is in; name a CLIP of its own"
        )
    return {"source": path, "sizes": to_json(sizes)}


def base(preset: str, path: str) -> dict[str, Any]:
    """The preset's model, or, where `path` names a checkpoint, that one in its place."""
    return directory(path) if path else BASES[preset]
