"""`prepare` as an Apache Beam pipeline: an element a shard, made by the same function as anywhere else.

Every worker process opens the sources once. A shard that is there is left alone, so a pipeline that is tried again, or
run again, makes only what is missing.
"""

import contextlib
import functools
import io
from collections.abc import Sequence

from vlvm_jax.data.tools.prepare import Plan, write_shard
from vlvm_jax.errors import InputError, brief


def run_beam(plan: Plan, runner: str, flags: Sequence[str]) -> None:
    """Makes the shards that are missing; runs to the end.

    Args:
      runner: as Beam names it, for instance `DataflowRunner`.
      flags: of the runner, for instance `--project=...`.

    Raises:
      InputError: Beam is not installed, or refuses the runner or its flags.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"--runner needs Apache Beam: pip install 'vlvm_jax[beam]' ({error})") from None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions([f"--runner={runner}", *flags])
            options.get_all_options()  # now: Beam would parse most flags only as the pipeline runs
            made = beam.Pipeline(options=options)
    except (ValueError, SystemExit) as error:  # SystemExit: of argparse, which says why after its usage
        why = " ".join(said.getvalue().rpartition("error: ")[2].split()) or brief(error)
        raise InputError(f"--runner={runner}: Beam refuses it or its flags ({why})") from None
    with made as pipeline:
        indices = pipeline | "shards" >> beam.Create(range(plan.shards)) | "spread" >> beam.Reshuffle()
        _ = indices | "make" >> beam.Map(functools.partial(_make, plan))


def _make(plan: Plan, index: int) -> None:
    from apache_beam.metrics import Metrics  # pyright: ignore[reportMissingImports]

    info = write_shard(plan, index, Metrics.counter("prepare", "records done").inc)
    Metrics.counter("prepare", "records kept").inc(info.records)
    Metrics.counter("prepare", "records dropped").inc(sum(info.dropped.values()))
