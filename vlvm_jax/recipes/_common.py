"""What recipes share: the argument after the colon, the tiny run over embedded data, the run at real size."""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict, config_dict

from vlvm_jax.config import Config, build
from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._bases import Base


def parse_arg(arg: str | None, presets: Collection[str], **options) -> tuple[str, Any]:
    """`preset,key=value,...` -> (preset, options). No preset means `tiny`; values take the default's type.

    Raises:
      InputError: unknown preset or key, or a value of the wrong type.
    """
    parts = [part for part in (arg or "").split(",") if part]
    named = bool(parts) and "=" not in parts[0]
    preset = parts.pop(0) if named else "tiny"
    if not named and preset not in presets:
        raise InputError(
            f"--config: name a preset, as in --config=FILE.py:{next(iter(presets))}; there are {', '.join(presets)}"
        )
    if preset not in presets:
        raise InputError(f"--config: no preset {preset!r}; there are {', '.join(presets)}")
    values = dict(options)
    for part in parts:
        key, separator, text = part.partition("=")
        if not separator and part is not parts[0]:
            raise InputError(
                f"--config: {part!r} is not key=value; commas separate settings. A path with a comma is given by a "
                "flag of its own, as in --config.stages[0].data[0].path=PATH"
            )
        if not separator or key not in options:
            raise InputError(f"--config: unknown key {key!r} in {part!r}; there are {', '.join(options)}")
        kind = type(options[key])
        try:
            values[key] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
        except ValueError:
            raise InputError(f"--config: {key}={text!r} is not a {kind.__name__}") from None
    for key, value in values.items():
        if key == "scale" and not 0 < value < 1e6:
            raise InputError(f"--config: scale={value} is not above 0 and below a million")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--config: {key}={value} is not a finite number")
        if key == "seed" and not 0 <= value < 2**32:
            raise InputError(f"--config: seed={value} is not in [0, 2**32)")
    return preset, ConfigDict(values)


def complete(config: dict, only: str = "") -> ConfigDict:
    """The config with every setting's default written out, so that each can be overridden on the command line.

    Args:
      only: names of the stages to train, joined by +; empty for all.
    """
    values = build(Config, _with_stages(config, only)).model_dump(mode="json", exclude_none=True)
    for stage in values["stages"]:
        stage["trainable"] = dict(stage["trainable"])
    for part in ("stages", "evals"):
        values[part] = [ConfigDict(entry) for entry in values[part]]
    # A number or "auto", where a ConfigDict would only take what it began with.
    values["data"]["workers"] = config_dict.FieldReference(values["data"]["workers"], field_type=object)
    full: Any = ConfigDict(values)
    full.wandb_project = config_dict.placeholder(str)
    model: Any = full.model
    if "init_from" not in model:
        model.init_from = config_dict.placeholder(str)
    unset: Any = (
        (full.answers, "frames", int),
        (full.answers, "system", str),
        (full.data, "prompt_tokenizer", str),
    )
    unset += tuple((stage, key, kind) for stage in full.stages for key, kind in _UNSET_OF_STAGES.items())
    unset += tuple((held_out, key, int) for held_out in full.evals for key in ("video_frames", "limit"))
    for settings, key, kind in unset:
        if key not in settings:
            settings[key] = config_dict.placeholder(kind)
    return full


_UNSET_OF_STAGES = {
    "steps": int,
    "epochs": float,
    "video_frames": int,
    "save_every": int,
    "validate_every": int,
    "best": str,
    "patience": int,
}


def _with_stages(config: dict, only: str) -> dict:
    """The config with some of its stages, and a note on what these start from."""
    if not only:
        return config
    names, wanted = [stage["name"] for stage in config["stages"]], only.split("+")
    if unknown := [name for name in wanted if name not in names]:
        raise InputError(f"--config: stages={only}: no stage {unknown[0]!r}; there are {', '.join(names)}")
    kept = [name for name in names if name in wanted]
    if kept == names:
        return config
    starts, before = [], _base_of(config["model"])
    for number, name in enumerate(names):
        if name in kept:
            if number and names[number - 1] not in kept:
                starts.append(f"{name} starts from {before}")
            before = f"the result of {name}"
    left_out = ", ".join(name for name in names if name not in kept)
    return {
        **config,
        "name": "-".join([config["name"], *kept]),
        "stages": [stage for stage in config["stages"] if stage["name"] in kept],
        "notes": [*config.get("notes", ()), "; ".join([f"stages left out: {left_out}", *starts])],
    }


def _base_of(model: dict) -> str:
    """What the first stage of a recipe starts from, in words."""
    start = model.get("init_from")
    if start is None:
        return "random parameters (the preset has no checkpoint behind it)"
    if isinstance(start, str):
        return start
    fresh = "" if start.get("connector") else " and a connector with random parameters"
    return ", ".join(f"{part} {name}" for part, name in start.items() if name) + fresh


def every_option(adapter: dict) -> dict:
    """An adapter with the defaults of its options written out too. Those that are None by default stay away."""
    from vlvm_jax.models.adapters import options_of

    options = options_of(adapter["name"], adapter.get("options", {}))
    return {**adapter, "options": options.model_dump(mode="json", exclude_none=True)}


