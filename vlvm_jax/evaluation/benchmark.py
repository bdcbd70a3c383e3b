"""`python -m vlvm_jax.evaluate`: a list of questions asked, scored and written down."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlvm_jax import config as config_lib
from vlvm_jax import json_text, run_card, storage
from vlvm_jax.config import Config, DType
from vlvm_jax.console import Meter, Waiting, number_of, say
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import asking, controls, question_lists, results
from vlvm_jax.evaluation.controls import SWAPPING, Control
from vlvm_jax.evaluation.predictions import Predictions
from vlvm_jax.evaluation.questions import Question, QuestionList
from vlvm_jax.evaluation.results import Rules
from vlvm_jax.inference import loading
from vlvm_jax.inference.answering import Answering
from vlvm_jax.inference.requests import Decoding
from vlvm_jax.stop import StopSignal
from vlvm_jax.weights.sources import open_source

CARD, RESULTS, SCORED = run_card.FILE, "results.json", "scored.jsonl"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command was given.

    Attributes:
      checkpoint: a hub id or directory, as `inference.loading.load` takes it.
      questions, answers, format: see `question_lists.read`.
      media: folder of the clips; None for the folder of `questions`.
      output: folder, local or gs://, for everything that is written.
      frames: taken from a clip; None for the config's or the checkpoint's own, as with the next two.
      chat_template, dtype: see `loading.load`.
      limit: the list's first so many questions only.
      batch_size: questions answered at a time.
      prefix: with which every answer is made to begin; None for the config's own.
      controls: asked beside the questions as they are.
    """

    checkpoint: str
    questions: str
    media: str | None
    output: str
    answers: str | None = None
    format: str = "auto"
    frames: int | None = None
    chat_template: str | None = None
    dtype: DType | None = None
    limit: int | None = None
    batch_size: int = 8
    prefix: str | None = None
    controls: tuple[Control, ...] = ()
    decoding: Decoding = dataclasses.field(default_factory=Decoding)
    rules: Rules = dataclasses.field(default_factory=Rules)


def run(options: Options, config: Config | None, stop: StopSignal) -> dict[str, Any]:
    """Asks what has no answer in the output folder yet, and scores all of it.

    Returns:
      What `results.json` holds.

    Raises:
      InputError: the list, the checkpoint or a flag is at fault, or the folder holds another command's predictions.
      Interrupted: asked to stop; the same command continues.
    """
    media = _folder(options.questions) if options.media is None else options.media
    with Waiting(f"reading {options.questions}"):
        listed = question_lists.read(options.questions, media, answers=options.answers, name=options.format)
    if options.media is None:
        if all(question.missing for question in listed.questions):
            raise InputError(
                f"--media is not given, and none of the clips is in the list's own folder, {media}; give --media=FOLDER"
            )
        say(f"--media is not given: the clips are read from the list's own folder, {media}")
    for note in listed.notes:
        say(note)
    options = dataclasses.replace(options, media=media)
    results.check_match(listed.questions, options.rules)
    questions = listed.questions[: options.limit]
    # Of the whole list, so that a limit does not change which question stands for which.
    swapped = controls.others(listed.questions) if set(SWAPPING) & set(options.controls) else {}
    with storage.Logs(options.output.rstrip("/")) as logs:
        logs.folder.mkdir(parents=True, exist_ok=True)
        logs.fetch("predictions*.jsonl")
        _claim(options, listed, config)
        lines = _answered(options, config, questions, swapped, logs, stop)
        summary = results.summarise(questions, lines, options.rules)
        _write(options.output, RESULTS, json_text.readable(summary, indent=2))
        _write(options.output, SCORED, _json_lines(results.scored(questions, lines[None])))
    results.show(Path(options.questions).name, summary)
    say(f"written: {', '.join(storage.join(options.output, name) for name in (RESULTS, SCORED, CARD))}")
    return summary


def _folder(path: str) -> str:
    """The folder of a list.

    Raises:
      InputError: there is no such list.
    """
    if not storage.is_file(path):
        raise InputError(f"--questions={path}: no such file")
    return storage.parent(path)


