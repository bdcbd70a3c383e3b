"""Runs the stages of a config in order, each from the last one's checkpoint, and continues where an earlier run of the
same command stopped. A config without stages is a model as it is: its held-out questions are answered."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from vlvm_jax import config as config_lib
from vlvm_jax import console, json_text, manifest, storage
from vlvm_jax.config import Config, StageConfig
from vlvm_jax.console import number_of, say
from vlvm_jax.data.batch import dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.batch.stream import Batches, Part
from vlvm_jax.data.record import Record
from vlvm_jax.errors import brief
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model, Params
from vlvm_jax.parallel import processes
from vlvm_jax.parallel.cpu_options import compiler_options
from vlvm_jax.parallel.topology import peak_flops
from vlvm_jax.pictures import Picture
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import partition as partition_lib
from vlvm_jax.training import plan as plan_lib
from vlvm_jax.training import profiling, report
from vlvm_jax.training.abstract import count_step
from vlvm_jax.training.checkpoint import StageCheckpoints
from vlvm_jax.training.flops import StepFlops
from vlvm_jax.training.loop import StageRun, run_stage
from vlvm_jax.training.metrics import MetricsWriter
from vlvm_jax.training.partition import Partition
from vlvm_jax.training.plan import PreparedStage, RunPlan
from vlvm_jax.training.profiling import Profiler
from vlvm_jax.training.step import StepFunctions, make_step
from vlvm_jax.training.throughput import Timeline, Watch
from vlvm_jax.training.validation import Entry, Validation, make_put
from vlvm_jax.training.workdir import check_shared, claim_workdir
from vlvm_jax.weights import integrity
from vlvm_jax.weights.initial import Initial, draw
from vlvm_jax.weights.sources import HF_FOLDER, result_step


class Evaluate(Protocol):
    """Answers a config's held-out questions: `evaluation.final.evaluate`."""

    def __call__(
        self, config: Config, params: Params, trained_on: Sequence[Record], mesh: Mesh, stop: StopSignal
    ) -> tuple[dict[str, Any], list[Picture]]: ...


def run(
    config: Config, workdir: epath.Path, stop: StopSignal, evaluate: Evaluate, profile: str | None = None
) -> dict[str, Any]:
    """Trains all stages and answers the held-out questions; returns the contents of `summary.json`.

    Args:
      evaluate: answers the questions, once every stage is saved.
      profile: steps to trace, `STAGE:FIRST-LAST`.

    Raises:
      InputError: the config, the data or the workdir is at fault.
      Interrupted: a signal came and the state is saved, or storage fails; the same call continues.
    """
    if "://" not in os.fspath(workdir):
        workdir = workdir.expanduser().resolve()  # Orbax takes absolute paths only
    console.console.quiet = not processes.primary()
    traced = profiling.parse(profile, [stage.name for stage in config.stages])
    plan = plan_lib.make(config, workdir, stop)
    processes.wait_for_all("checked")  # so that a fault that only one process finds claims no folder
    report.print_plan(plan)
    with storage.Logs(os.fspath(workdir)) as logs:
        return _run(plan, workdir, logs, stop, evaluate, traced)


def _run(
    plan: RunPlan,
    workdir: epath.Path,
    logs: storage.Logs,
    stop: StopSignal,
    evaluate: Evaluate,
    traced: profiling.Steps | None,
) -> dict[str, Any]:
    config, mesh, prepared = plan.config, plan.mesh, plan.stages
    profiler = Profiler(logs.folder, traced)
    claim_workdir(plan.asked, workdir)
    if processes.primary():
        plan.initial.copy_side_files(workdir / HF_FOLDER, config.data.tokenizer)
        integrity.seal(workdir, HF_FOLDER)
    report.write_run_card(plan, workdir)
    processes.wait_for_all("workdir")
    check_shared(workdir)
    logs.fetch("*.jsonl")
    config_json = config_lib.to_json(config)
    writer = MetricsWriter(
        logs.folder,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        name=config.name,
        config=config_json,
        active=processes.primary(),
    )
    timeline = Timeline(logs.folder, write=processes.primary())
    watch = Watch(logs, writer, timeline, profiler)
    results = []
    params: Params | None = None
    try:
        with profiler:
            for number, stage in enumerate(prepared):
                stop.check(f"between stages, before {stage.stage.name!r}")
                start = workdir / prepared[number - 1].stage.name if number else plan.initial
                result, params = train_stage(config, stage, workdir, start, params, mesh, watch, stop)
                results.append(result)
        summary = {"config": config.name, "stages": results, "eval": {}, "skipped": _skipped(results)}
        summary["cut_prompts"] = sum(result.get("cut_prompts", 0) for result in results)
        if params is None:
            params = untrained_params(config, plan.initial, mesh)
        trained_on = prepared[-1].records if prepared else ()
        summary["eval"], pictures = evaluate(config, params, trained_on, mesh, stop)
    finally:
        timeline.add("end")
        writer.close()
    summary["goodput"] = timeline.goodput()
    if processes.primary():
        report.write(workdir, summary, writer.losses(), pictures)
    return summary


