"""What is resolved and checked before anything runs. None of it needs parameters."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from etils import epath
from jax.sharding import Mesh

from vlvm_jax.config import Config, EvalConfig, StageConfig, require_work
from vlvm_jax.console import Waiting, number_of, say
from vlvm_jax.data.batch import packing
from vlvm_jax.data.record import usable
from vlvm_jax.data.sample import loader as loader_lib
from vlvm_jax.data.sample import spec as spec_lib
from vlvm_jax.data.sample import turns
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.data.sources import mixture
from vlvm_jax.data.sources.mixture import Mixture
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters.base import LearnsByItself
from vlvm_jax.models.params import Model, whole_path
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.samples import (
    check_bytes,
    check_tiles,
    sample_spec,
    with_checkpoint_files,
    with_embedded_data,
)
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import partition as partition_lib
from vlvm_jax.training.partition import Partition
from vlvm_jax.training.validation import Questions
from vlvm_jax.training.workdir import check_workdir
from vlvm_jax.weights.initial import Initial


@dataclasses.dataclass(frozen=True)
class PreparedStage:
    """A stage with everything checked before anything runs.

    Attributes:
      questions: what it is validated on.
    """

    stage: StageConfig
    records: Mixture
    spec: SampleSpec
    num_steps: int
    partition: Partition
    questions: Questions | None = None


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run that is resolved and checked, before anything of it has happened.

    Attributes:
      asked: the config as it was given, which claims the workdir.
      config: the same with folders in place of `{embedded}`, `{decoder}` and the like.
      initial: what the first stage starts from.
    """

    asked: Config
    config: Config
    mesh: Mesh
    initial: Initial
    stages: tuple[PreparedStage, ...]


def make(config: Config, workdir: epath.Path, stop: StopSignal) -> RunPlan:
    """Resolves and checks all of a run. The embedded data set is made, if the config asks for it and it is not there.

    Raises:
      InputError: the config, the data or the workdir is at fault.
      Interrupted: a signal came while the data set was made.
    """
    require_work(config)
    entries = [entry for part in (*config.stages, *config.evals) for entry in part.data]
    for entry in (*entries, *(entry for stage in config.stages for entry in stage.validation)):
        mixture.check_entry(entry)
    with Waiting("starting the devices"):
        mesh = make_mesh(config.mesh)
    with Waiting("checking the recipe"):
        check_mesh(config, mesh)
        check_adapter(config)
        check_guidance(config)
        check_workdir(config, workdir)
    resolved = with_embedded_data(config, stop)
    with Waiting("opening the files of the model"):
        initial = Initial(config.model)
        resolved = with_checkpoint_files(resolved, initial)
    prepared = []
    for stage in resolved.stages:
        with Waiting(f"{stage.name}: reading the annotations"):
            prepared.append(prepare_stage(resolved, stage))
    return RunPlan(config, resolved, mesh, initial, tuple(prepared))


def check_mesh(config: Config, mesh: Mesh, rows: int | None = None) -> None:
    """Raises `InputError` with the arithmetic when a stage's rows, or a large parameter, do not divide over the mesh.

    Args:
      rows: of every stage's batch, instead of what the config says.
    """
    model = Model(config.model)
    placed = model.on_mesh(model.abstract(), mesh)
    rules.check_split({whole_path(path): a for path, a in placed.items()}, mesh)
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
    adapter, name = Model(config.model).adapter, config.model.adapter.name
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
    adapter, name = Model(config.model).adapter, config.model.adapter.name
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


def prepare_stage(config: Config, stage: StageConfig) -> PreparedStage:
    """Reads the stage's records and checks that they fit; needs no device."""
    where = f"config.stages.{stage.name}"
    check_bytes(config.model, stage, max(1, stage.batch_size // jax.process_count()))
    source = mixture.read_mixture(stage.data, stage.seed)
    for note in source.notes:
        say(note)
    spec = sample_spec(config, stage)
    spec.check(where, source.kind_counts["video"] > 0)
    spec_lib.check_guided(config.data.prompt_tokenizer, stage.pack and source.kind_counts["video"] > 0, where)
    loader = loader_lib.SampleLoader(source, spec)
    check_tiles(config, loader)
    shapes = Model(config.model).abstract()
    partition_lib.resets(stage, shapes)
    partition_lib.copies(stage, shapes)
    sizes = loader_lib.check_lengths(loader, where, config.data.max_bad_share)
    steps = num_steps(stage, len(source), sizes)
    partition = partition_lib.resolve(config.model, stage)
    questions = prepare_questions(config, stage)
    if questions is not None and any(entry.held_out for entry in stage.data):
        whole = len(source) + questions.set_aside
        before = num_steps(stage, whole, sizes)
        changed = f"; {number_of(steps, 'step')} instead of {before:,}" if before != steps else ""
        say(f"{stage.name}: {questions.set_aside:,} of {whole:,} records are set aside for validation{changed}")
    return PreparedStage(stage, source, spec, steps, partition, questions)


def prepare_questions(config: Config, stage: StageConfig) -> Questions | None:
    """What a stage is validated on, each question alone; None where nothing is, or too few clips could be set aside."""
    if not stage.validation:
        return None
    where, asked = f"config.stages.{stage.name}.validation", stage.validating
    try:
        source = mixture.read_mixture(asked.data, asked.seed)
    except mixture.NothingLeft:
        if not all(entry.held_out for entry in asked.data):
            raise
        say(f"{stage.name}: too few clips to set some aside for validation; all are trained on")
        return None
    spec = sample_spec(config, asked)
    spec.check(where, source.kind_counts["video"] > 0)
    questions = turns.split_turns(usable(source))
    loader_lib.check_lengths(loader_lib.SampleLoader(questions, spec), where, config.data.max_bad_share)
    return Questions(questions, spec, len(source))


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
