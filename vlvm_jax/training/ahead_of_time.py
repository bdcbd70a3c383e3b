"""Compiles a recipe's steps for TPUs that are not here, and says what they would need there.

The TPU compiler runs on any host. Memory, collectives and the out-of-memory message are its own; operations are
counted by `flops`; times are bounds from the chip's published figures, not measurements.
"""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlvm_jax.config import Config, MeshConfig, StageConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.params import Model
from vlvm_jax.models.video_llm import Batch
from vlvm_jax.parallel import hlo, rules
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.parallel.topology import Topology
from vlvm_jax.training import partition as partition_lib
from vlvm_jax.training.flops import StepFlops, step_flops
from vlvm_jax.training.step import make_step

_STEPS = 1000  # of the schedule; no part of the program depends on it but a few constants


@dataclasses.dataclass(frozen=True)
class StageReport:
    """What one stage's step takes, per chip where not said otherwise; bytes and seconds.

    Attributes:
      arguments: parameters, optimizer state and batch; `donated` of them are overwritten in place.
      temporaries: what the step needs beside them. None, as all below it, when the program does not fit.
      message: the compiler's own, when it does not fit.
      compute, hbm, interconnect: the least time each could take; the largest bounds the step.
      mfu_bound: model FLOPs over what the chips could do in that time.
    """

    name: str
    batch_size: int
    trainable: int
    frozen: int
    flops: StepFlops
    fits: bool
    arguments: int | None = None
    temporaries: int | None = None
    donated: int | None = None
    state: int | None = None
    collectives: hlo.Collectives | None = None
    compute: float | None = None
    hbm: float | None = None
    interconnect: float | None = None
    mfu_bound: float | None = None
    message: str | None = None
    seconds: float = 0.0


def compile_stage(config: Config, stage: StageConfig, mesh: Mesh, topology: Topology) -> StageReport:
    """Lowers and compiles a stage's step for the mesh's devices."""
    start = time.monotonic()
    partition = partition_lib.resolve(config.model, stage)
    functions = make_step(config.model, stage, partition, mesh, _STEPS)
    abstract = Model(config.model, partition.splits).abstract()
    trainable = {path: a for path, a in abstract.items() if path in partition.rates}
    frozen = {
        path: jax.ShapeDtypeStruct(a.shape, jnp.dtype(stage.frozen_dtype))
        for path, a in abstract.items()
        if path not in partition.rates
    }
    state = jax.eval_shape(functions.init, trainable, jax.ShapeDtypeStruct((2,), jnp.uint32))
    batch = abstract_batch(config, stage)
    report: dict[str, Any] = {
        "name": stage.name,
        "batch_size": stage.batch_size,
        "trainable": sum(a.size for a in trainable.values()),
        "frozen": sum(a.size for a in frozen.values()),
        "flops": count_step(config, stage, batch),
    }
    try:
        with jax.set_mesh(mesh):
            compiled = functions.train.lower(state, frozen, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "exceeds available HBM" not in str(error):
            raise
        return StageReport(**report, fits=False, message=_brief(str(error)), seconds=time.monotonic() - start)
    memory: Any = compiled.memory_analysis()
    collectives = hlo.collectives(compiled.as_text())
    bounds: dict[str, Any] = roofline(report["flops"], memory, collectives, topology)
    return StageReport(
        **report,
        fits=memory.argument_size_in_bytes + memory.temp_size_in_bytes <= topology.chip.hbm,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        state=memory.output_size_in_bytes,
        collectives=collectives,
        **bounds,
        seconds=time.monotonic() - start,
    )


def abstract_batch(config: Config, stage: StageConfig) -> Batch:
    """Shapes of a stage's batch."""
    rows, frames, length, size = stage.batch_size, stage.frames, stage.length, config.model.vision.image_size

    def shape(dtype, *dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype)

    return Batch(
        frames=shape(jnp.uint8, rows, frames, size, size, 3),
        media=shape(jnp.int32, rows, frames),
        is_video=shape(jnp.bool_, rows, frames),
        token_ids=shape(jnp.int32, rows, length),
        media_mask=shape(jnp.bool_, rows, length),
        positions=shape(jnp.int32, rows, length),
        segment_ids=shape(jnp.int32, rows, length),
        loss_mask=shape(jnp.bool_, rows, length),
    )


def count_step(config: Config, stage: StageConfig, batch: Batch) -> StepFlops:
    """The step's operations; they depend on no device."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    partition = partition_lib.resolve(config.model, stage)

    def make_train(model):
        functions = make_step(model, stage, partition, one, _STEPS)
        abstract = Model(model, partition.splits).abstract()
        trainable = {path: a for path, a in abstract.items() if path in partition.rates}
        frozen = {path: a for path, a in abstract.items() if path not in partition.rates}
        state = jax.eval_shape(functions.init, trainable, jax.ShapeDtypeStruct((2,), jnp.uint32))
        return functions.train, state, frozen

    return step_flops(config.model, stage, make_train, batch)


def roofline(flops: StepFlops, memory: Any, collectives: hlo.Collectives, topology: Topology) -> dict[str, float]:
    """Least times of a step by the chip's peak figures.

    HBM: arguments read, results written, temporaries written and read once. Interconnect: all links busy both ways;
    an all-reduce moves its bytes twice, of an all-to-all a quarter crosses each link.
    """
    chip = topology.chip
    compute = flops.hardware / topology.chips / chip.flops
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes + 2 * memory.temp_size_in_bytes
    hbm = moved / chip.hbm_bandwidth
    weights = {"all-reduce": 2.0, "all-to-all": 0.25}
    sent = sum(size * weights.get(kind, 1.0) for kind, size in collectives.bytes.items())
    interconnect = sent / (2 * chip.dimensions * chip.link_bandwidth)
    bound = max(compute, hbm, interconnect)
    mfu = flops.model / topology.chips / chip.flops / bound if bound else 0.0
    return {"compute": compute, "hbm": hbm, "interconnect": interconnect, "mfu_bound": mfu}


def search(config: Config, stage: StageConfig, mesh: Mesh, topology: Topology, say) -> StageReport | None:
    """The report of the largest batch that fits: powers of two times the mesh's batch shards, then halves between."""
    unit = rules.batch_shards(mesh) * stage.accumulate
    best, low, high, size = None, 0, None, 1
    while high is None or high - low > max(1, low // 8):
        report = compile_stage(config, stage.model_copy(update={"batch_size": unit * size}), mesh, topology)
        say(f"{stage.name}: batch {unit * size}: {'fits' if report.fits else 'does not fit'}")
        if report.fits:
            best, low = report, size
        else:
            high = size
        size = low * 2 if high is None else (low + high) // 2
        if size in (0, low):
            break
    return best


def check_mesh(config: Config, mesh: Mesh) -> None:
    """Raises `InputError` with the arithmetic when a stage's rows do not divide over the mesh."""
    shards = rules.batch_shards(mesh)
    for stage in config.stages:
        if (stage.batch_size // stage.accumulate) % shards:
            raise InputError(
                f"config.stages.{stage.name}.batch_size: {stage.batch_size} / accumulate {stage.accumulate} = "
                f"{stage.batch_size // stage.accumulate} rows do not divide over data x fsdp = {shards}"
            )


def _brief(message: str) -> str:
    found = re.search(r"(Used|It should|Ran out)[^\n]*", message)
    return " ".join((found[0] if found else message).split())[:300]