def train_stage(
    config: Config,
    prepared: PreparedStage,
    workdir: epath.Path,
    start: Initial | epath.Path,
    params: Params | None,
    mesh: Mesh,
    watch: Watch,
    stop: StopSignal,
) -> tuple[dict[str, Any], Params]:
    """Trains one stage, or what is left of it; returns its entry of the summary and its whole parameters.

    Args:
      start: what the first stage starts from, or the folder of the stage before, whose final checkpoint it is.
      params: those parameters, if this process has them already.
    """
    stage, num_steps = prepared.stage, prepared.num_steps
    folder = workdir / stage.name
    abstract = whole_abstract(config, prepared.partition, stage, mesh)
    checkpoints = StageCheckpoints(folder / "checkpoints", config.checkpoint.keep)
    result_file = folder / "result.json"
    try:
        result = read_result(result_file)
        if result is not None and is_finished(result, num_steps) and checkpoints.has_whole(result_step(result)):
            say(f"{stage.name}: done before")
            return result, checkpoints.restore_params(abstract, result_step(result))
        if processes.primary() and (drawn := prepared.records.drawn()):
            storage.write_text(os.fspath(folder / "mix.json"), json.dumps({"seed": stage.seed, "drawn": drawn}))
        functions = make_step(
            config.model,
            stage,
            prepared.partition,
            mesh,
            num_steps,
            compiler_options(mesh, config.model.dtype),
        )
        place = f".{jax.process_index()}" if jax.process_index() else ""
        skip_log = SkipLog(
            prepared.records,
            config.data.max_bad_share,
            watch.logs.folder / f"skipped{place}.jsonl",
            stage.name,
            jax.process_count(),
            lambda: watch.logs.fetch("skipped*.jsonl"),
        )
        data = make_batches(config, prepared, skip_log, mesh)
        try:
            run = start_stage(
                config,
                prepared,
                functions,
                checkpoints,
                data,
                mesh,
                lambda: as_it_begins(config, stage, initial_params(config, start, abstract, params, mesh)),
            )
            validated = {entry["step"] for entry in run.validation.entries} if run.validation is not None else ()
            watch.metrics.drop_after(stage.name, int(run.state.step), validated)
            run_stage(run, mesh, watch, stop)
        finally:
            data.close()
        processes.wait_for_all(f"trained {stage.name}")  # for what the others skipped
        result = stage_result(config, prepared, run, watch.metrics, skip_log)
        if processes.primary():
            storage.write_text(os.fspath(result_file), json_text.readable(manifest.sealed(result), indent=2))
        if result_step(result) != int(run.state.step):
            return result, checkpoints.restore_params(abstract, result_step(result))
        return result, params_lib.join({**run.frozen, **run.state.params})
    finally:
        checkpoints.close()


def is_finished(result: Mapping[str, Any], num_steps: int) -> bool:
    """Whether a stage's result is that of so many steps, or of as many as validation asked for."""
    return result["steps"] == num_steps or result.get("ended_early", False)