def entry(path: str, **kwargs) -> dict:
    return {"path": path, **kwargs}


# --- tiny --------------------------------------------------------------------------------------------------------

EMBEDDED = "{embedded}"
PATCHES = bases.EMBEDDED.vision.num_patches  # of a frame
IMAGE_TEXT = 160  # tokens of the longest conversation about an image, without the image
IMAGE_CAPTION = 40  # of an image's caption and its prompt
CLIP_TEXT = 92  # about a clip, in training; two clips seldom both have the most
QUESTION = 24  # tokens of a question and its answer


def tiny_stage(
    options: Any,
    name: str,
    data: list,
    steps: int | None,
    trainable: dict,
    *,
    media=2,
    frames=1,
    visual=PATCHES,
    text=IMAGE_TEXT,
    rows=8,
    **kwargs,
):
    """A stage over embedded data, of images where `frames` is 1.

    Args:
      options: the recipe's, with `seed`, and with `scale`, which multiplies the steps.
      steps: None where `epochs` are given.
      trainable: patterns with their learning rates.
      media: images or clips of a row, at most.
      visual: tokens of an image or a clip, whichever has more.
      text: tokens beside them.
    """
    return {
        "name": name,
        "data": data,
        "steps": None if steps is None else max(1, round(steps * options.scale)),
        "batch_size": rows,
        "frames": media * frames,
        "video_frames": frames,
        "length": _rounded(media * (visual + text)),
        "trainable": trainable,
        "warmup_ratio": 0.05,
        "beta2": 0.98,
        "weight_decay": 0.01,
        "final_lr_ratio": 0.02,
        "seed": options.seed,
        **kwargs,
    }


def _rounded(tokens: int) -> int:
    return math.ceil(tokens / 8) * 8


def tiny_run(
    name: str, *, adapter: dict, stages: list, frames: int, visual: int, seed: int, only: str = ""
) -> ConfigDict:
    """Stages on the image model in the package over the embedded data, and a test on its held-out clips, of `visual`
    tokens each.

    Args:
      only: see `complete`.
    """
    held_out = {
        "data": [entry(f"{EMBEDDED}/heldout_clips.json")],
        "batch_size": 32,
        "frames": frames,
        "length": _rounded(visual + QUESTION),
    }
    return complete(
        {
            "name": name,
            "model": tiny_model(adapter),
            "data": tiny_data(train_arrangements=2000, train_clips=6000, heldout_clips=240),
            "stages": stages,
            "evals": [{"name": "videos", **held_out}],
            "checkpoint": {"save_every": 200, "keep": 2},
            "seed": seed,
        },
        only,
    )


def tiny_model(adapter: dict, **settings: Any) -> dict[str, Any]:
    """The image model in the package with an adapter, in fp32."""
    return bases.EMBEDDED.model(every_option(adapter), dtype="float32", **settings)


def tiny_data(settings: Mapping[str, Any] = MappingProxyType({}), **embedded: int) -> dict[str, Any]:
    """Data settings of embedded data, of which all is cached.

    Args:
      settings: others beside or in place of these.
      embedded: how many of what, and other options of the embedded data.
    """
    size = bases.EMBEDDED.vision.image_size
    return bases.EMBEDDED.data(embedded={"size": size, "search_size": size, **embedded}, cache_mb=512, **settings)


# --- real size ---------------------------------------------------------------------------------------------------


def llava_pretrain(root: str) -> dict:
    """LLaVA-1.5's captions."""
    return entry(f"{root}/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", media_root=f"{root}/LLaVA-Pretrain/images")


def llava_instruct(root: str) -> dict:
    """LLaVA-1.5's mix of 665 thousand image instructions."""
    return entry(f"{root}/LLaVA-Instruct/llava_v1_5_mix665k.json", media_root=f"{root}/LLaVA-Instruct/images")


def full_stage(options: Any, name: str, data: list, rows: int, trainable: dict, **kwargs) -> dict:
    """An epoch in rows of one sample."""
    return {
        "name": name,
        "data": data,
        "epochs": 1.0,
        "batch_size": rows,
        "frames": 1,
        "length": 2048,
        "pack": False,
        "trainable": trainable,
        "warmup_ratio": 0.03,
        "loss_chunks": 8,
        "frozen_dtype": "bfloat16",
        "seed": options.seed,
        **kwargs,
    }


def full_run(
    name: str, base: Base, *, adapter: dict, stages: list, seed: int, lora: int = 0, only: str = "", **data
) -> ConfigDict:
    """Stages on an image model in bf16, sharded over all chips.

    Args:
      adapter: without its connector, which is the base's.
      lora: rank in the decoder, 0 for none; alpha is twice the rank.
      only: see `complete`.
      data: what differs from the base's data settings.
    """
    settings = {"lora": {"rank": lora, "alpha": 2.0 * lora}} if lora else {}
    return complete(
        {
            "name": name,
            "model": base.model(adapter, vision_remat="full", decoder_remat="full", **settings),
            "data": base.data(**data),
            "stages": stages,
            "mesh": {"fsdp": -1, "data": 1},
            "checkpoint": {"save_every": 500, "keep": 2},
            "seed": seed,
        },
        only,
    )
