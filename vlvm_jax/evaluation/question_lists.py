"""Reads lists of questions about clips, in any of the formats in `evaluation.benchmarks`.

Options and the right one are in any layout of `data.sources.options`: a list that has them is never read without.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlvm_jax.data.record import check_object, short
from vlvm_jax.data.sources import options
from vlvm_jax.data.sources.options import LETTERS
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import benchmarks
from vlvm_jax.evaluation.benchmarks._format import ListFile, read_bytes, records
from vlvm_jax.evaluation.clip_files import ClipFiles
from vlvm_jax.evaluation.questions import Draft, Question, QuestionList


def read(path: str, media: str, *, answers: str | None = None, name: str = "auto") -> QuestionList:
    """Reads all questions of a list.

    Args:
      media: folder of the clips, local or gs://.
      answers: the second file of a format that has its answers there; by default the one that belongs to `path`.
      name: the format; "auto" detects it from the file's ending and the first record.

    Raises:
      InputError: a file is not there, a record does not have the format, ids repeat, or questions and answers do not
        belong together.
    """
    clips = ClipFiles(media)
    digest = hashlib.sha256(read_bytes(path, "--questions"))
    name = _detect_file(path) if name == "auto" else name
    if name not in benchmarks.formats():
        raise InputError(f"--format={name}: there are auto, {', '.join(benchmarks.names())}")
    format = benchmarks.formats()[name]
    if format.answers_beside is not None:
        answers = answers or format.answers_beside(path)
        digest.update(read_bytes(answers, "--answers"))
    elif answers is not None:
        raise InputError(
            f"--answers={answers}: {path} is of the format {name!r}, which holds its answers; leave it out"
        )
    file = ListFile(path, name, clips, answers)
    drafts = list(format.read(file))
    if not drafts:
        raise InputError(f"{path}: no questions in it")
    questions = _with_right_options(drafts)
    _check_ids(questions)
    notes = (*clips.notes(), *_unread_notes(path, name, file.unread))
    return QuestionList(name, tuple(questions), digest.hexdigest(), notes)


def _detect_file(path: str) -> str:
    for name, format in benchmarks.formats().items():
        if format.ending and path.lower().endswith(format.ending):
            return name
    return detect(next((raw for _, raw, _ in records(path)), {}), f"{path}: record 0")


def detect(raw: Any, where: str) -> str:
    """The name of the format of a list whose first record this is.

    Raises:
      InputError: there is none.
    """
    check_object(raw, where)
    for name, format in benchmarks.formats().items():
        if format.matches(raw):
            return name
    raise InputError(
        f"{where}: of no format known here ({', '.join(benchmarks.names())}; docs/evaluate.md has their keys); its "
        f"keys are {short(sorted(raw))}"
    )


def _unread_notes(path: str, name: str, unread: Counter[str]) -> list[str]:
    """A line for each key that looks like a part of the clip, but is not read in this format."""
    formats = benchmarks.formats()
    read = ("start", "end") if formats[name].reads_span else ()
    readers = " and ".join(repr(other) for other, format in formats.items() if format.reads_span)
    return [
        f"{path}: {key!r} is not read, the whole clip is ({count} {'record has' if count == 1 else 'records have'} "
        f"it); 'start' and 'end' of the formats {readers} are"
        for key, count in unread.items()
        if key not in read
    ]


def _with_right_options(drafts: Sequence[Draft]) -> list[Question]:
    letters = iter(options.letters([choice for _, choice in drafts if choice is not None]))
    questions = []
    for question, choice in drafts:
        if choice is not None:
            letter = next(letters)
            true = choice.options[LETTERS.index(letter)]
            question = dataclasses.replace(question, options=choice.options, letter=letter, answer=true)
        questions.append(question)
    return questions


def _check_ids(questions: Sequence[Question]) -> None:
    seen: dict[str, str] = {}
    for question in questions:
        if question.id in seen:
            raise InputError(
                f"{question.source}: the id {question.id!r} stands here and in {seen[question.id]}; ids must be unique"
            )
        seen[question.id] = question.source