def read_result(file: epath.Path) -> dict[str, Any] | None:
    """What a finished stage noted; None if it has not, or if the file is damaged: then it is made anew."""
    try:
        return manifest.unsealed(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        say(f"{file}: damaged ({brief(error)}); writing it anew")
        return None


def make_batches(config: Config, prepared: PreparedStage, skip_log: SkipLog, mesh: Mesh) -> Batches:
    """This process's share of the stage's batches."""
    stage = prepared.stage
    share, shares = processes.batch_share(mesh)
    rows = stage.batch_size // shares
    loading = dataset.plan_loading(prepared.records, prepared.spec, rows, stage.pack, config.data.workers)
    if config.data.workers == "auto":
        where = f"{number_of(loading.workers, 'worker process')} with" if loading.workers else "this process, on"
        say(f"{stage.name}: samples are loaded by {where} {number_of(loading.threads, 'thread')}")

    def make(part: Part):
        return dataset.make_dataset(
            prepared.records,
            prepared.spec,
            rows=rows,
            pack=stage.pack,
            skip_log=skip_log,
            seed=stage.seed,
            workers=loading,
            part=part,
        )

    return Batches(make, share, shares)


def whole_abstract(
    config: Config, partition: Partition, stage: StageConfig, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Whole parameters as this stage keeps them: fp32 where any part trains, `frozen_dtype` elsewhere."""
    model = Model(config.model, partition.splits)
    segmented = {
        path: jax.ShapeDtypeStruct(a.shape, jnp.float32 if path in partition.rates else jnp.dtype(stage.frozen_dtype))
        for path, a in model.abstract().items()
    }
    return model.on_mesh(jax.eval_shape(params_lib.join, segmented), mesh)


def start_stage(
    config: Config,
    prepared: PreparedStage,
    functions: StepFunctions,
    checkpoints: StageCheckpoints,
    data,
    mesh,
    initial,
) -> StageRun:
    """The state to train from: this stage's newest checkpoint, or `initial()` parameters."""
    stage, partition = prepared.stage, prepared.partition
    abstract = whole_abstract(config, partition, stage, mesh)
    abstract_params = {
        path: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=functions.state_shardings.params[path])
        for path, a in Model(config.model, partition.splits).abstract().items()
        if path in partition.rates
    }
    latest = checkpoints.newest_whole()
    restored = None
    if latest is not None:
        opt_state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(functions.init, abstract_params, jax.ShapeDtypeStruct((2,), jnp.uint32)).opt_state,
            functions.state_shardings.opt_state,
        )
        restored = checkpoints.restore(abstract, opt_state, data, mesh)
        say(f"{stage.name}: continuing from step {latest}")
    entries = restored.config.get("validation", ()) if restored else ()
    whole = restored.params if restored else initial()
    trainable, frozen = divide(whole, partition, functions, stage)
    if restored:
        state = dataclasses.replace(
            functions.init(trainable, restored.rng), step=restored.step, opt_state=restored.opt_state
        )
    else:
        key = jax.random.fold_in(jax.random.key(config.seed), stage.seed)
        state = functions.init(trainable, jax.random.key_data(key))
    return StageRun(
        stage=stage,
        num_steps=prepared.num_steps,
        functions=functions,
        state=state,
        frozen=frozen,
        data=data,
        load_first=data.load_next,
        checkpoints=checkpoints,
        save_every=stage.save_every or config.checkpoint.save_every,
        flops=model_flops(config, stage),
        config={"stage": stage.name, "steps": prepared.num_steps, "config": config_lib.to_json(config)},
        validation=start_validation(config, prepared, functions, mesh, entries),
    )


def start_validation(
    config: Config, prepared: PreparedStage, functions: StepFunctions, mesh: Mesh, entries: Sequence[Entry]
) -> Validation | None:
    """A stage's validation.

    Args:
      entries: of before a restart.
    """
    if prepared.questions is None:
        return None
    put = make_put(config, prepared.stage, prepared.partition, functions, prepared.questions, mesh, config.data.workers)
    return Validation(prepared.stage, prepared.num_steps, put, entries)


def model_flops(config: Config, stage: StageConfig) -> StepFlops | None:
    """Of one step; None on devices whose peak nobody publishes, where counting would tell nothing."""
    if peak_flops(jax.devices()[0].device_kind) is None:
        return None
    plain = config.model.model_copy(update={"vision_remat": "none", "decoder_remat": "none"})
    return count_step(config.model_copy(update={"model": plain}), stage)


