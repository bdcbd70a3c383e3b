"""The small image model in the package (`init_from="embedded"`), from random parameters.

    --config=base[:preset[,key=value...]]

Presets: `tiny` (default), a tower with a decoder, and `clip`, a pair of towers that compare images with words. Both
learn from images of the embedded data alone, several together among them, and nothing about time.

Keys:
  scale   multiplies the steps.
  seed    of training.

How the weights in the package were made, and what they can do: docs/base.md.
"""

from typing import Any

from ml_collections import ConfigDict

from vlvm_jax.recipes._common import EMBEDDED, complete, entry, every_option, parse_arg

PRESETS = ("tiny", "clip")
SIZE = 64  # pixels along a side of an image
PATCH = 8
WORDS = 12  # of a text for CLIP, its start and end among them
IMAGES = 3  # of a set or a sheet, at most
NO_SCENES = {"train_images": 0, "train_videos": 0, "heldout_images": 0, "heldout_videos": 0}
SINGLES = {"train_singles": 10000, "search_size": SIZE, "sheet_images": IMAGES}


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(arg, PRESETS, scale=1.0, seed=0)
    return image(options) if preset == "tiny" else clip(options)


def image(options: Any) -> ConfigDict:
    """1.4 million parameters: captions first, then everything that is asked about images."""
    captions = entry(f"{EMBEDDED}/train_arrangements_captions.json")
    arrangements = entry(f"{EMBEDDED}/train_arrangements.json")
    sets, signs = entry(f"{EMBEDDED}/train_sets.json"), entry(f"{EMBEDDED}/train_signs.json")
    small = [entry(f"{EMBEDDED}/train_singles.json"), entry(f"{EMBEDDED}/train_sheets.json")]
    texts = entry(f"{EMBEDDED}/train_timeless_texts.json")
    seen = [captions, signs, {**arrangements, "fraction": 0.3}]
    everything = [arrangements, {**captions, "fraction": 0.1}, sets, {**signs, "fraction": 0.5}, *small, texts]
    rows = {"batch_size": 16, "frames": IMAGES, "length": 256}
    whole = ["encoder/**", "adapter/**", "decoder/**"]
    return run(
        "base",
        options,
        model={**image_model(), "adapter": {"name": "frames"}},
        data={
            "train_arrangements": 30000,
            "heldout_arrangements": 600,
            "train_sets": 24000,
            "heldout_sets": 600,
            "train_signs": 16000,
            "heldout_signs": 300,
            "train_timeless_texts": 3000,
            **SINGLES,
            "train_sheets": 10000,
            "heldout_singles": 300,
        },
        stages=[
            stage(options, "captions", seen, 1200, whole, **rows),
            stage(options, "questions", everything, 4500, whole, **rows),
        ],
        evals=[
            {"name": name, "data": [entry(f"{EMBEDDED}/heldout_{name}.json")], **rows}
            for name in ("arrangements", "sets", "signs", "singles")
        ],
    )


def clip(options: Any) -> ConfigDict:
    """240 thousand parameters that compare an image of one thing with its name, and with questions about it."""
    adapter = every_option({"name": "prompt_guided", "options": {"clip": clip_sizes()}})
    pairs = [entry(f"{EMBEDDED}/train_singles_pairs.json")]
    rows = {"batch_size": 64, "frames": 1, "length": 96, "pack": False, "objective": "adapter"}
    return run(
        "base-clip",
        options,
        model={**image_model(), "adapter": adapter},
        data=SINGLES,
        stages=[stage(options, "clip", pairs, 2000, ["adapter/clip/**"], **rows)],
        prompt_tokenizer=f"{EMBEDDED}/prompt_tokenizer.json",
        prompt_length=WORDS,
    )


def run(
    name: str, options: Any, *, model: dict, data: dict, stages: list, evals: tuple | list = (), **settings: Any
) -> ConfigDict:
    return complete(
        {
            "name": name,
            "model": model,
            "data": {
                "embedded": {**NO_SCENES, "size": SIZE, **data},
                "tokenizer": f"{EMBEDDED}/tokenizer.json",
                "chat_template": "bare",
                "cache_mb": 1024,
                "workers": 1,
                **settings,
            },
            "stages": stages,
            "evals": list(evals),
            "checkpoint": {"save_every": 500, "keep": 1},
            "seed": options.seed,
        }
    )


def stage(options: Any, name: str, data: list, steps: int, trained: list[str], **rows: Any) -> dict[str, Any]:
    return {
        "name": name,
        "data": data,
        "steps": max(1, round(steps * options.scale)),
        "trainable": dict.fromkeys(trained, 1.5e-3),
        "warmup_ratio": 0.05,
        "beta2": 0.98,
        "weight_decay": 0.01,
        "final_lr_ratio": 0.02,
        "seed": options.seed,
        **rows,
    }


def image_model() -> dict[str, Any]:
    from vlvm_jax.data.embedded.words import ROOM

    return {
        "vision": {
            "kind": "siglip",
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": SIZE,
            "patch_size": PATCH,
            "feature_layer": -1,
            "hidden_act": "gelu_pytorch_tanh",
            "position_init": 1.0,
        },
        "decoder": {
            "vocab_size": ROOM,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
        },
        "dtype": "float32",
    }


def clip_sizes() -> dict[str, Any]:
    from vlvm_jax.data.embedded.words import ROOM, SPECIAL_TOKENS

    layers = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 2}
    return {
        "text": {
            **layers,
            "num_hidden_layers": 2,
            "vocab_size": ROOM,
            "max_position_embeddings": WORDS,
            "eos_token_id": SPECIAL_TOKENS.index("</s>"),
        },
        "vision": {
            **layers,
            "kind": "clip",
            "num_hidden_layers": 3,
            "image_size": SIZE,
            "patch_size": PATCH,
            "position_init": 0.5,
        },
        "projection_dim": 32,
    }
