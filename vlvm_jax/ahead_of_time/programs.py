"""Compiles a recipe's steps for TPUs that are not here, and says what they would need there.

The TPU compiler runs on any host. Memory, collectives and the out-of-memory message are its own; operations are
counted by `flops`; times are bounds from the chip's published figures, not measurements.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlvm_jax.ahead_of_time import hlo
from vlvm_jax.config import Config, DecoderConfig, StageConfig
from vlvm_jax.models import decoding
from vlvm_jax.models.decoder import CACHE_AXES, KVCache, init_cache
from vlvm_jax.models.params import Model
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.topology import Topology
from vlvm_jax.training import partition as partition_lib
from vlvm_jax.training.abstract import abstract_batch, abstract_step, count_step
from vlvm_jax.training.flops import StepFlops, count, forward_flops

INFERENCE = ("prefill", "decode")
NEW_TOKENS = 256  # that a cache has room for beside the prompt


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: a jitted function and the shapes it is called with.

    Attributes:
      trainable, frozen: numbers of parameters.
    """

    name: str
    batch_size: int
    function: Any
    arguments: tuple[Any, ...]
    trainable: int
    frozen: int
    flops: StepFlops


@dataclasses.dataclass(frozen=True)
class Report:
    """What one step of a program takes, per chip where not said otherwise; bytes and seconds.

    Attributes:
      arguments: parameters, optimizer state and batch; `donated` of them are overwritten in place. None, as all below
        it, when the program does not compile.
      temporaries: room that the compiler lays out for what the step needs beside them. More than it needs at any time:
        programs of which it exceeds the chip compile, until `peak` does.
      peak: the most that is alive at any time, arguments included.
      program: the code itself.
      results: what the step gives, donated arguments' room included.
      message: the compiler's own, when it ran out of memory.
      compute, hbm, interconnect: the least time each could take; the largest bounds the step.
      mfu_bound: model FLOPs over what the chips could do in that time.
      seconds: that compilation took.
    """

    name: str
    batch_size: int
    trainable: int
    frozen: int
    flops: StepFlops
    fits: bool
    arguments: int | None = None
    temporaries: int | None = None
    peak: int | None = None
    program: int | None = None
    donated: int | None = None
    results: int | None = None
    collectives: hlo.Collectives | None = None
    compute: float | None = None
    hbm: float | None = None
    interconnect: float | None = None
    mfu_bound: float | None = None
    message: str | None = None
    seconds: float = 0.0

    @property
    def needed(self) -> int | None:
        """Bytes of HBM while the step runs."""
        return None if self.peak is None else self.peak + (self.program or 0)


def program(config: Config, name: str, rows: int | None, mesh: Mesh) -> Program:
    """The stage, or the part of inference, of that name; with `rows` in a batch instead of what the config says."""
    if name in INFERENCE:
        return inference_program(config, name, rows or rules.batch_shards(mesh), mesh)
    stage = next(stage for stage in config.stages if stage.name == name)
    return stage_program(config, stage if rows is None else stage.model_copy(update={"batch_size": rows}), mesh)


def stage_program(config: Config, stage: StageConfig, mesh: Mesh) -> Program:
    """A stage's train step."""
    partition = partition_lib.resolve(config.model, stage)
    function, state, frozen = abstract_step(config.model, stage, partition, mesh)
    batch = abstract_batch(config, stage.batch_size, stage.frames, stage.length, mesh)
    return Program(
        name=stage.name,
        batch_size=stage.batch_size,
        function=function,
        arguments=(state, frozen, batch),
        trainable=sum(a.size for a in state.params.values()),
        frozen=sum(a.size for a in frozen.values()),
        flops=count_step(config, stage),
    )


def inference_program(config: Config, name: str, rows: int, mesh: Mesh) -> Program:
    """Reading a prompt as long as the last stage's rows, or one token after it; parameters in the model's dtype."""
    stage = config.stages[-1]
    model = Model(config.model)
    dtype = jnp.dtype(config.model.dtype)
    shapes = {path: jax.ShapeDtypeStruct(a.shape, dtype) for path, a in model.abstract().items()}
    params = model.on_mesh(shapes, mesh)
    batch = abstract_batch(config, rows, stage.frames, stage.length, mesh)
    slots = stage.length + NEW_TOKENS

    def prefill(params, batch):
        return decoding.prefill_step(model.bind(params), batch, slots)

    def step(params, token, positions, cache):
        return decoding.decode_step(model.bind(params), token, positions, cache)

    if name == "prefill":
        function, arguments = jax.jit(prefill), (params, batch)
        flops = forward_flops(config.model, batch)
    else:
        of_rows = rules.batch_sharding((rows, 1), mesh)
        token = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=of_rows)
        cache = abstract_cache(config.model.decoder, rows, slots, mesh, dtype)
        function, arguments = jax.jit(step, donate_argnums=3), (params, token, token, cache)
        flops = StepFlops(0.0, 0.0, count(step, *arguments), 0.0, 0.0)
    frozen = sum(a.size for a in params.values())
    return Program(name, rows, function, arguments, 0, frozen, flops)


