"""Long texts with a question and its answer: files of them, and the layouts in which data sets have them.

triplets           {"context", "question", "answer"}; also what `data synthesize --format=triplets` writes
long_alpaca        {"instruction", "output"} of LongAlpaca-12k: text and question in one instruction
long_qlora         {"input", "output"} of LongQLoRA's 39k: a record is as one of the three others
booksum            {"prompt", "completion"} or {"text"} of Long-Data-Collections: text, `Q: `, `A:`
natural_questions  {"prompt", "completion"} or {"text"} of Long-Data-Collections: documents, `Question: `, `Answer: `

How text and question of LongAlpaca and LongQLoRA were parted for T2Vid is not public: it is done here at the sentences
by which those data sets say where a text begins and ends, and records without them, which have no long text, are left
out as `short`. The other two follow the public converters, but for a text that holds the separator itself: the last one
counts. Labels (`Question:`, `Answer:`) before a question or an answer are dropped (ours).
"""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from pydantic import NonNegativeInt

from vlvm_jax import json_text, storage
from vlvm_jax.config import Settings
from vlvm_jax.data import json_lines
from vlvm_jax.data.record import check_object, short
from vlvm_jax.errors import InputError

Layout = Literal["triplets", "long_alpaca", "long_qlora", "booksum", "natural_questions"]
MIN_WORDS = {"booksum": 3000, "natural_questions": 3000}  # of a text, as the public converters have it
DOCUMENT_REQUEST = "Give a short answer and then the number of its document."  # as many words as the released one


class TripletOptions(Settings):
    """What of a file of texts is taken.

    `layout` is one of this module's; "auto" is that of the first record that has one. `rewrite_long_answer` has
    answers with a long part (Natural Questions, LongQLoRA) become the short one and the number of its document, and the
    question ask for that, as released. `min_words`, counted between single spaces, is by default 3000 for BookSum and
    Natural Questions and 0 for the others.
    """

    layout: Literal["auto"] | Layout = "auto"
    rewrite_long_answer: bool = True
    min_words: NonNegativeInt | None = None


@dataclasses.dataclass(frozen=True)
class Triplet:
    """A long text, a question about it and the answer. `id` is the record's own, or its number in the file."""

    id: str
    context: str
    question: str
    answer: str


class NotUsed(Exception):
    """A record that is no long text with a question; `cause` says why: `short`, `empty` or `answer`."""

    def __init__(self, cause: str):
        super().__init__(cause)
        self.cause = cause


# --- layouts -----------------------------------------------------------------------------------------------------

_KEYS: dict[str, tuple[str, ...]] = {
    "triplets": ("context", "question", "answer"),
    "long_alpaca": ("instruction", "output"),
    "long_qlora": ("input", "output"),
    "booksum": ("prompt", "completion"),
    "natural_questions": ("prompt", "completion"),
}
_DOCUMENTS = ("Question: ", "Answer: ")  # labels of Natural Questions
_LONG, _GOLD = "Long Answer: ", "Gold Document ID: "
_BEGINS = re.compile(r"\b(?:paper|material|book|content)s? begins?\.")
_ENDS = re.compile(r"\bNow the (?:\w+ ){1,2}?ends?\.")
_LABEL = re.compile(r"^(?:Question|Q):\s*")


def detect(raw: Any, where: str) -> Layout:
    """The layout of a record.

    Raises:
      InputError: it is of none.
    """
    check_object(raw, where)
    if "text" in raw and "context" not in raw:
        return "natural_questions" if _GOLD in str(raw["text"]) else "booksum"
    if _has(raw, "natural_questions") and _GOLD in str(raw["completion"]):
        return "natural_questions"
    for layout in ("triplets", "long_alpaca", "long_qlora", "booksum"):
        if _has(raw, layout):
            return layout
    raise InputError(
        f"{where}: expected 'context', 'question' and 'answer', or the keys of LongAlpaca ('instruction', 'output'), "
        f"LongQLoRA ('input', 'output'), BookSum or Natural Questions ('prompt', 'completion'); its keys are "
        f"{short(sorted(raw))}"
    )


