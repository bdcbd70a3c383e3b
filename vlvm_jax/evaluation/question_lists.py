"""Lists of questions about clips, in the formats of the benchmarks (docs/evaluate.md).

plain            {"video"|"image", "question", "answer"[, "id", "type", options, "start", "end"]}, JSON or JSONL
open_ended       [{"video_name", "question_id", "question"[, options]}] beside [{"question_id", "answer"[, "type"]}]
multiple_choice  [{"video_name", "question_id", "question", options, "answer_number"|"answer"[, "task_name"]}]
vcgbench         [{"video_name", "question_id", "question": text or two of them, "answer"}]
csv              columns video_name, question_id, question, answer[, question_type, options]; or NExT-QA's own: video,
                 qid, question, answer, type, a0 to a4
t2vid            {"question_id", "video", "prompt", "GT", "category"}, JSON or JSONL; `prompt` holds the options
llava            conversations, and what else `data.sources.formats` reads; each exchange is a question of its own

Options and the right one are in any layout of `data.sources.options`: a list that has them is never read without.
Source of the formats: specs free_video_llm.md and t2vid.md, section 8 of both.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from vlvm_jax import storage
from vlvm_jax.data import json_lines
from vlvm_jax.data import record as records
from vlvm_jax.data.prompt.conversation import PLACEHOLDER
from vlvm_jax.data.record import MediaKind, Record, check_object, short
from vlvm_jax.data.sample.turns import split_turns
from vlvm_jax.data.sources import formats, media_keys, options
from vlvm_jax.data.sources.options import LETTERS, Choice
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation.clip_files import ClipFiles
from vlvm_jax.json_text import LONE_SURROGATE

Format = Literal["plain", "open_ended", "multiple_choice", "vcgbench", "csv", "t2vid", "llava"]
FORMATS: tuple[Format, ...] = ("plain", "open_ended", "multiple_choice", "vcgbench", "csv", "t2vid", "llava")
_CLIP_KEYS = ("video_name", "video", "videoID", "video_id", "q_uid")  # that name a clip, the likeliest first
_ID_KEYS = ("id", "question_id", "qid")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_TYPE_KEYS = ("type", "question_type", "task_type", "task_name")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about one record's media.

    Attributes:
      id: unique in its list.
      source: `file: record`, for messages.
      media: (kind, path); a path may be of nothing, see `missing`.
      text: the question alone, with no options; what guides adapters that are guided.
      answer: the true one; of multiple choice the option's text, where that is known.
      type: of question; "all" where the list has no types.
      options: texts of the options, A's first.
      letter: of the true option, "" for free text.
      prompt: what is asked in place of `text` and options, where the list says so.
      span: seconds from and to which the clip counts.
      missing: no file of the media folder has the clip's name.
      paired: the first or second of two questions of one record, whose ids end in /1 and /2.
      carried: what a prediction repeats of the record, in the format's own keys.
    """

    id: str
    source: str
    media: tuple[tuple[MediaKind, str], ...]
    text: str
    answer: str
    type: str = "all"
    options: tuple[str, ...] = ()
    letter: str = ""
    prompt: str = ""
    span: tuple[float, float] | None = None
    missing: bool = False
    paired: bool = False
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class QuestionList:
    """Attributes:
    format: in which the file was read.
    questions: in the file's order, at least one; no two have the same id.
    digest: sha256 of the files.
    notes: what to tell the user about the list, a line each.
    """

    format: Format
    questions: tuple[Question, ...]
    digest: str
    notes: tuple[str, ...] = ()


Draft = tuple[Question, Choice | None]  # a question and its options; the whole list decides which one is right