def _answered(
    options: Options,
    config: Config | None,
    questions: tuple[Question, ...],
    swapped: Mapping[str, Question],
    logs: storage.Logs,
    stop: StopSignal,
) -> dict[str | None, Mapping[str, results.Line]]:
    """Predictions by control and id, all questions asked."""
    rounds: tuple[Control | None, ...] = (None, *options.controls)
    with contextlib.ExitStack() as stack:
        files = {
            control: stack.enter_context(Predictions(logs.folder / predictions_name(control))) for control in rounds
        }
        total = len(rounds) * len(questions)
        left = sum(not predictions.answered(question.id) for predictions in files.values() for question in questions)
        if left < total:
            say(f"{total - left} of {total} answers are there already")
        model = _load(options, config) if left else None
        with Meter("questions", total, done=total - left) as meter:
            done = total - left

            def on_answer() -> None:
                nonlocal done
                done += 1
                meter.update(done)
                logs.check()

            for control in rounds:
                if model is None:
                    break
                asking.ask(
                    controls.controlled(model, control),
                    options.decoding,
                    questions,
                    files[control],
                    control=control,
                    others=swapped,
                    prefix=options.prefix,
                    stop=stop,
                    on_answer=on_answer,
                )
        if model is not None and (cut := model.prompts.cut):
            length = model.prompts.spec.data.prompt_length
            say(
                f"{number_of(len(cut), 'question')} {'was' if len(cut) == 1 else 'were'} "
                f"cut to the {length} tokens that CLIP reads of them"
            )
        return {control: predictions.by_id for control, predictions in files.items()}


def _load(options: Options, config: Config | None) -> Answering:
    return loading.load(
        options.checkpoint,
        config=config,
        frames=options.frames,
        chat_template=options.chat_template,
        dtype=options.dtype,
        rows=options.batch_size,
    )


def predictions_name(control: Control | None) -> str:
    """Name of the file of predictions."""
    return f"predictions_{control}.jsonl" if control else "predictions.jsonl"


def _claim(options: Options, listed: QuestionList, config: Config | None) -> None:
    """Writes the run card, or checks that the one there is of a command that asks the same in the same way."""
    asked = {
        "checkpoint": options.checkpoint,
        "checkpoint_files": _files_hash(options.checkpoint),
        "questions": listed.digest,
        "format": listed.format,
        "media": options.media,
        "frames": options.frames,
        "chat_template": options.chat_template,
        "dtype": options.dtype,
        "prefix": options.prefix,
        "decoding": dataclasses.asdict(options.decoding),
        "config_hash": None if config is None else config_lib.fingerprint(config),
    }
    asked = json.loads(json.dumps(asked))
    path = storage.join(options.output, CARD)
    if storage.is_file(path):
        try:
            there = json_text.loads(storage.read_text(path))["asked"]
            differs = [key for key in asked if there[key] != asked[key]]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: no run card of an evaluation; give another --output") from None
        if differs:
            key = differs[0]
            raise InputError(
                f"--output={options.output}: its predictions were made with another {key} ({there[key]!r} there, "
                f"{asked[key]!r} here); give another folder"
            )
    elif any(storage.is_file(storage.join(options.output, predictions_name(c))) for c in (None, *controls.CONTROLS)):
        raise InputError(f"--output={options.output}: predictions without a {CARD}; give another folder")
    card = {
        "asked": asked,
        "config": None if config is None else config_lib.to_json(config),
        "data": {"file": options.questions, "questions": len(listed.questions), "hash": listed.digest[:16]},
        "limit": options.limit,
        "controls": list(options.controls),
        "rules": dataclasses.asdict(options.rules),
        **run_card.environment(),
    }
    _write(options.output, CARD, json_text.readable(card, indent=2))


def _files_hash(checkpoint: str) -> str:
    """Of names, sizes and times of a checkpoint's files: another training into the same folder is another model.

    Raises:
      InputError: there is no such checkpoint.
    """
    return storage.fingerprint(open_source(checkpoint, "--checkpoint").name)[:16]


def _write(folder: str, name: str, text: str) -> None:
    storage.write_text(storage.join(os.fspath(folder), name), text)


def _json_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json_text.readable(line) + "\n" for line in lines)
