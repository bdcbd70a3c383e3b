"""Look at data before training on it, and make shards of it.

usage: python -m vlvm_jax.data check FILE...          what is in it, and what training would drop and why
       python -m vlvm_jax.data prepare SOURCE...      any source to ArrayRecord shards with the media in them
       python -m vlvm_jax.data verify DIR             whether prepared shards are as they were written
       python -m vlvm_jax.data synthesize --source=F  long texts to samples of page images (T2Vid)
       python -m vlvm_jax.data diversity --data=F     a picture of how the instructions of sources spread

`python -m vlvm_jax.data COMMAND --help` tells about one. What sources there are: docs/your_data.md.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run the same command again), 1 a fault of ours.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from vlvm_jax import cli, json_text, storage
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
  --picture         write a PNG: durations, lengths with the stage's limit, sizes, causes; with --config also a few
                    samples: the frames as the model gets them, the prompt, and the learned tokens highlighted.
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
  --fps             re-encode clips, keeping the frames on screen every 1/fps seconds.
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


SYNTHESIZE = """Make samples of page images from long texts with a question and its answer (T2Vid).

usage: python -m vlvm_jax.data synthesize --source=FILE [--source=FILE ...] --out=DIR|gs://BUCKET/DIR [flags]

  --source          a JSON list or JSONL of {context, question, answer}, or LongAlpaca, LongQLoRA, BookSum or Natural
                    Questions as they are published.
  --layout          triplets, long_alpaca, long_qlora, booksum, natural_questions; default auto, by the first record.
  --out             a new folder, or one that an interrupted run of the same command left: then only what is missing is
                    made.
  --format          llava (default): data.json and a folder of PNGs a sample; array_record: shards with the pages in
                    them; triplets: triplets.jsonl of the texts that passed the filters, whose pages training draws
                    itself (format text_pages of a mixture's entry).
  --shown_as        images (default) before the question; video: the frames of a clip; text: no pages, the text itself.
  --preset          filters of a base model as released: minicpm, sparrow (Sparrow's MiniCPM) or idefics3; default none.
  --tokenizer       of the base model, a directory; needed where tokens are limited.
  --max_images, --tokens_per_image, --max_total_tokens, --max_question_words   instead of the preset's.
  --limit           the first texts only.
  --per_part        texts made at a time; a shard's with array_record (default 128).
  --name            shards are called NAME-00000-of-00016.array_record (default: pages).
  --workers         processes (default: one a core); 0 works in this one. The samples do not depend on it.

Pages (docs/t2vid.md): --chunk_size=115 --chunk_mode=fixed|sentence|n_parts --parts=128 --page_size=448 --font=FILE
--chunk_tokenizer=nltk_no_punkt|nltk|whitespace --font_size=20 --margin=20 --vertical_align=center|top
--line_advance=line_bbox|font_metrics --overflow=clip|shrink|new_page --layout_engine=raqm|basic
--max_missing_glyphs=0.01. Texts: --rewrite_long_answer=true|false --min_words=N.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run it again), 1 a fault of ours.
"""

DIVERSITY = """A picture of how the instructions of sources spread: one point a sample, one colour a source.

usage: python -m vlvm_jax.data diversity --data=SOURCE --data=SOURCE ... --out=FILE.png [flags]

  --data            a source (docs/your_data.md); of each sample the first question counts.
  --out             the picture; the points go into a CSV file beside it.
  --samples         of each source at most, drawn by the seed (default 5000).
  --seed            of the draw and the projection (default 0).
  --embed           sentence (a sentence-transformers model), tfidf, or auto (default): the first that is installed.
  --model           of sentence-transformers (default all-mpnet-base-v2).
  --project         tsne (default; scikit-learn), or umap (umap-learn).
  --media_root, --format   of the sources.

Needs the extra `diversity`. Exit codes: 0 done, 2 bad input (one line says what), 1 a fault of ours.
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
    if not command:
        raise InputError(f"name a command: {', '.join(_COMMANDS)}; see --help")
    raise InputError(f"no command {command!r}; there are {', '.join(_COMMANDS)}; see --help")


def _define_shared() -> None:
    flags.DEFINE_string("media_root", None, "Folder of the media.")
    flags.DEFINE_string("format", "auto", "Of the sources.")
    flags.DEFINE_integer("workers", None, "Processes.", lower_bound=0, upper_bound=1024)


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
    from vlvm_jax.data.batch.tuning import usable_cores

    given = flags.FLAGS.workers
    return usable_cores() if given is None else given


def _check(files: list[str]) -> None:
    f = flags.FLAGS
    if not files and f.config is None:
        raise InputError("expected `check FILE...`, or --config to check a recipe's own data; see --help")

    from vlvm_jax.console import Meter, Waiting, console, say

    for flag, file in (("--json", f.json), ("--picture", f.picture)):
        if file is not None:
            storage.check_output(file, flag, folder=False)
    with Waiting("starting"):
        from vlvm_jax.data.record import evenly
        from vlvm_jax.data.sources import mixture
        from vlvm_jax.data.tools import check, check_report, check_samples, prepare
        from vlvm_jax.workers import stoppable

    stage, spec, share = _stage() if f.config is not None else (None, None, 0.01)
    share = share if f.max_bad_share is None else f.max_bad_share
    with Waiting("reading the annotations"):
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
    for note in found.notes:
        say(note)
    if f.json:
        _written(f.json).write_text(json_text.readable(summary, indent=2), encoding="utf-8")
    if f.picture:
        samples, note = None, ""
        if spec is None:
            note = "--picture: give --config as well to see frames, prompts and learned tokens as a model gets them"
        with Waiting(f"drawing {f.picture}"):
            if spec is not None and (shown := check_samples.show_samples(found, spec, check_samples.choose(findings))):
                samples, note = check_samples.draw(shown)
            check_report.draw(findings, summary, _written(f.picture), samples)
        if note:
            say(note)
        say(f"written: {f.picture}")
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
    from vlvm_jax.console import Waiting

    with Waiting("reading the recipe"):
        from vlvm_jax import samples as samples_lib
        from vlvm_jax.config import command_line, require_stages
        from vlvm_jax.stop import StopSignal
        from vlvm_jax.weights.initial import Initial

        config = command_line.read()
    require_stages(config)
    wanted = flags.FLAGS.stage or config.stages[-1].name
    names = [stage.name for stage in config.stages]
    if wanted not in names:
        raise InputError(f"--stage: no stage {wanted!r} in {config.name}; there are {', '.join(names)}")
    with StopSignal() as stop:
        config = samples_lib.with_embedded_data(config, stop)
    with Waiting("opening the files of the model"):
        config = samples_lib.with_checkpoint_files(config, Initial(config.model))
        stage = config.stages[names.index(wanted)]
        spec = samples_lib.sample_spec(config, stage)
    return stage, spec, config.data.max_bad_share


def _check_name(name: str | None) -> None:
    """Raises `InputError` for a name that shards cannot begin with."""
    if name is not None and (not name.strip() or "/" in name or not name.isprintable() or len(name) > 100):
        raise InputError(f"--name={name}: expected the beginning of a file's name, without a folder")


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
    storage.check_output(f.output, "--output")
    _check_name(f.name)
    from vlvm_jax.console import Meter, say
    from vlvm_jax.data.tools import prepare, prepare_beam
    from vlvm_jax.data.tools.reencode import Target
    from vlvm_jax.workers import stoppable

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
        for note in plan.notes:
            say(note)
        if f.runner:
            prepare_beam.run_beam(plan, f.runner, runner_flags)
        else:
            with Meter("prepare", plan.records) as meter:
                prepare.run_local(plan, _workers(), f.max_bad_share, meter.update)
        report = prepare.finish(plan, f.max_bad_share)
    _tell(report, job.output)


def _tell(report: Any, output: str) -> None:
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


def _verify(arguments: list[str]) -> None:
    from vlvm_jax.console import Meter, number_of, say
    from vlvm_jax.data.sources import shards
    from vlvm_jax.data.tools import prepare
    from vlvm_jax.workers import stoppable

    if len(arguments) != 1 or not arguments[0].strip("/ "):
        raise InputError("expected `verify DIR`; see --help")
    folder = arguments[0].rstrip("/")
    count = len(shards.read_manifest(folder).shards)
    with stoppable("nothing was changed"), Meter("verify", count) as meter:
        faults = list(prepare.damaged(folder, lambda done: meter.update(done, "shards")))
    for name, what in faults:
        say(f"{name}: {what}")
    if faults:
        raise InputError(
            f"{folder}: {number_of(len(faults), 'file')} damaged, the first {faults[0][0]}; "
            "delete them and run `prepare` again"
        )
    say(f"{number_of(count, 'shard')} {'is' if count == 1 else 'are'} whole")


def _define_synthesize() -> None:
    from vlvm_jax.data.sources.text_pages import TextPages

    flags.DEFINE_multi_string("source", [], "Files of texts.")
    flags.DEFINE_string("out", None, "Folder.")
    flags.DEFINE_string("format", "llava", "Of what is written.")
    flags.DEFINE_string("name", "pages", "Of the shards.")
    flags.DEFINE_string("preset", None, "Filters.")
    flags.DEFINE_string("tokenizer", None, "Of the base model.")
    for name in _LIMITS:
        flags.DEFINE_integer(name, None, "Filter.", lower_bound=1)
    flags.DEFINE_integer("limit", None, "Texts.", lower_bound=1)
    flags.DEFINE_integer("per_part", None, "Texts.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Processes.", lower_bound=0, upper_bound=1024)
    for name in TextPages.model_fields.keys() - {"max_pages"}:
        flags.DEFINE_string(name, None, "Of the pages or texts.")


_LIMITS = ("max_images", "tokens_per_image", "max_total_tokens", "max_question_words")


def _synthesize(arguments: list[str]) -> None:
    f = flags.FLAGS
    if arguments or not f.source or not f.out:
        raise InputError("expected `synthesize --source=FILE --out=DIR`; see --help")
    import time

    from vlvm_jax import __version__
    from vlvm_jax.config import build
    from vlvm_jax.console import Meter
    from vlvm_jax.data.pages import filters
    from vlvm_jax.data.sources.text_pages import TextPages
    from vlvm_jax.data.tools import synthesize
    from vlvm_jax.workers import stoppable

    storage.check_output(f.out, "--out")
    _check_name(f.name)
    if f.format not in synthesize.FORMATS:
        raise InputError(f"--format={f.format}: there are {', '.join(synthesize.FORMATS)}")
    given = {name: f[name].value for name in TextPages.model_fields.keys() - {"max_pages"}}
    job = synthesize.Job(
        sources=tuple(f.source),
        output=f.out.rstrip("/"),
        format=f.format,
        name=f.name,
        options=build(TextPages, {name: value for name, value in given.items() if value is not None}, "flags"),
        limits=filters.filters(f.preset, **{name: f[name].value for name in _LIMITS}),
        tokenizer=f.tokenizer,
        limit=f.limit,
        per_part=f.per_part,
    )
    with stoppable(f"finished parts stay in {job.output}"):
        plan = synthesize.make_plan(job)
        started = time.monotonic()
        with Meter("synthesize", plan.texts) as meter:
            drawn = synthesize.run(plan, _workers(), meter.update)
        rate = drawn / max(time.monotonic() - started, 1e-9)
        report = synthesize.finish(plan, __version__)
    _tell_pages(report, job, rate if drawn and job.format != "triplets" else None)


def _tell_pages(report: Any, job: Any, rate: float | None) -> None:
    from rich.table import Table

    from vlvm_jax.console import say, show_table
    from vlvm_jax.data.tools.synthesize import DROPPED

    counts = report.counts
    table = Table(title=report.path, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("kept", f"{counts['kept']:,}")
    for cause, count in sorted(report.dropped.items()):
        table.add_row(f"dropped: {cause}", f"{count:,}")
    table.add_row("pages", f"{counts['pages']:,}")
    table.add_row("overflowed", f"{counts['overflowed']:,}")
    if rate is not None:
        table.add_row("pages/s", f"{rate:,.1f}")
    show_table(table)
    if report.dropped:
        say(f"what was dropped is listed in {job.output}/{DROPPED}")
    if counts["boxes"]:
        say(f"warning: the font lacks {counts['boxes']:,} characters of the texts kept, which are drawn as boxes")


def _define_diversity() -> None:
    _define_shared()
    flags.DEFINE_multi_string("data", [], "Sources.")
    flags.DEFINE_string("out", None, "Picture.")
    flags.DEFINE_integer("samples", 5000, "Of each source.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of draw and projection.", lower_bound=0)
    flags.DEFINE_enum("embed", "auto", ["auto", "sentence", "tfidf"], "How.")
    flags.DEFINE_string("model", "all-mpnet-base-v2", "Of sentence-transformers.")
    flags.DEFINE_enum("project", "tsne", ["tsne", "umap"], "How.")


def _diversity(arguments: list[str]) -> None:
    f = flags.FLAGS
    if arguments or not f.data or not f.out:
        raise InputError("expected `diversity --data=SOURCE --out=FILE.png`; see --help")
    storage.check_output(f.out, "--out", folder=False)
    from vlvm_jax.console import say
    from vlvm_jax.data.tools import diversity, prepare

    names = diversity.short_names(f.data)
    found = {
        name: diversity.questions(prepare.open_records([path], f.media_root, f.format), f.samples, f.seed)
        for name, path in zip(names, f.data, strict=True)
    }
    texts = [text for one in found.values() for text in one]
    how, vectors = diversity.embed(texts, f.embed, f.model)
    say(f"{len(texts)} instructions of {len(found)} sources, embedded by {how}, projected by {f.project}")
    points = diversity.project(vectors, f.project, f.seed)
    picture = _written(f.out)
    diversity.write_csv(picture.with_suffix(".csv"), found, points)
    diversity.draw(picture, found, points, f"{how}, {f.project}")
    say(f"{picture}, {picture.with_suffix('.csv')}")


_COMMANDS: dict[str, tuple[str, Callable[[], None], Callable[[list[str]], None]]] = {
    "check": (CHECK, _define_check, _check),
    "prepare": (PREPARE, _define_prepare, _prepare),
    "verify": (VERIFY, lambda: None, _verify),
    "synthesize": (SYNTHESIZE, _define_synthesize, _synthesize),
    "diversity": (DIVERSITY, _define_diversity, _diversity),
}


if __name__ == "__main__":
    sys.exit(run())
