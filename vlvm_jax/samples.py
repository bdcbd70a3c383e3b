"""What training, evaluation and inference all need to turn a config into samples."""

import json
import os

from vlvm_jax import config as config_lib
from vlvm_jax import memory, storage
from vlvm_jax.config import Config, DataConfig, EvalConfig, ModelConfig, StageConfig
from vlvm_jax.console import Meter, say
from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.sample import loader as loader_lib
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.errors import InputError, Interrupted
from vlvm_jax.models.params import Model
from vlvm_jax.stop import StopSignal
from vlvm_jax.weights.hf import hub
from vlvm_jax.weights.initial import Initial


def with_embedded_data(config: Config, stop: StopSignal) -> Config:
    """Makes the embedded data set if the config asks for it, and puts its folder for `{embedded}` in the paths."""
    if config.data.embedded is None:
        return config
    options = config_lib.build(shapes.ShapesOptions, dict(config.data.embedded), "config.data.embedded")
    if not shapes.exists(options):
        say(f"making the embedded data set (once) in {shapes.folder(options)}")
        total = sum(split.count for split in shapes.splits(options))
        with Meter("data", total) as meter:

            def progress(done: int, total: int) -> None:
                del total
                if stop.requested:
                    raise Interrupted("while making the embedded data set")
                meter.update(done, "files")

            shapes.ensure(options, workers=2, progress=progress)
    text = json.dumps(config_lib.to_json(config)).replace("{embedded}", str(shapes.folder(options)))
    return config_lib.build(Config, json.loads(text))


def with_checkpoint_files(config: Config, initial: Initial) -> Config:
    """Puts the folders of the tokenizers and processors for `{encoder}`, `{decoder}` and `{clip}` in the data's
    settings."""
    values = config_lib.to_json(config)
    for key in ("tokenizer", "processor", "prompt_tokenizer"):
        text = values["data"][key] or ""
        for part in ("encoder", "decoder", "clip"):
            if f"{{{part}}}" in text:
                folder = initial.local_files(part, f"config.data.{key}: {text!r}")
                text = values["data"][key] = text.replace(f"{{{part}}}", folder)
    scoring = values["data"]["prompt_tokenizer"]
    if scoring is not None and not storage.is_file(scoring):  # a `tokenizer.json` is taken as it is
        values["data"]["prompt_tokenizer"] = os.fspath(hub.resolve(scoring, "config.data.prompt_tokenizer"))
    return config_lib.build(Config, values)


def sample_spec(config: Config, part: StageConfig | EvalConfig, control: str | None = None) -> SampleSpec:
    """How the records of a stage or an evaluation become samples."""
    return spec_of(config.model, config.data, part, control)


def check_bytes(model: ModelConfig, part: StageConfig | EvalConfig, rows: int) -> None:
    """Raises `InputError` if the frames of so many rows alone are more than this machine's memory."""
    asked, there = rows * part.frames * model.vision.image_size**2 * 3, memory.total()
    if asked > there:
        raise InputError(
            f"frames of {part.name}: {f'{rows:,} rows of ' * (rows > 1)}{part.frames:,} take {asked / 2**30:,.0f} GiB, "
            f"but this machine has {there / 2**30:,.0f} GiB of memory; take fewer"
        )


def spec_of(
    model: ModelConfig, data: DataConfig, part: StageConfig | EvalConfig, control: str | None = None
) -> SampleSpec:
    """How records become samples for a model.

    Packed rows of images and text are not guided by a question, so there samples have no `prompt_ids`.
    """
    check_bytes(model, part, 1)
    adapter = Model(model).adapter
    return SampleSpec(
        data=data.model_copy(update={"prompt_tokenizer": None}) if part.pack else data,
        length=part.length,
        frames=part.frames,
        frames_per_video=part.frames_per_video,
        image_size=model.vision.image_size,
        image_tokens=adapter.num_image_tokens(),
        video_tokens=tuple(adapter.num_video_tokens(n) for n in range(part.frames_per_video + 1)),
        image_mean=model.vision.image_mean,
        max_clips=1 if adapter.one_clip else None,
        seed=part.seed if isinstance(part, StageConfig) else None,
        loss_on=part.loss_on,
        control=control,
        cache_bytes=data.cache_mb << 20,
    )


def check_tiles(config: Config, loader: loader_lib.SampleLoader) -> None:
    """Raises `InputError` when images come in tiles that the adapter cannot lay out."""
    slots, taps = loader.layout
    have = Model(config.model).adapter.slots_per_frame
    if taps and slots != have:
        raise InputError(
            f"config.data.image_layout: anyres reads {slots} slots a frame, its newline among them, where the adapter "
            f"{config.model.adapter.name!r} has {have or 'none'}; use single, or the frames adapter with a newline"
        )
