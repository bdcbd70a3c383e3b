"""What is checked, read and written before a stage trains; none of it needs parameters."""

import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from vlvm_jax import config as config_lib
from vlvm_jax import json_text, manifest, memory, storage
from vlvm_jax.config import Config, DataConfig, EvalConfig, ModelConfig, StageConfig
from vlvm_jax.console import Meter, say
from vlvm_jax.data import pipeline
from vlvm_jax.data.batch import packing
from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.pipeline import SampleSpec
from vlvm_jax.data.sources import mixture
from vlvm_jax.data.sources.mixture import Mixture
from vlvm_jax.errors import InputError, Interrupted
from vlvm_jax.models.adapters.base import LearnsByItself, VideoAdapter
from vlvm_jax.models.params import Model, whole_path
from vlvm_jax.parallel import processes, rules
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import partition as partition_lib
from vlvm_jax.training.partition import Partition
from vlvm_jax.weights import integrity
from vlvm_jax.weights.hf import hub
from vlvm_jax.weights.initial import Initial


@dataclasses.dataclass(frozen=True)
class PreparedStage:
    """A stage with everything checked before anything runs."""

    stage: StageConfig
    records: Mixture
    spec: SampleSpec
    num_steps: int
    partition: Partition


def check_mesh(config: Config, mesh: Mesh, rows: int | None = None) -> None:
    """Raises `InputError` with the arithmetic when a stage's rows, or a large parameter, do not divide over the mesh.

    Args:
      rows: of every stage's batch, instead of what the config says.
    """
    rules.check_split({whole_path(path): a.shape for path, a in Model(config.model).abstract().items()}, mesh)
    shards = rules.batch_shards(mesh)
    if rows is not None and rows % shards:
        raise InputError(f"--rows={rows}: the mesh's data x fsdp = {shards} does not divide it")
    for stage in config.stages if rows is None else ():
        rows = stage.batch_size // stage.accumulate
        if rows % shards:
            raise InputError(
                f"config.stages.{stage.name}.batch_size: {stage.batch_size} rows / accumulate {stage.accumulate} = "
                f"{rows} rows a micro-batch, which the mesh's data x fsdp = {shards} does not divide"
            )
    for held_out in config.evals:
        if held_out.batch_size % shards:
            raise InputError(
                f"config.evals.{held_out.name}.batch_size: {held_out.batch_size} rows are not divided by the mesh's "
                f"data x fsdp = {shards}"
            )


def check_adapter(config: Config) -> None:
    """Raises `InputError` for stages and evaluations whose rows the adapter cannot read, or that it cannot learn."""
    adapter, name = adapter_of(config), config.model.adapter.name
    for kind, parts in (("stages", config.stages), ("evals", config.evals)):
        for part in parts:
            where = f"config.{kind}.{part.name}"
            if part.pack and (adapter.needs_prompt or adapter.one_clip):
                why = "one question" if adapter.needs_prompt else "one clip"
                raise InputError(f"{where}.pack: the adapter {name!r} reads {why} a row; set pack to False")
            if isinstance(part, EvalConfig) and "shuffled_prompt" in part.controls and not adapter.needs_prompt:
                raise InputError(f"{where}.controls: the adapter {name!r} reads no question; leave out shuffled_prompt")
            if (
                isinstance(part, StageConfig)
                and part.objective == "adapter"
                and not isinstance(adapter, LearnsByItself)
            ):
                raise InputError(f"{where}.objective: the adapter {name!r} learns nothing by itself; use 'text'")


def check_guidance(config: Config) -> None:
    """Raises `InputError` where an adapter that reads questions would be given none, or longer ones than it reads."""
    adapter, name = adapter_of(config), config.model.adapter.name
    if not adapter.needs_prompt:
        return
    if config.data.prompt_tokenizer is None:
        raise InputError(
            f"config.data.prompt_tokenizer: the adapter {name!r} reads questions; name its text tower's tokenizer"
        )
    if config.data.prompt_length > adapter.prompt_length:
        raise InputError(
            f"config.data.prompt_length: {config.data.prompt_length}, but the text tower of the adapter {name!r} has "
            f"{adapter.prompt_length} positions"
        )


