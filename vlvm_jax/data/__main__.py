"""Look at data before training on it, and make shards of it.

usage: python -m vlvm_jax.data check FILE...          what is in it, and what training would drop and why
       python -m vlvm_jax.data prepare SOURCE...      any source to ArrayRecord shards with the media in them
       python -m vlvm_jax.data verify DIR             whether prepared shards are as they were written

`python -m vlvm_jax.data COMMAND --help` tells about one. What sources there are: docs/your_data.md.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run the same command again), 1 a fault of ours.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from vlvm_jax import cli
from vlvm_jax.errors import InputError

CHECK = """Look at data before training on it: every record is read, its media are opened and frames of them decoded.

usage: python -m vlvm_jax.data check FILE... [flags]
       python -m vlvm_jax.data check --config=configs/ftfv.py[:preset[,key=value...]] [FILE...] [flags]

  FILE              a source (docs/your_data.md); with --config and none, the stage's own data.
  --config          a recipe: samples are made as its stage would, with its tokenizer, template, frames and tokens per
                    frame, so that lengths are told and what the stage would drop.
  --stage           of the recipe (default: its last one).
  --media_root      folder of the media (default: the annotation file's own).
  --format          of the sources (default: auto).
  --limit           check this many records only, spread evenly.
  --json            write everything found to this file, every bad record among it.
  --picture         write a PNG: durations, lengths with the stage's limit, sizes, causes.
  --workers         processes (default: one a core); 0 works in this one.
  --max_bad_share   share of bad records that is still usable (default: the recipe's, or 0.01).

Exit codes: 0 usable, 2 not (one line says why), 75 interrupted, 1 a fault of ours.
"""

PREPARE = """Make ArrayRecord shards of conversations with their media in them, from any source.

usage: python -m vlvm_jax.data prepare SOURCE... --output=DIR|gs://BUCKET/DIR [flags] [-- flags of the Beam runner]

  SOURCE            as docs/your_data.md lists them; records of several follow one another.
  --output          a new folder, or one that an interrupted run of the same command left: then only what is missing is
                    made.
  --media_root      folder of the media (default: the annotation file's own).
  --name            shards are called NAME-00000-of-00016.array_record (default: the output folder's name).
  --shards          how many; or
  --shard_mb        MiB that one is to have, about (default 256).
  --size            re-encode media to this shorter side in pixels; nothing is enlarged.
  --fps             re-encode clips to at most this many frames per second.
  --format          of the sources (default: auto).
  --workers         processes (default: one a core); 0 works in this one. The bytes do not depend on it.
  --max_bad_share   share of the records that may be unusable (default 0.01). They are left out, counted by cause and
                    listed in dropped.jsonl.
  --runner          run as an Apache Beam pipeline (extra `beam`): DirectRunner, DataflowRunner ... Its own flags follow
                    after `--`, for instance `-- --project=p --region=r --temp_location=gs://b/tmp`.

Without --size and --fps the media's bytes stay as they are. Re-encoded clips are H.264 with a key frame every 16
frames, so that reading single frames is cheap, and have no audio.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run it again), 1 a fault of ours.
"""

VERIFY = """Read prepared shards again and compare them with the checksums beside them.

usage: python -m vlvm_jax.data verify DIR|gs://BUCKET/DIR

Delete the files that it names and run the same `prepare` again: it makes them anew.

Exit codes: 0 whole, 2 damaged or unfinished (one line says what), 1 a fault of ours.
"""


def run(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv if argv is None else argv)
    command = argv[1] if len(argv) > 1 else ""
    if command not in _COMMANDS:
        return cli.run(lambda _: _unknown(command), __doc__ or "", argv[:2], positional=True)
    usage, define, main = _COMMANDS[command]
    define()
    return cli.run(main, usage, [f"{argv[0]} {command}", *argv[2:]], positional=True)


def _unknown(command: str) -> None:
    raise InputError(f"no command {command!r}; there are {', '.join(_COMMANDS)}; see --help")


def _define_shared() -> None:
    flags.DEFINE_string("media_root", None, "Folder of the media.")
    flags.DEFINE_string("format", "auto", "Of the sources.")
    flags.DEFINE_integer("workers", None, "Processes.", lower_bound=0)


def _define_check() -> None:
    from ml_collections import config_flags

    _define_shared()
    config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
    flags.DEFINE_string("stage", None, "Of the recipe.")
    flags.DEFINE_integer("limit", None, "Records to check.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write.")
    flags.DEFINE_string("picture", None, "File to write.")
    flags.DEFINE_float("max_bad_share", None, "Share of bad records.", lower_bound=0, upper_bound=1)


def _define_prepare() -> None:
    _define_shared()
    flags.DEFINE_string("output", None, "Folder.")
    flags.DEFINE_string("name", None, "Of the shards.")
    flags.DEFINE_integer("shards", None, "How many.", lower_bound=1)
    flags.DEFINE_float("shard_mb", 256.0, "MiB of a shard.", lower_bound=0.01)
    flags.DEFINE_integer("size", None, "Shorter side in pixels.", lower_bound=2)
    flags.DEFINE_float("fps", None, "Frames per second.", lower_bound=0.01)
    flags.DEFINE_float("max_bad_share", 0.01, "Share of bad records.", lower_bound=0, upper_bound=1)
    flags.DEFINE_string("runner", None, "Of Apache Beam.")


def _workers() -> int:
    from vlvm_jax.data.tuning import usable_cores

    given = flags.FLAGS.workers
    return usable_cores() if given is None else given


def _check(files: list[str]) -> None:
    f = flags.FLAGS
    if not files and f.config is None:
        raise InputError("expected `check FILE...`, or --config to check a recipe's own data; see --help")
    import json

    from vlvm_jax.data.sources import mixture
    from vlvm_jax.data.sources.records import evenly
    from vlvm_jax.data.tools import check, check_report, prepare
    from vlvm_jax.data.workers import stoppable
    from vlvm_jax.training.progress import Meter, console, say

    stage, spec, share = _stage() if f.config is not None else (None, None, 0.01)
    share = share if f.max_bad_share is None else f.max_bad_share
    if files or stage is None:
        found = prepare.open_records(files, f.media_root, f.format)
    else:
        found = mixture.read_mixture(stage.data, stage.seed)
    indices = evenly(len(found), f.limit)
    with stoppable("nothing was written"), Meter("check", len(indices)) as meter:
        findings = check.examine(
            check.Checker(found, spec), indices, _workers(), lambda done: meter.update(done, "records")
        )
    summary = check.summarise(findings, len(found), spec)
    check_report.show(summary, console)
    if f.json:
        _written(f.json).write_text(json.dumps(summary, indent=2))
    if f.picture:
        check_report.draw(findings, summary, _written(f.picture))
    bad = summary["checked"] - summary["usable"]
    if bad > share * summary["checked"]:
        causes = ", ".join(f"{count} {cause}" for cause, count in summary["causes"].items())
        raise InputError(
            f"{bad} of {summary['checked']} records cannot be used ({causes}), more than "
            f"{'--' if f.config is None or f.max_bad_share is not None else 'config.data.'}max_bad_share = {share:g} "
            "allows"
        )
    say("usable")


def _stage() -> tuple[Any, Any, float]:
    """The stage that --config and --stage name, how it makes samples, and the share that may be bad."""
    from vlvm_jax.config import Config, build, require_stages
    from vlvm_jax.training import prepare
    from vlvm_jax.training.interrupt import StopSignal
    from vlvm_jax.weights.initial import Initial

    config = build(Config, flags.FLAGS.config)
    require_stages(config)
    wanted = flags.FLAGS.stage or config.stages[-1].name
    names = [stage.name for stage in config.stages]
    if wanted not in names:
        raise InputError(f"--stage: no stage {wanted!r} in {config.name}; there are {', '.join(names)}")
    with StopSignal() as stop:
        config = prepare.with_embedded_data(config, stop)
    config = prepare.with_checkpoint_files(config, Initial(config.model))
    stage = config.stages[names.index(wanted)]
    return stage, prepare.sample_spec(config, stage), config.data.max_bad_share


def _written(name: str) -> Path:
    path = Path(name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _prepare(arguments: list[str]) -> None:
    f = flags.FLAGS
    sources = [argument for argument in arguments if not argument.startswith("--")]
    runner_flags = [argument for argument in arguments if argument.startswith("--")]
    if not sources or not f.output:
        raise InputError("expected `prepare SOURCE... --output=DIR`; see --help")
    if runner_flags and not f.runner:
        raise InputError(f"{runner_flags[0]} is a flag of a Beam runner; name one with --runner")
    from vlvm_jax.data.tools import prepare, prepare_beam
    from vlvm_jax.data.tools.reencode import Target
    from vlvm_jax.data.workers import stoppable
    from vlvm_jax.training.progress import Meter

    job = prepare.Job(
        sources=tuple(sources),
        output=f.output.rstrip("/"),
        name=f.name or f.output.rstrip("/").rpartition("/")[2],
        media_root=f.media_root,
        format=f.format,
        target=Target(f.size, f.fps),
        shards=f.shards,
        shard_mb=f.shard_mb,
    )
    with stoppable(f"finished shards stay in {job.output}"):
        plan = prepare.make_plan(job)
        if f.runner:
            prepare_beam.run_beam(plan, f.runner, runner_flags)
        else:
            with Meter("prepare", plan.records) as meter:
                prepare.run_local(plan, _workers(), f.max_bad_share, meter.update)
        report = prepare.finish(plan, f.max_bad_share)
    _tell(report, job.output)


def _tell(report: Any, output: str) -> None:
    from rich.table import Table

    from vlvm_jax.data.tools.prepare import DROPPED
    from vlvm_jax.training.progress import console

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
    console.print(table)


def _verify(arguments: list[str]) -> None:
    from vlvm_jax.data.sources import shards
    from vlvm_jax.data.tools import prepare
    from vlvm_jax.data.workers import stoppable
    from vlvm_jax.training.progress import Meter, say

    if len(arguments) != 1:
        raise InputError("expected `verify DIR`; see --help")
    folder = arguments[0].rstrip("/")
    count = len(shards.read_manifest(folder).shards)
    with stoppable("nothing was changed"), Meter("verify", count) as meter:
        faults = list(prepare.damaged(folder, lambda done: meter.update(done, "shards")))
    for name, what in faults:
        say(f"{name}: {what}")
    if faults:
        raise InputError(
            f"{folder}: {len(faults)} files damaged, the first {faults[0][0]}; delete them and run `prepare` again"
        )
    say(f"{count} shards are whole")


_COMMANDS: dict[str, tuple[str, Callable[[], None], Callable[[list[str]], None]]] = {
    "check": (CHECK, _define_check, _check),
    "prepare": (PREPARE, _define_prepare, _prepare),
    "verify": (VERIFY, lambda: None, _verify),
}


if __name__ == "__main__":
    sys.exit(run())