def _has(raw: Mapping[str, Any], layout: str) -> bool:
    return all(key in raw for key in _KEYS[layout])


def to_triplet(raw: Any, layout: Layout, options: TripletOptions, where: str, index: int) -> Triplet:
    """A record of a layout as a triplet.

    Raises:
      NotUsed: it has no long text, no question or no answer.
      InputError: it is not of the layout.
    """
    check_object(raw, where)
    first, second = _halves(raw, layout, where)
    context, question, answer = "", first, second
    if layout == "triplets":
        context, question, answer = (_text(raw, key, where) for key in _KEYS["triplets"])
    elif layout == "long_alpaca":
        context, question = _marked(first)
    elif layout == "long_qlora":
        context, question = _any_of(first, second)
    elif layout == "booksum":
        context, question = _parted(first, "Q:")
        question = question.rpartition("A:")[0] or question
    else:
        context, question = _parted(first, _DOCUMENTS[0])
        question = _asked(_unlabelled_end(question))
    if layout != "triplets":
        context, question = context.strip(), _LABEL.sub("", question.strip())
    if _LONG in answer:
        if options.rewrite_long_answer:
            answer = _short_answer(answer)
            question = f"{question}\n{DOCUMENT_REQUEST}"
    elif layout != "triplets":
        answer = re.sub(r"^\s*Answer:\s*", "", answer).strip()
    if not (context.strip() and question.strip() and answer.strip()):
        raise NotUsed("empty")
    least = MIN_WORDS.get(layout, 0) if options.min_words is None else options.min_words
    if len(context.split(" ")) < least:
        raise NotUsed("short")
    return Triplet(str(raw.get("id", index)), context, question, answer)


def _text(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} must be a text, found {short(value)}")
    return value


def _halves(raw: Mapping[str, Any], layout: Layout, where: str) -> tuple[str, str]:
    """What is asked with, and what is answered with."""
    if layout == "triplets":
        return "", ""
    if "text" not in raw or _has(raw, layout):
        first, second = _KEYS[layout]
        return _text(raw, first, where), _text(raw, second, where)
    text = _text(raw, "text", where)
    label = "\nAnswer:" if layout == "natural_questions" else "\nA:"
    asked, found, said = text.rpartition(label)
    if not found:
        raise NotUsed("answer")
    return asked, f"{label.strip()}{said}" if layout == "natural_questions" else said


def _marked(text: str) -> tuple[str, str]:
    """Context and question of an instruction that says where its text begins and ends."""
    ends = list(_ENDS.finditer(text))
    if not ends:
        raise NotUsed("short")
    head = text[: ends[-1].start()]
    begins = _BEGINS.search(head)
    # Without the sentence the text begins after the instruction's first line.
    start = begins.end() if begins and begins.start() < 1000 else head.find("\n") + 1
    return head[start:], text[ends[-1].end() :]


def _any_of(text: str, answer: str) -> tuple[str, str]:
    """Context and question of a record of LongQLoRA."""
    if _ENDS.search(text):
        return _marked(text)
    if _LONG in answer and _DOCUMENTS[0] in text:
        context, question = _parted(text, _DOCUMENTS[0])
        return context, _unlabelled_end(question)
    if "\nQ:" in text:
        context, question = _parted(text, "\nQ:")
        return context, re.sub(r"\s*A:\s*$", "", question)
    raise NotUsed("short")


def _parted(text: str, label: str) -> tuple[str, str]:
    context, found, question = text.rpartition(label)
    if not found:
        raise NotUsed("short")
    return context, question


def _unlabelled_end(question: str) -> str:
    return re.sub(r"\s*Answer:\s*$", "", question)


def _asked(question: str) -> str:
    """A question of Natural Questions, which has neither capitals nor a question mark."""
    question = question.strip().capitalize()
    return question if not question or question.endswith(("?", "\uff1f")) else f"{question}?"