def divide(whole: Params, partition: Partition, functions: StepFunctions, stage: StageConfig) -> tuple[Params, Params]:
    """Whole parameters to this stage's trainable masters and frozen rest, on their shardings."""
    shardings = (functions.state_shardings.params, dict(functions.frozen_shardings))

    def cut(whole: Params) -> tuple[Params, Params]:
        segmented = params_lib.split(whole, partition.splits)
        trainable = {p: v.astype(jnp.float32) for p, v in segmented.items() if p in partition.rates}
        frozen = {p: v.astype(stage.frozen_dtype) for p, v in segmented.items() if p not in partition.rates}
        return trainable, frozen

    return jax.jit(cut, out_shardings=shardings)(whole)


def initial_params(
    config: Config,
    start: Initial | epath.Path,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    params: Params | None,
    mesh: Mesh,
) -> Params:
    """Parameters a fresh stage starts from; the first one's are made, or read, in their shardings and dtypes."""
    if params is not None:
        return params
    if isinstance(start, Initial):
        return start.params(abstract, mesh, config.seed, console.Reading())
    checkpoints = StageCheckpoints(start / "checkpoints", config.checkpoint.keep)
    result = read_result(start / "result.json")
    try:
        return checkpoints.restore_params(abstract, None if result is None else result_step(result))
    finally:
        checkpoints.close()


def untrained_params(config: Config, initial: Initial, mesh: Mesh) -> Params:
    """Whole parameters of a run without stages, in the dtype of the computation."""
    model, dtype = Model(config.model), jnp.dtype(config.model.dtype)
    segmented = {path: jax.ShapeDtypeStruct(a.shape, dtype) for path, a in model.abstract().items()}
    abstract = model.on_mesh(jax.eval_shape(params_lib.join, segmented), mesh)
    return initial.params(abstract, mesh, config.seed, console.Reading())


def as_it_begins(config: Config, stage: StageConfig, params: Params) -> Params:
    """The parameters that a stage starts from, of those from before it."""
    return with_copied(stage, with_reset(config, stage, params))


def with_copied(stage: StageConfig, params: Params) -> Params:
    """The parameters with the stage's copies in their places, each in its own dtype and sharding."""
    begun = dict(params)
    for path, source in partition_lib.copies(stage, params).items():
        copy = jnp.copy(params[source].astype(params[path].dtype))
        begun[path] = jax.device_put(copy, params[path].sharding)
    return begun


def with_reset(config: Config, stage: StageConfig, params: Params) -> Params:
    """The parameters with those that the stage resets drawn anew, by the stage's seed."""
    fresh_ones = partition_lib.resets(stage, params)
    if not fresh_ones:
        return params
    seed = int(jax.random.randint(jax.random.fold_in(jax.random.key(config.seed), stage.seed + 1), (), 0, 2**31 - 1))
    wanted = {
        path: jax.ShapeDtypeStruct(params[path].shape, params[path].dtype, sharding=params[path].sharding)
        for path in fresh_ones
    }
    return {**params, **draw(config.model, wanted, seed)}


def stage_result(
    config: Config, prepared: PreparedStage, run: StageRun, writer: MetricsWriter, skip_log: SkipLog
) -> dict[str, Any]:
    losses = writer.losses().get(run.stage.name, [])
    steps = int(run.state.step)
    validated: dict[str, Any] = {}
    if run.validation is not None:
        validated = {"best_step": run.validation.best, "validation": run.validation.entries}
        validated["ended_early"] = steps < run.num_steps
    spec = prepared.spec
    tokens = {"image": spec.image_tokens, "video": spec.video_tokens[-1], "text": 0}
    kinds = prepared.records.kind_counts
    return {
        "name": run.stage.name,
        "steps": steps,
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "seconds": round(run.seconds, 2),
        "compilations": run.functions.train._cache_size(),
        "trainable_parameters": sum(v.size for v in run.state.params.values()),
        "frozen_parameters": sum(v.size for v in run.frozen.values()),
        "visual_tokens_per_sample": {kind: tokens[kind] for kind in sorted(tokens) if kinds[kind]},
        "checkpoint": str(run.checkpoints.directory / str(validated.get("best_step") or steps)),
        **validated,
        "skipped": skip_log.summary(),
        "cut_prompts": len(skip_log.cut_prompts),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _skipped(results: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for result in results:
        for cause, count in result["skipped"].items():
            total[cause] = total.get(cause, 0) + count
    return total