def read(path: str, media: str, *, answers: str | None = None, name: Format | Literal["auto"] = "auto") -> QuestionList:
    """All questions of a list.

    Args:
      media: folder of the clips, local or gs://.
      answers: the second file of the format `open_ended`; without it the `_a.json` beside a `_q.json`.
      name: the format; "auto" tells it by the ending and the first record.

    Raises:
      InputError: a file is not there, a record is not of the format, ids repeat, or questions and answers are not each
        other's.
    """
    clips = ClipFiles(media)
    digest, unread = hashlib.sha256(_bytes(path, "--questions")), Counter()
    if name == "auto":
        name = "csv" if path.lower().endswith(".csv") else detect(_first(path), f"{path}: record 0")
    if name == "open_ended":
        answers = answers or _answers_beside(path)
        digest.update(_bytes(answers, "--answers"))
        drafts = _open_ended(path, answers, clips, unread)
    elif answers is not None:
        raise InputError(
            f"--answers={answers}: {path} is of the format {name!r}, which holds its answers; leave it out"
        )
    elif name == "llava":
        drafts = [(question, None) for question in _llava(path, clips, unread)]
    elif name == "csv":
        drafts = [_from_csv(raw, where, index, clips) for index, raw, where in _rows(path, unread)]
    else:
        reader = _READERS[name]
        drafts = [draft for index, raw, where in _objects(path, unread) for draft in reader(raw, where, index, clips)]
    if not drafts:
        raise InputError(f"{path}: no questions in it")
    found = _with_right_options(drafts)
    _check_ids(found)
    return QuestionList(name, tuple(found), digest.hexdigest(), (*clips.notes(), *_unread_notes(path, name, unread)))


def _unread_notes(path: str, name: Format, unread: Counter[str]) -> list[str]:
    """A line for each key that looks like a part of the clip, but is not read in this format."""
    read = ("start", "end") if name in ("plain", "llava") else ()
    return [
        f"{path}: {key!r} is not read, the whole clip is ({count} {'record has' if count == 1 else 'records have'} "
        "it); 'start' and 'end' of the formats 'plain' and 'llava' are"
        for key, count in unread.items()
        if key not in read
    ]


def _with_right_options(drafts: Sequence[Draft]) -> list[Question]:
    letters = iter(options.letters([choice for _, choice in drafts if choice is not None]))
    found = []
    for question, choice in drafts:
        if choice is not None:
            letter = next(letters)
            true = choice.options[LETTERS.index(letter)]
            question = dataclasses.replace(question, options=choice.options, letter=letter, answer=true)
        found.append(question)
    return found


def detect(raw: Any, where: str) -> Format:
    """The format of a list whose first record this is.

    Raises:
      InputError: it is of none.
    """
    check_object(raw, where)
    has = raw.keys().__ge__
    if has({"prompt", "GT"}):
        return "t2vid"
    if "conversations" not in raw and options.keys_in(raw):
        named = has({"video_name", "question_id"})
        told = any(raw.get(key) not in (None, "") for key in (*options.ANSWERS, *options.NUMBERS))
        return "plain" if not named else "multiple_choice" if told else "open_ended"
    if has({"video_name", "question_id", "question"}):
        return "vcgbench" if "answer" in raw else "open_ended"
    if has({"question", "answer"}):
        return "plain"
    if any(all(key in raw for key in keys) for keys in formats.KEYS.values()):
        return "llava"
    raise InputError(
        f"{where}: of no format known here ({', '.join(FORMATS)}; docs/evaluate.md has their keys); its keys are "
        f"{short(sorted(raw))}"
    )


def _plain(raw: dict, where: str, index: int, clips: ClipFiles) -> Iterator[Draft]:
    choice = options.read(raw, where)
    answer = _answer(raw, "answer", where) if choice is None else "-"
    said = {"question": _text(raw, "question", where), "answer": answer}
    hidden = {*options.keys_in(raw), *options.LISTS, *options.ANSWERS, *options.NUMBERS}
    if not media_keys.read(raw, where) and (clip := _clip_key(raw)) is not None:
        said["video"] = str(raw[clip])
    known = {"id": _first_of(raw, _ID_KEYS, where), "type": _first_of(raw, _TYPE_KEYS, where)}
    said |= {key: value for key, value in known.items() if value is not None}
    kept = {key: value for key, value in raw.items() if key not in (*hidden, *_ID_KEYS, *_TYPE_KEYS)}
    record = records.parse(formats.to_llava(kept | said, "qa", where, str), where, index, clips.locate)
    if not record.media:
        raise InputError(f"{where}: no 'video' (nor 'image'), which a record of the format 'plain' has")
    yield _of_record(record, record.id, clips), choice