def abstract_cache(config: DecoderConfig, rows: int, slots: int, mesh: Mesh, dtype) -> KVCache:
    """Shapes of a cache."""
    cache = jax.eval_shape(lambda: init_cache(config, rows, slots, dtype))
    arrays: dict[str, Any] = {}
    for name, axes in CACHE_AXES.items():
        a = getattr(cache, name)
        arrays[name] = jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rules.sharding(axes, a.shape, mesh))
    return KVCache(**arrays)


def compile_program(made: Program, mesh: Mesh, topology: Topology) -> Report:
    """Compiles for the mesh's devices and reads off what the compiler says."""
    start = time.monotonic()
    common: dict[str, Any] = {
        "name": made.name,
        "batch_size": made.batch_size,
        "trainable": made.trainable,
        "frozen": made.frozen,
        "flops": made.flops,
    }
    try:
        with jax.set_mesh(mesh):
            compiled = made.function.lower(*made.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "exceeds available HBM" not in str(error):
            raise
        return Report(**common, fits=False, message=_brief(str(error)), seconds=time.monotonic() - start)
    memory: Any = compiled.memory_analysis()
    collectives = hlo.collectives(compiled.as_text())
    bounds: dict[str, Any] = roofline(made.flops, memory, collectives, topology)
    report = Report(
        **common,
        fits=True,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        program=memory.generated_code_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        results=memory.output_size_in_bytes,
        collectives=collectives,
        **bounds,
        seconds=time.monotonic() - start,
    )
    return dataclasses.replace(report, fits=(report.needed or 0) <= topology.chip.hbm)


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


def search(
    config: Config,
    name: str,
    mesh: Mesh,
    topology: Topology,
    say: Callable[[str], None],
    *,
    rows: int | None = None,
    known: int | None = None,
    by_line: bool = False,
) -> Report | None:
    """The report of the largest batch that fits, to an eighth.

    Args:
      rows: of the batch to begin with, by default the config's.
      known: what that batch needs, if it was compiled before; it is not compiled again then, and None comes back also
        where it is the largest.
      by_line: see `largest_size`.
    """
    sizes = {stage.name: (stage.batch_size, stage.accumulate) for stage in config.stages}
    own, accumulate = sizes.get(name, (config.stages[-1].batch_size, 1))
    unit = rules.batch_shards(mesh) * accumulate
    first = max(1, (rows or own) // unit)
    reports: dict[int, Report] = {}

    def needs(size: int) -> int | None:
        if size == first and known is not None:
            return known
        report = reports[size] = compile_program(program(config, name, unit * size, mesh), mesh, topology)
        say(f"{name}: batch {unit * size}: {'fits' if report.fits else 'does not fit'}")
        return report.needed

    return reports.get(largest_size(needs, int(topology.chip.hbm), first, by_line=by_line))


def largest_size(needs: Callable[[int], int | None], limit: int, first: int, *, by_line: bool = False) -> int:
    """The largest size, to an eighth, that needs no more than the limit; 0 if there is none.

    Needs grow about evenly with the size, so the line through the two best known ones says where to look next. Where
    that does not come to an end in a few trials, halving the range does.

    Args:
      needs: of a size; None where that cannot even be said, which is too much. Asked seldom, as it takes minutes.
      first: where to begin.
      by_line: also be content where an eighth more would be too much by the line through two sizes that fit. Close to
        its limit the compiler may find room that the line does not know of; trials there take the longest.
    """
    known: dict[int, int] = {}
    low, high, size, trials = 0, None, first, 0
    while True:
        need = needs(size)
        trials += 1
        if need is not None:
            known[size] = need
        if need is not None and need <= limit:
            low = size
        else:
            high = size
        if high is not None and high - low <= max(1, low // 8):
            return low
        fitting = sorted(size for size in known if known[size] <= limit)
        more = low + max(1, low // 8)
        if by_line and len(fitting) >= 2 and _where(known, fitting[-2], fitting[-1], limit) < more:
            return low
        size = max(2 * low, low * limit // max(1, known[low])) if high is None else math.isqrt(max(1, low) * high)
        if len(known) >= 2 and trials < 5:
            a, b = sorted(sorted(known, key=lambda size: abs(known[size] - limit))[:2])
            if (reached := _where(known, a, b, limit)) < math.inf:
                size = max(int(reached), more)
        if high is not None:
            size = min(max(size, low + 1), high - 1)


def _where(known: Mapping[int, int], a: int, b: int, limit: int) -> float:
    """The size at which the line through two known ones reaches the limit, rounded down."""
    rise = known[b] - known[a]
    return a + (limit - known[a]) * (b - a) // rise if rise > 0 else math.inf


def _brief(message: str) -> str:
    match = re.search(r"(Used|It should|Ran out)[^\n]*", message)
    return " ".join((match[0] if match else message).split())[:300]
