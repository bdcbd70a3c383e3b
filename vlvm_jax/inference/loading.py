"""From a checkpoint to a model that answers: a run, an import or a Hugging Face directory, with its own recipe or
another."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from etils import epath

from vlvm_jax import config as config_lib
from vlvm_jax import families, samples
from vlvm_jax.config import (
    AnswerConfig,
    Config,
    DataConfig,
    DecoderConfig,
    DType,
    EvalConfig,
    InitFrom,
    MeshConfig,
    ModelConfig,
)
from vlvm_jax.console import Reading, Waiting
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.errors import InputError
from vlvm_jax.families.base import own_data
from vlvm_jax.inference.answering import CACHE_BYTES, ROWS, Answering
from vlvm_jax.inference.engine import Engine
from vlvm_jax.inference.prompts import Prompts
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model, Params, Splits
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.weights.export import lora
from vlvm_jax.weights.hf import side_files
from vlvm_jax.weights.initial import Initial
from vlvm_jax.weights.sources import HFDirectory, Stored, open_source

FRAMES = 8  # of a clip, where no recipe says


def load(
    checkpoint: str | None,
    *,
    config: Config | None = None,
    frames: int | None = None,
    length: int | None = None,
    chat_template: str | None = None,
    dtype: DType | None = None,
    mesh: MeshConfig | None = None,
    rows: int = ROWS,
    cache_bytes: int = CACHE_BYTES,
    where: str = "--checkpoint",
) -> Answering:
    """A model over all devices, ready to answer.

    Args:
      checkpoint: a training run (or a stage or step of it), an import, a directory in Hugging Face format or a hub id.
        None: what the recipe's `init_from` names.
      config: a recipe whose model and data settings replace the checkpoint's, which gives the parameters.
      frames: of a clip; by default as the recipe's or run's last stage has it, else `FRAMES`.
      length: tokens of a prompt and its answer at most; by default all positions that the decoder has.
      chat_template: instead of the recipe's, the run's or the checkpoint's own; `templates.TEMPLATES`.
      dtype: of parameters and computation; by default the recipe's or run's, else float32 for a checkpoint of that
        dtype and bfloat16 for all others.
      mesh: of the devices; by default that of a recipe with stages, else as many as divide its key/value heads along
        `tensor` and the others along `fsdp`.
      rows: questions in a batch at most.
      cache_bytes: of encoded media that are kept.
      where: the flag that named the checkpoint, for messages.

    Raises:
      InputError: the checkpoint, or what is asked of it, is at fault.
    """
    with Waiting(f"opening {checkpoint or 'the checkpoint'}"):
        setup = _of_recipe(checkpoint, config, where) if config is not None else _of_checkpoint(checkpoint, where)
        model = setup.model.model_copy(
            update={"dtype": dtype or setup.model.dtype, "vision_remat": "none", "decoder_remat": "none"}
        )
        data = setup.data if chat_template is None else _changed(setup.data, chat_template)
        spec = _spec(model, data, frames or setup.frames, length)
        device_mesh = make_mesh(
            mesh or (config.mesh if config is not None and config.stages else _spread(model.decoder))
        )
        initial = Initial(model)
    params = _parameters(model, initial, device_mesh)
    if model.lora is not None:
        params = {path: lora.merged(path, params.__getitem__, model.lora) for path in params if not lora.is_lora(path)}
        model = model.model_copy(update={"lora": None})
    splits = _splits(model, device_mesh)
    segmented: Params = {}
    for path in list(params):  # a stack at a time, for there may be no room for all of them twice
        segmented |= params_lib.split({path: params.pop(path)}, splits)
    engine = Engine(Model(model, splits), segmented, device_mesh)
    prompts = Prompts(spec, model.decoder.max_position_embeddings, setup.answers)
    return Answering(engine, prompts, rows=rows, cache_bytes=cache_bytes)


@dataclasses.dataclass(frozen=True)
class _Setup:
    """A model with its `init_from`, and how it is to be asked."""

    model: ModelConfig
    data: DataConfig
    answers: AnswerConfig
    frames: int


def _of_recipe(checkpoint: str | None, config: Config, where: str) -> _Setup:
    if checkpoint is not None:
        open_source(checkpoint, where)  # whose faults are the flag's, not the recipe's
        config = config.model_copy(update={"model": _starting_from(config.model, checkpoint)})
    if config.model.init_from is None:
        raise InputError(f"{where}: name a checkpoint; {config.name} starts from scratch")
    initial = Initial(config.model)
    data = config.data
    if "{embedded}" in f"{data.tokenizer} {data.prompt_tokenizer}":
        files = getattr(initial.sources.get("decoder"), "hf_files", None)
        data = _with_files(data, files, f"{where}: {checkpoint}")
    config = samples.with_checkpoint_files(config.model_copy(update={"data": data}), initial)
    parts = (*config.stages[-1:], *config.evals)
    frames = config.answers.frames or (parts[-1].frames_per_video if parts else FRAMES)
    return _Setup(config.model, config.data, config.answers, frames)


def _starting_from(model: ModelConfig, checkpoint: str) -> ModelConfig:
    """A recipe's model with a checkpoint in the place of its base; a CLIP that the recipe names stays."""
    start = model.init_from
    if isinstance(start, InitFrom) and start.clip is not None:
        start = start.model_copy(update=dict.fromkeys(("encoder", "connector", "decoder"), checkpoint))
    else:
        start = checkpoint
    return model.model_copy(update={"init_from": start})