def _clip_key(raw: Mapping[str, Any]) -> str | None:
    return next((key for key in _CLIP_KEYS if raw.get(key) not in (None, "")), None)


def _first_of(raw: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    """Text of the first of these keys that the record has; None if it has none."""
    key = next((key for key in keys if raw.get(key) not in (None, "")), None)
    return None if key is None else _id(raw, key, where)


def _multiple_choice(raw: dict, where: str, _index: int, clips: ClipFiles) -> Iterator[Draft]:
    choice = options.read(raw, where)
    if choice is None:
        raise InputError(f"{where}: no options under 'candidates', 'options' or 'choices', nor one key for each")
    carried = {key: raw[key] for key in ("task_name", "answer_number", "candidates") if key in raw}
    question = _about_clip(
        raw, where, clips, "video_name", text=_text(raw, "question", where), answer="",
        type=str(_first_of(raw, ("task_name", *_TYPE_KEYS), where) or "all"), carried=carried,
    )  # fmt: skip
    yield question, choice


def _vcgbench(raw: dict, where: str, _index: int, clips: ClipFiles) -> Iterator[Draft]:
    """Where a record has two questions (consistency), each is asked alone, and their ids end in /1 and /2."""
    _no_options(raw, where, "vcgbench")
    answer = _answer(raw, "answer", where)
    asked = raw.get("question")
    if not isinstance(asked, list):
        yield _about_clip(raw, where, clips, "video_name", text=_text(raw, "question", where), answer=answer), None
        return
    if len(asked) != 2:
        raise InputError(f"{where}: 'question' must be a text or a list of two, found {short(asked)}")
    for number, text in enumerate(asked, start=1):
        text = _text({"question": text}, "question", where)
        question = _about_clip(
            raw, where, clips, "video_name", text=text, answer=answer, type="consistency", paired=True
        )
        yield dataclasses.replace(question, id=f"{question.id}/{number}"), None


def _no_options(raw: Mapping[str, Any], where: str, name: Format) -> None:
    if found := options.keys_in(raw):
        raise InputError(
            f"{where}: {found[0]!r} holds options, which the format {name!r} does not have; leave --format to be "
            "detected, or give 'plain'"
        )


def _t2vid(raw: dict, where: str, _index: int, clips: ClipFiles) -> Iterator[Draft]:
    text, offered = split_prompt(_text(raw, "prompt", where))
    prompt = raw["prompt"]  # asked as it is, with its outer spaces
    letter = raw.get("GT")
    known = LETTERS[: len(offered) or len(LETTERS)]
    if not isinstance(letter, str) or len(letter) != 1 or letter not in known:
        raise InputError(f"{where}: 'GT' must be one letter from A to {known[-1]}, found {short(letter)}")
    question = _about_clip(
        raw, where, clips, "video", text=text, answer=offered[known.index(letter)] if offered else "",
        type=str(raw.get("category") or "all"), options=offered, letter=letter, prompt=prompt,
        carried={key: raw[key] for key in ("question_id", "prompt", "GT", "category") if key in raw},
    )  # fmt: skip
    yield question, None


_READERS: Mapping[str, Callable[[dict, str, int, ClipFiles], Iterator[Draft]]] = {
    "plain": _plain,
    "multiple_choice": _multiple_choice,
    "vcgbench": _vcgbench,
    "t2vid": _t2vid,
}


def split_prompt(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The question and the options of a prompt with a line "A. ..." and lines of the next letters right behind it.

    A prompt without such lines is all question, with no options.
    """
    lines = prompt.split("\n")
    start = next((number for number, line in enumerate(lines) if number and line.startswith("A. ")), len(lines))
    lettered = zip(LETTERS, lines[start:], strict=False)
    options = [
        line[3:].strip() for _, line in itertools.takewhile(lambda one: one[1].startswith(f"{one[0]}. "), lettered)
    ]
    return "\n".join(lines[:start]).strip() if options else prompt, tuple(options)


def _from_csv(raw: dict[str, Any], where: str, index: int, clips: ClipFiles) -> Draft:
    """NExT-QA numbers the questions of each video anew, so that a question's id is that of both, as in its own code."""
    choice, clip = options.read(raw, where), _clip_key(raw)
    if clip is None:
        raise InputError(f"{where}: no name of a clip under {' or '.join(map(repr, _CLIP_KEYS))}")
    name = raw.get("question_id") or (f"{raw[clip]}_{raw['qid']}" if raw.get("qid") else str(index))
    question = _about_clip(
        raw | {"question_id": name}, where, clips, clip, text=_text(raw, "question", where),
        answer=_answer(raw, "answer", where) if choice is None else "",
        type=str(_first_of(raw, ("question_type", *_TYPE_KEYS), where) or "all"),
    )  # fmt: skip
    return question, choice


def _open_ended(path: str, answers: str, clips: ClipFiles, unread: Counter[str]) -> list[Draft]:
    """Questions with their answers, joined by id."""
    true: dict[str, tuple[dict, str]] = {}
    for _, raw, where in _objects(answers):
        check_object(raw, where)
        name = _id(raw, "question_id", where)
        if name in true:
            raise InputError(f"{where}: 'question_id' {name!r} stands here and in {true[name][1]}; ids must be unique")
        true[name] = raw, where
    found = []
    for _, raw, where in _objects(path, unread):
        check_object(raw, where)
        name = _id(raw, "question_id", where)
        if name not in true:
            raise InputError(f"{where}: no record of {answers} has its 'question_id' {name!r}")
        answered, there = true[name]
        told = {key: answered[key] for key in (*options.ANSWERS, *options.NUMBERS) if key in answered}
        choice = options.read({**raw, **told}, there)
        question = _about_clip(
            raw, where, clips, "video_name", text=_text(raw, "question", where),
            answer=_answer(answered, "answer", there) if choice is None else "", type=_type(answered.get("type")),
        )  # fmt: skip
        found.append((question, choice))
    asked = {question.id for question, _ in found}
    if unasked := [name for name in true if name not in asked]:
        raise InputError(f"{true[unasked[0]][1]}: no record of {path} has its 'question_id' {unasked[0]!r}")
    return found


def _llava(path: str, clips: ClipFiles, unread: Counter[str]) -> list[Question]:
    found, name = [], "llava"
    for index, raw, where in _objects(path, unread):
        name = name if index else formats.detect(raw, where)
        _no_options(raw, where, "llava")
        record = records.parse(formats.to_llava(raw, name, where, str), where, index, clips.locate)
        alone = split_turns([record])
        for number, turn in enumerate(alone):
            found.append(_of_record(turn, record.id if len(alone) == 1 else f"{record.id}/{number}", clips))
    return found


def _of_record(record: Record, name: str, clips: ClipFiles) -> Question:
    """Of a record with one exchange; where its media do not all come first, `prompt` says where they stand."""
    if record.system:
        raise InputError(f"{record.source}: a system turn, which questions are asked without here; leave it out")
    turn = record.turns[0]
    text = (turn.question.replace(PLACEHOLDER, "") if record.media else turn.question).strip()
    in_front = turn.question.strip().endswith(text)
    missing = any(path in clips.missing for _, path in record.media)
    return Question(
        name, record.source, record.media, text, turn.answer, type=turn.type or "all", span=record.span,
        missing=missing, prompt="" if in_front else turn.question.strip(),
    )  # fmt: skip


def _about_clip(raw: Mapping[str, Any], where: str, clips: ClipFiles, key: str, **more: Any) -> Question:
    try:
        path = clips.path(_text(raw, key, where))
    except ValueError as error:
        raise InputError(f"{where}: {key!r}: {error}") from None
    name = _id(raw, "question_id", where)
    return Question(name, where, (("video", path),), missing=path in clips.missing, **more)


def _id(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(f"{where}: {key!r} must be a text or a whole number, found {short(value)}")
    return str(value)


def _text(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {key!r} must be a text that is not empty, found {short(value)}")
    return value.strip()


def _answer(raw: Mapping[str, Any], key: str, where: str) -> str:
    """Numbers, which some lists have for answers, are taken as their texts."""
    value = raw.get(key)
    if value in ("nan", "NaN") or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{where}: {key!r} is {value}, which tables write for what is missing; give the answer")
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(raw, key, where)


def _type(value: Any) -> str:
    return "all" if value is None or value == "" else str(value)


def _check_ids(questions: Sequence[Question]) -> None:
    seen: dict[str, str] = {}
    for question in questions:
        if question.id in seen:
            raise InputError(
                f"{question.source}: the id {question.id!r} stands here and in {seen[question.id]}; ids must be unique"
            )
        seen[question.id] = question.source


def _answers_beside(path: str) -> str:
    match = re.fullmatch(r"(.*)_q(\.jsonl?)", path, re.IGNORECASE | re.DOTALL)
    if match is None:
        raise InputError(
            f"{path}: questions without answers; name the list of answers with --answers (it is found by itself beside "
            "a file that ends in _q.json)"
        )
    return f"{match[1]}_a{match[2]}"


def _bytes(path: str, flag: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{flag}={path}: no such file") from None


def _first(path: str) -> Any:
    return next((raw for _, raw, _ in _objects(path)), {})


def _objects(path: str, unread: Counter[str] | None = None) -> Iterator[tuple[int, Any, str]]:
    """Index, value and `file: record index` of each record.

    Raises:
      InputError: one is not JSON, or no object; a question that is left out would change the accuracy.
    """
    for entry in json_lines.parse(_bytes(path, "--questions"), path):
        if entry.error:
            raise InputError(f"{path if entry.line else entry.where}: {entry.error}")
        check_object(entry.value, entry.where)
        if _ESCAPED_HALF.search(entry.text) and LONE_SURROGATE.search(json.dumps(entry.value, ensure_ascii=False)):
            raise InputError(
                f"{entry.where}: holds half a character (a lone surrogate), such as \\ud83d without the rest"
            )
        if unread is not None:
            _count_spans(entry.value, unread)
        yield entry.index, entry.value, entry.where


def _count_spans(raw: Mapping[str, Any], unread: Counter[str]) -> None:
    unread.update(media_keys.spans(raw))
    unread.update(key for key in ("start", "end") if raw.get(key) not in (None, ""))


def _rows(path: str, unread: Counter[str]) -> Iterator[tuple[int, dict[str, str], str]]:
    """Index, values by column and `file: row index` of each row of a table."""
    text, _ = json_lines.decode(_bytes(path, "--questions"), path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # which is 131,072 characters at first
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = table.fieldnames or ()
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error})") from None
    if repeated := [column for column in columns if columns.count(column) > 1]:
        raise InputError(f"{path}: {columns.count(repeated[0])} columns {repeated[0]!r}; keep one of them")
    wanted = [_CLIP_KEYS, ("question",), ("answer", *options.ANSWERS, *options.NUMBERS)]
    absent = [keys[0] for keys in wanted if not set(keys) & set(columns)]
    if absent:
        raise InputError(f"{path}: no column {absent[0]!r}; its columns are {short(list(columns))}")
    number = 0
    while True:
        where = f"{path}: row {number}"
        try:
            row = next(table, None)
        except csv.Error as error:
            raise InputError(f"{where}: not CSV ({error})") from None
        if row is None:
            return
        if None in row:
            raise InputError(
                f"{where}: {len(columns) + len(row[None])} fields for {len(columns)} columns; put a field that holds a "
                f"comma in double quotes (found beyond the last column: {short(row[None])})"
            )
        _count_spans(row, unread)
        yield number, row, where
        number += 1