_ANEW = "; remove config.json and the folder hf there and run the same command again, which writes them anew"


def check_workdir(config: Config, workdir: epath.Path) -> None:
    """Raises `InputError` when the folder holds another config's run; only the machinery may have changed."""
    if storage.is_remote(os.fspath(workdir)) and not storage.has_bucket(os.fspath(workdir)):
        raise InputError(f"--workdir={workdir}: there is no such bucket; make it first")
    path = workdir / "config.json"
    mine = config_lib.to_json(config)
    if path.exists():
        integrity.check_beside_stages(workdir, _ANEW)
        try:
            theirs = json_text.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); remove it, if the run there is this config's") from None
        for old, new, key, name in (
            (theirs, mine, "mesh", "config.mesh"),
            (theirs["data"], mine["data"], "workers", "config.data.workers"),
            (theirs["data"], mine["data"], "cache_mb", "config.data.cache_mb"),
        ):
            if old.get(key) != new[key]:
                say(f"{workdir}: continuing with another {_first_difference(old.get(key), new[key], name)}")
                old[key] = new[key]
        if theirs != mine:
            key = _first_difference(theirs, mine)
            raise InputError(
                f"--workdir={workdir}: holds another config's run (they differ in {key}); give another folder, or the "
                "same config to continue it"
            )


def claim_workdir(config: Config, workdir: epath.Path) -> None:
    """Writes `config.json`. Called once everything is checked, so that a faulty config claims no folder."""
    if not processes.primary():
        return
    (workdir / manifest.FILE).unlink(missing_ok=True)  # it is of the files before
    storage.write_text(os.fspath(workdir / "config.json"), json.dumps(config_lib.to_json(config), indent=2))


def check_shared(workdir: epath.Path, patience: float = 60.0) -> None:
    """Raises `InputError` where process 0's folder is not seen; a network's file system may take its time."""
    deadline = time.monotonic() + patience
    while not (workdir / "config.json").exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"--workdir={workdir}: process 0 wrote here, but this process sees nothing; share a folder"
            )
        time.sleep(1)


def _first_difference(a: Any, b: Any, path: str = "config") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            if a.get(key) != b.get(key):
                return _first_difference(a.get(key), b.get(key), f"{path}.{key}")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                return _first_difference(x, y, f"{path}.{index}")
    return f"{path}: {a!r} there, {b!r} here"


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


def adapter_of(config: Config) -> VideoAdapter:
    """The adapter without parameters, to ask how many tokens it gives."""
    model = Model(config.model)
    return model.bind(model.abstract()).adapter


def sample_spec(config: Config, part: StageConfig | EvalConfig, control: str | None = None) -> SampleSpec:
    """How the records of a stage or an evaluation become samples.

    Packed rows of images and text are not guided by a question, so there samples have no `prompt_ids`.
    """
    return spec_of(config.model, config.data, part, control)


def _check_room(model: ModelConfig, part: StageConfig | EvalConfig) -> None:
    """Raises `InputError` if the frames of a row alone are more than this machine's memory."""
    _check_bytes(model, part, 1)


def _check_bytes(model: ModelConfig, part: StageConfig | EvalConfig, rows: int) -> None:
    asked, there = rows * part.frames * model.vision.image_size**2 * 3, memory.total()
    if asked > there:
        raise InputError(
            f"frames of {part.name}: {f'{rows:,} rows of ' * (rows > 1)}{part.frames:,} take {asked / 2**30:,.0f} GiB, "
            f"but this machine has {there / 2**30:,.0f} GiB of memory; take fewer"
        )