def _short_answer(answer: str) -> str:
    said, _, rest = answer.strip().partition(_LONG)
    brief = said.partition("Answer: ")[2].strip()
    gold = rest.partition(_GOLD)[2].strip()
    if not brief or not gold:
        raise NotUsed("answer")
    return f"{brief}\nDocument ID: {gold}"


# --- files -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class TripletFile:
    """The triplets of one file, each read from it when it is asked for.

    Attributes:
      spans: where the records that are of use begin and end in the file, in bytes.
      numbers: of these records in the file, from 0.
      faults: records that are not of the layout; they are among the others, so that they are counted where they are
        asked for.
      dropped: number of records left out, by cause (`NotUsed`).
      sha256: of the file.
    """

    path: str
    layout: Layout
    options: TripletOptions
    spans: Int64[np.ndarray, "n 2"]
    numbers: Int64[np.ndarray, "n"]
    faults: Mapping[int, str]
    dropped: Mapping[str, int]
    sha256: str

    def __len__(self) -> int:
        return len(self.spans)

    def where(self, index: int) -> str:
        """Of a record, for messages."""
        return f"{self.path}: record {self.numbers[index]}"

    def triplet(self, index: int) -> Triplet:
        """One triplet.

        Raises:
          InputError: the record is not of the layout.
          StorageError: storage does not answer.
        """
        where, number = self.where(index), int(self.numbers[index])
        if number in self.faults:
            raise InputError(self.faults[number])
        start, end = map(int, self.spans[index])
        return read_span(self.path, start, end, self.layout, self.options, where, number)


def read_span(
    path: str, start: int, end: int, layout: Layout, options: TripletOptions, where: str = "", number: int = 0
) -> Triplet:
    """The triplet in these bytes of a file."""
    with storage.open_binary(path) as file:
        file.seek(start)
        data = file.read(end - start)
    try:
        return to_triplet(json_text.loads(data), layout, options, where or path, number)
    except (ValueError, NotUsed) as error:
        raise InputError(f"{where or path}: the file has changed since it was opened ({error})") from None


def _not_used(raw: Any, layout: Layout, options: TripletOptions, where: str, number: int) -> str | None:
    """The cause for which a record of the layout is left out; None if it is of use."""
    try:
        to_triplet(raw, layout, options, where, number)
    except NotUsed as reason:
        return reason.cause
    return None


def read_triplets(path: str, options: TripletOptions) -> TripletFile:
    """A JSON list, or with the ending `.jsonl` an object per line; every record is looked at once.

    Raises:
      InputError: there is no such file, it is not JSON, or no record is of use.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file of texts; give a JSON list or JSONL") from None
    layout: Layout | None = None if options.layout == "auto" else options.layout
    spans, numbers, faults, dropped = [], [], {}, Counter()
    for entry in json_lines.parse(data, path):
        number, raw, where = entry.index, entry.value, entry.where
        try:
            if entry.error:
                raise InputError(f"{where}: {entry.error}")
            tried = detect(raw, where) if layout is None else layout
            cause = _not_used(raw, tried, options, where, number)
            layout = tried  # not that of a record that is not of the layout whose keys it has
            if cause is not None:
                dropped[cause] += 1
                continue
        except InputError as error:
            faults[number] = str(error)
        spans.append(entry.span)
        numbers.append(number)
    if layout is None or len(spans) == len(faults):
        if faults:
            raise InputError(next(iter(faults.values())))
        causes = ", ".join(f"{count} {cause}" for cause, count in sorted(dropped.items())) or "it is empty"
        raise InputError(f"{path}: no long text with a question in it ({causes})")
    return TripletFile(
        path,
        layout,
        options,
        np.array(spans, np.int64),
        np.array(numbers, np.int64),
        faults,
        dict(dropped),
        hashlib.sha256(data).hexdigest(),
    )
