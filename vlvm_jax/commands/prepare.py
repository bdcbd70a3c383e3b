"""Make ArrayRecord shards of conversations, with their media in them, from any source.

usage: python -m vlvm_jax.data prepare SOURCE... --output=DIR|gs://BUCKET/DIR [flags] [-- flags of the Beam runner]

  SOURCE   A source (docs/your_data.md). The records of several follow one another.

Without --size and --fps the bytes of the media stay as they are. Re-encoded clips are H.264 without audio, with a key
frame every 16 frames, so that reading single frames is cheap.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run it again), 1 an internal error.
"""

from typing import Any

from absl import flags

from vlvm_jax import storage
from vlvm_jax.commands import _shared
from vlvm_jax.errors import InputError

_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "A new folder, or one that an interrupted run of the same command left, where only what is missing is made.",
)
_MEDIA_ROOT = _shared.define_media_root()
_NAME = flags.DEFINE_string(
    "name", None, "Shards are called NAME-00000-of-00016.array_record (default: the name of the output folder)."
)
_SHARDS = flags.DEFINE_integer("shards", None, "Number of shards (default: as --shard_mb gives).", lower_bound=1)
_SHARD_MB = flags.DEFINE_float("shard_mb", 256.0, "Approximate size of a shard in MiB.", lower_bound=0.01)
_SIZE = flags.DEFINE_integer(
    "size", None, "Re-encode media so that the shorter side has this many pixels; nothing is enlarged.", lower_bound=2
)
_FPS = flags.DEFINE_float(
    "fps", None, "Re-encode clips, keeping the frames that are on screen every 1/fps seconds.", lower_bound=0.01
)
_FORMAT = _shared.define_format()
_WORKERS = _shared.define_workers("The bytes do not depend on it.")
_MAX_BAD_SHARE = flags.DEFINE_float(
    "max_bad_share",
    0.01,
    "Fraction of the records that may be unusable. They are left out, counted by cause and listed in dropped.jsonl.",
    lower_bound=0,
    upper_bound=1,
)
_RUNNER = flags.DEFINE_string(
    "runner",
    None,
    "Run as an Apache Beam pipeline (extra `beam`) on this runner: DirectRunner, DataflowRunner ... Its own flags "
    "follow after `--`, for example `-- --project=p --region=r --temp_location=gs://b/tmp`.",
)


def main(arguments: list[str]) -> None:
    sources = [argument for argument in arguments if not argument.startswith("--")]
    runner_flags = [argument for argument in arguments if argument.startswith("--")]
    if not sources or not _OUTPUT.value:
        raise InputError("expected `prepare SOURCE... --output=DIR`; see --help")
    if runner_flags and not _RUNNER.value:
        raise InputError(f"{runner_flags[0]} is a flag of a Beam runner; name one with --runner")
    storage.check_output(_OUTPUT.value, "--output")
    _shared.check_name(_NAME.value)
    from vlvm_jax.console import Meter, say
    from vlvm_jax.data.tools import prepare, prepare_beam
    from vlvm_jax.data.tools.reencode import Target
    from vlvm_jax.workers import stoppable

    output = _OUTPUT.value.rstrip("/")
    job = prepare.Job(
        sources=tuple(sources),
        output=output,
        name=_NAME.value or output.rpartition("/")[2],
        media_root=_MEDIA_ROOT.value,
        format=_FORMAT.value,
        target=Target(_SIZE.value, _FPS.value),
        shards=_SHARDS.value,
        shard_mb=_SHARD_MB.value,
    )
    with stoppable(f"finished shards stay in {job.output}"):
        plan = prepare.make_plan(job)
        for note in plan.notes:
            say(note)
        if _RUNNER.value:
            prepare_beam.run_beam(plan, _RUNNER.value, runner_flags)
        else:
            workers = _shared.number_of_workers(_WORKERS.value)
            with Meter("prepare", plan.records) as meter:
                prepare.run_local(plan, workers, _MAX_BAD_SHARE.value, meter.update)
        report = prepare.finish(plan, _MAX_BAD_SHARE.value)
    _show(report, job.output)


def _show(report: Any, output: str) -> None:
    from rich.table import Table

    from vlvm_jax.console import show_table
    from vlvm_jax.data.tools.prepare import DROPPED

    table = Table(title=f"{report.manifest.name}: {output}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("records", f"{report.manifest.records:,}")
    for kind, count in sorted(report.media.items()):
        table.add_row(f"{kind}s", f"{count:,}")
    table.add_row("shards", f"{len(report.manifest.shards):,}, {report.bytes / 2**20:,.1f} MiB")
    for cause, count in sorted(report.dropped.items()):
        table.add_row(f"dropped: {cause}", f"{count:,} (in {DROPPED})")
    table.add_row("sha256", report.manifest.sha256)
    show_table(table)
