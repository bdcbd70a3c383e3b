"""A recipe that is small enough for tests: FTFV-LVLM's stages, and one before them that makes the image model.

    --config=tests/support/small.py[:tiny[,key=value...]]

600 thousand parameters, frames of 48 x 48 pixels as 9 patches, all from random values: what tests of training,
checkpoints and inference need is many kinds of stages and steps that cost nothing, not a model that knows anything.
Keys: those of `ftfv` that its tests use.
"""

from pathlib import Path
from typing import Any

from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.embedded.words import ROOM
from vlvm_jax.recipes._common import (
    EMBEDDED,
    QUESTION,
    complete,
    entry,
    every_option,
    parse_arg,
)
from vlvm_jax.recipes.ftfv import ALIGN, LAST_THREE

TOKENS, FRAMES = 4, 8
LENGTH = 168  # for an image of 9 tokens and all that is asked about it, and for a clip
DATA = {
    "train_arrangements": 60,
    "train_clips": 48,
    "heldout_arrangements": 4,
    "heldout_clips": 8,
    "size": 48,
}


def data(root: Path) -> Path:
    """The folder of `DATA`, among others' that tests may have made."""
    return Path(shapes.folder(shapes.ShapesOptions.model_validate(DATA), root))


def get_config(arg: str | None = None) -> Any:
    _, options = parse_arg(arg, ("tiny",), scale=1.0, seed=0, stages="")
    images, captions = (entry(f"{EMBEDDED}/train_arrangements{part}.json") for part in ("", "_captions"))
    clips, clip_captions = (entry(f"{EMBEDDED}/train_clips{part}.json") for part in ("", "_captions"))
    whole = ["encoder/**", "adapter/connector/**", "decoder/**"]

    def stage(name: str, data: list, steps: int, trainable: list[str], rate: float, **kwargs: Any) -> dict[str, Any]:
        return {
            "name": name,
            "data": data,
            "steps": max(1, round(steps * options.scale)),
            "batch_size": 16,
            "frames": 1,
            "length": LENGTH,
            "trainable": dict.fromkeys(trainable, rate),
            "warmup_ratio": 0.05,
            "beta2": 0.98,
            "weight_decay": 0.01,
            "final_lr_ratio": 0.02,
            "seed": options.seed,
            **kwargs,
        }

    of_clips = {"frames": FRAMES}
    mixed = [clips, {**clip_captions, "fraction": 0.4}, {**images, "fraction": 0.05}]
    stages = [
        stage("base", [captions, images], 800, whole, 1e-3),
        stage("align", [captions], 200, list(ALIGN), 2e-3, reset=["adapter/connector/**"]),
        stage("pretrain", [images, captions], 200, [LAST_THREE, "adapter/connector/**"], 5e-4),
        stage("instruct", mixed, 2600, ["adapter/**", "decoder/**"], 1e-3, **of_clips),
    ]
    sampler = {"reading": "soft_slots", "num_tokens": TOKENS, "prior": "learned_grid", "prior_sigma": 0.6}
    held_out = {
        "name": "videos",
        "data": [entry(f"{EMBEDDED}/heldout_clips.json")],
        "batch_size": 32,
        "frames": FRAMES,
        "length": FRAMES * TOKENS + QUESTION,
    }
    return complete(
        {
            "name": "small",
            "model": model({"name": "weighted_sampler", "options": sampler}),
            "data": {
                "embedded": dict(DATA),
                "tokenizer": f"{EMBEDDED}/tokenizer.json",
                "chat_template": "bare",
                "cache_mb": 512,
            },
            "stages": stages,
            "evals": [held_out],
            "checkpoint": {"save_every": 200, "keep": 2},
            "seed": options.seed,
        },
        options.stages,
    )


def model(adapter: dict[str, Any]) -> dict[str, Any]:
    return {
        "vision": {
            "kind": "siglip",
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 16,
            "feature_layer": -1,
            "hidden_act": "gelu_pytorch_tanh",
            "position_init": 1.0,
        },
        "adapter": every_option(adapter),
        "decoder": {
            "vocab_size": ROOM,
            "hidden_size": 96,
            "intermediate_size": 240,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 48,
        },
        "dtype": "float32",
        "vision_remat": "full",
        "decoder_remat": "full",
    }
