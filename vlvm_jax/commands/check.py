"""Check data before training on it: every record is read, its media are opened and some of their frames decoded.

usage: python -m vlvm_jax.data check FILE... [flags]
       python -m vlvm_jax.data check --config=ftfv[:preset[,key=value...]] [FILE...] [flags]

  FILE   A source (docs/your_data.md). With --config and no FILE, the stage's own data are checked.

Exit codes: 0 usable, 2 not (one line says why), 75 interrupted, 1 an internal error.
"""

import contextlib
from typing import Any

from absl import flags

from vlvm_jax import cli, json_text, storage
from vlvm_jax.commands import _shared
from vlvm_jax.errors import InputError

_CONFIG = cli.define_recipe(
    "A recipe. Samples are made as one of its stages makes them, with its tokenizer, template, frames and tokens per "
    "frame, to report their lengths and what the stage would drop."
)
_STAGE = flags.DEFINE_string("stage", None, "The stage of the recipe (default: the last one).")
_MEDIA_ROOT = _shared.define_media_root()
_FORMAT = _shared.define_format()
_LIMIT = flags.DEFINE_integer("limit", None, "Check only this many records, evenly spread.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "JSON file to write all results to, with every bad record.")
_PICTURE = flags.DEFINE_string(
    "picture",
    None,
    "PNG file to draw: durations, lengths and the stage's limit, sizes, causes. With --config also a few samples: "
    "the frames as the model gets them, and the prompt with the learned tokens highlighted.",
)
_WORKERS = _shared.define_workers()
_MAX_BAD_SHARE = flags.DEFINE_float(
    "max_bad_share",
    None,
    "Fraction of bad records that is acceptable (default: the recipe's, or 0.01).",
    lower_bound=0,
    upper_bound=1,
)


def main(files: list[str]) -> None:
    if not files and _CONFIG.value is None:
        raise InputError("expected `check FILE...`, or --config to check a recipe's own data; see --help")

    from vlvm_jax.console import Meter, Waiting, console, say

    for flag in (_JSON, _PICTURE):
        if flag.value is not None:
            storage.check_output(flag.value, f"--{flag.name}", folder=False)
    with Waiting("starting"):
        from vlvm_jax.data.record import evenly
        from vlvm_jax.data.sources import mixture
        from vlvm_jax.data.tools import check, check_report, check_samples, prepare
        from vlvm_jax.workers import stoppable

    stage, spec, share = _stage() if _CONFIG.value is not None else (None, None, 0.01)
    share = share if _MAX_BAD_SHARE.value is None else _MAX_BAD_SHARE.value
    with Waiting("reading the annotations"):
        if files or stage is None:
            records = prepare.open_records(files, _MEDIA_ROOT.value, _FORMAT.value)
        else:
            records = mixture.read_mixture(stage.data, stage.seed)
            if stage.validation:
                with contextlib.suppress(mixture.NothingLeft):  # too few clips to set some aside
                    asked = mixture.read_mixture(stage.validation, stage.seed)
                    records = mixture.Mixture([*records.parts, *asked.parts])
    indices = evenly(len(records), _LIMIT.value)
    workers = _shared.number_of_workers(_WORKERS.value)
    with stoppable("nothing was written"), Meter("check", len(indices)) as meter:
        checker = check.Checker(records, spec)
        findings = check.examine(checker, indices, workers, lambda done: meter.update(done, "records"))
    summary = check.summarise(findings, len(records), spec)
    check_report.show(summary, console)
    for note in records.notes:
        say(note)
    if _JSON.value:
        text = json_text.readable(summary, indent=2)
        _shared.in_new_folder(_JSON.value).write_text(text, encoding="utf-8")
    if _PICTURE.value:
        samples, note = None, ""
        if spec is None:
            note = "--picture: give --config as well to see frames, prompts and learned tokens as a model gets them"
        with Waiting(f"drawing {_PICTURE.value}"):
            if spec is not None:
                shown = check_samples.show_samples(records, spec, check_samples.choose(findings))
                if shown:
                    samples, note = check_samples.draw(shown)
            check_report.draw(findings, summary, _shared.in_new_folder(_PICTURE.value), samples)
        if note:
            say(note)
        say(f"written: {_PICTURE.value}")
    bad = summary["checked"] - summary["usable"]
    if bad > share * summary["checked"]:
        causes = ", ".join(f"{count} {cause}" for cause, count in summary["causes"].items())
        setting = "--" if _CONFIG.value is None or _MAX_BAD_SHARE.value is not None else "config.data."
        raise InputError(
            f"{bad} of {summary['checked']} records cannot be used ({causes}), more than {setting}max_bad_share = "
            f"{share:g} allows"
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
    wanted = _STAGE.value or config.stages[-1].name
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