def spec_of(
    model: ModelConfig, data: DataConfig, part: StageConfig | EvalConfig, control: str | None = None
) -> SampleSpec:
    """How records become samples for a model."""
    _check_room(model, part)
    unbound = Model(model)
    adapter = unbound.bind(unbound.abstract()).adapter
    return SampleSpec(
        length=part.length,
        frames=part.frames,
        frames_per_video=part.frames_per_video,
        image_size=model.vision.image_size,
        image_tokens=adapter.num_image_tokens(),
        video_tokens=tuple(adapter.num_video_tokens(n) for n in range(part.frames_per_video + 1)),
        tokenizer=data.tokenizer,
        chat_template=data.chat_template,
        processor=data.processor,
        image_layout=data.image_layout,
        frame_sampling=data.frame_sampling,
        fps=data.fps,
        folder_fps=data.folder_fps,
        seed=part.seed if isinstance(part, StageConfig) else None,
        loss_on=part.loss_on,
        control=control,
        time_instruction=data.time_instruction,
        cache_bytes=data.cache_mb << 20,
        short_video=data.short_video,
        frame_fit=data.frame_fit,
        image_mean=model.vision.image_mean,
        clips=data.clips,
        prompt_tokenizer=None if part.pack else data.prompt_tokenizer,
        prompt_length=data.prompt_length,
        clip_text=data.clip_text,
        max_clips=1 if adapter.one_clip else None,
    )


def prepare_stage(config: Config, stage: StageConfig) -> PreparedStage:
    """Reads the stage's records and checks that they fit; needs no device."""
    where = f"config.stages.{stage.name}"
    _check_bytes(config.model, stage, max(1, stage.batch_size // jax.process_count()))
    found = mixture.read_mixture(stage.data, stage.seed)
    for note in found.notes:
        say(note)
    spec = sample_spec(config, stage)
    spec.check(where, found.kind_counts["video"] > 0)
    pipeline.check_guided(config.data.prompt_tokenizer, stage.pack and found.kind_counts["video"] > 0, where)
    loader = pipeline.SampleLoader(found, spec)
    check_tiles(config, loader)
    shapes = Model(config.model).abstract()
    partition_lib.resets(stage, shapes)
    partition_lib.copies(stage, shapes)
    sizes = pipeline.check_lengths(loader, where, config.data.max_bad_share)
    steps = num_steps(stage, len(found), sizes)
    return PreparedStage(stage, found, spec, steps, partition_lib.resolve(config.model, stage))


def num_steps(stage: StageConfig, records: int, sizes: Sequence[tuple[int, int]]) -> int:
    """The steps of a stage; for epochs as many as show each record that often at least, the last batch being full.

    How many samples a packed batch holds is estimated from the sizes: the number of epochs is then about right.

    Args:
      sizes: tokens and frames of a spread of records.

    Raises:
      InputError: epochs of packed rows, and no size is known.
    """
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    batch: float = stage.batch_size
    if stage.pack:
        if not sizes:
            raise InputError(f"config.stages.{stage.name}.epochs: no record probed can be used; give steps")
        batch = packing.samples_per_batch(sizes, length=stage.length, frames=stage.frames, rows=stage.batch_size)
    return math.ceil(round(records * stage.epochs / batch, 6))


def check_tiles(config: Config, loader: pipeline.SampleLoader) -> None:
    """Raises `InputError` when images come in tiles that the adapter cannot lay out."""
    slots, taps = loader.layout
    have = adapter_of(config).slots_per_frame
    if taps and slots != have:
        raise InputError(
            f"config.data.image_layout: anyres reads {slots} slots a frame, its newline among them, where the adapter "
            f"{config.model.adapter.name!r} has {have or 'none'}; use single, or the frames adapter with a newline"
        )


def write_run_card(config: Config, workdir: epath.Path, prepared: list[PreparedStage]) -> None:
    """What would be needed to repeat the run, beside its result."""
    if not processes.primary():
        return
    card = {
        "config": config.name,
        "config_hash": config_lib.fingerprint(config),
        **environment(),
        "seeds": {"model": config.seed, **{p.stage.name: p.stage.seed for p in prepared}},
        "data": {p.stage.name: {"records": len(p.records), "hash": p.records.digest()[:16]} for p in prepared},
    }
    storage.write_text(os.fspath(workdir / "run_card.json"), json_text.readable(card, indent=2))


def environment() -> dict[str, Any]:
    """For a run card: versions of what computes, and on what it does."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av", "vlvm_jax")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