def _of_checkpoint(checkpoint: str | None, where: str) -> _Setup:
    if checkpoint is None:
        raise InputError(f"{where}: name a run, an import, a Hugging Face directory or a hub id")
    source = open_source(checkpoint, where)
    if isinstance(source, Stored) and source.config is not None:
        config = source.config
        model = config.model.model_copy(update={"init_from": checkpoint})
        data = _with_files(config.data, source.hf_files, f"{where}: {checkpoint}")
        return _Setup(model, data, config.answers, config.asked_frames(source.stages[-1]) or FRAMES)
    if source.vision is None or source.decoder is None or source.adapter is None:
        raise InputError(f"{where}: {checkpoint} is a bare tower or decoder; only a whole model answers")
    model = ModelConfig(
        vision=source.vision, decoder=source.decoder, adapter=source.adapter, init_from=checkpoint, dtype=_dtype(source)
    )
    files = source.hf_files
    if files is None:
        raise InputError(f"{where}: {checkpoint} has no folder `hf` with its tokenizer; import the checkpoint again")
    local = side_files.local(files)
    if (given := families.preparation(Path(local))) is not None:
        model = model.model_copy(update={"dtype": given.dtype or model.dtype})
        return _Setup(model, given.data, given.answers, given.frames or FRAMES)
    data = own_data(Path(local), Path(side_files.of_tower(local)))
    return _Setup(model, data, AnswerConfig(), FRAMES)


def _dtype(source: HFDirectory | Stored) -> DType:
    exact = all(shape.dtype == jnp.float32 for path, shape in source.shapes.items() if path.startswith("decoder/"))
    return "float32" if exact else "bfloat16"


def _with_files(data: DataConfig, files: epath.Path | None, where: str) -> DataConfig:
    """The settings of a run with the files that it kept in place of those that its recipe named by a placeholder."""
    values = config_lib.to_json(data)
    local = None
    for key in ("tokenizer", "processor", "prompt_tokenizer"):
        text = values[key] or ""
        if not any(f"{{{part}}}" in text for part in ("embedded", "decoder", "encoder", "clip")):
            continue
        if files is None:
            raise InputError(f"{where}: no folder `hf` with the model's tokenizer; config.data.{key} is {text!r}")
        local = side_files.local(files) if local is None else local
        places = {
            "embedded": local,
            "decoder": local,
            "encoder": side_files.of_tower(local),
            "clip": side_files.of_clip(local),
        }
        for part, place in places.items():
            text = text.replace(f"{{{part}}}", str(place))
        values[key] = text
    return config_lib.build(DataConfig, {**values, "embedded": None}, "config.data")


def _changed(data: DataConfig, chat_template: str) -> DataConfig:
    values = {**config_lib.to_json(data), "chat_template": chat_template}
    return config_lib.build(DataConfig, values, "--chat_template")


def _spec(model: ModelConfig, data: DataConfig, frames: int, length: int | None) -> SampleSpec:
    longest = model.decoder.max_position_embeddings
    if length is not None and not 0 < length <= longest:
        raise InputError(f"length: {length}; expected 1 to {longest}, the decoder's max_position_embeddings")
    asked = EvalConfig(name="answers", data=(), batch_size=1, frames=frames, length=length or longest, pack=False)
    return samples.spec_of(model, data, asked)


def _spread(decoder: DecoderConfig) -> MeshConfig:
    """Heads over as many devices as divide them, so that a single question has them all at work."""
    devices, heads = len(jax.devices()), decoder.num_key_value_heads
    tensor = next(size for size in range(min(devices, heads), 0, -1) if devices % size == heads % size == 0)
    return MeshConfig(data=1, fsdp=-1, tensor=tensor)


def _splits(model: ModelConfig, mesh: jax.sharding.Mesh) -> Splits:
    """Where the decoder's stack is cut: on CPUs in fp32, around every layer.

    A CPU's matrix products read contiguous fp32 arrays, so a scan over stacked layers first copies each layer's weights
    out of the stack, for every generated token. Weights in bf16 are converted on the way out anyway, and if the stack
    were cut, all layers would be converted at once (see `parallel.cpu_options`). Other devices read them in place.
    """
    copies = mesh.devices.flat[0].platform == "cpu" and model.dtype == "float32"
    return {"decoder": tuple(range(1, model.decoder.num_hidden_layers))} if copies else {}


def _parameters(model: ModelConfig, initial: Initial, mesh: jax.sharding.Mesh) -> Params:
    """Whole parameters, all of them from the checkpoint."""
    unbound = Model(model)
    shapes = jax.eval_shape(params_lib.join, unbound.abstract())
    rules.check_split(unbound.on_mesh(shapes, mesh), mesh)
    if fresh := initial.missing(shapes):
        source = next(iter(initial.sources.values())).name
        raise InputError(
            f"config.model.adapter: {source} has no {fresh[0]}"
            + (f" and {len(fresh) - 1} more" if fresh[1:] else "")
            + f" of the {model.adapter.name!r} adapter; train it first (vlvm_jax.train), or answer without --config"
        )
    dtype = jnp.dtype(model.dtype)
    wanted = {path: jax.ShapeDtypeStruct(a.shape, dtype) for path, a in shapes.items()}
    return initial.params(wanted, mesh, seed=0, tell=Reading())
