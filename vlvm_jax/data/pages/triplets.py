"""Long texts with a question and its answer, and files of them in one of the layouts of `text_layouts`."""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic
from jaxtyping import Int64
from pydantic import NonNegativeInt

from vlvm_jax import json_text, storage
from vlvm_jax.config import Settings
from vlvm_jax.data import json_lines
from vlvm_jax.data.pages.text_layouts import LAYOUTS, LONG, NotUsed, detect, short_answer
from vlvm_jax.data.record import check_object
from vlvm_jax.errors import InputError

DOCUMENT_REQUEST = "Give a short answer and then the number of its document."  # as many words as the released one
_LABEL = re.compile(r"^(?:Question|Q):\s*")


class TripletOptions(Settings):
    """What of a file of texts is taken.

    `layout` is one of `text_layouts`; "auto" is that of the first record that has one. `rewrite_long_answer` has
    answers with a long part (Natural Questions, LongQLoRA) become the short one and the number of its document, and the
    question ask for that, as released. `min_words`, counted between single spaces, is by default 3000 for BookSum and
    Natural Questions and 0 for the others.
    """

    layout: str = "auto"
    rewrite_long_answer: bool = True
    min_words: NonNegativeInt | None = None

    @pydantic.field_validator("layout", mode="after")
    @classmethod
    def _check_layout(cls, layout: str) -> str:
        *others, last = map(repr, ("auto", *LAYOUTS))
        if layout != "auto" and layout not in LAYOUTS:
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return layout


@dataclasses.dataclass(frozen=True)
class Triplet:
    """A long text, a question about it and the answer. `id` is the record's own, or its number in the file."""

    id: str
    context: str
    question: str
    answer: str


def to_triplet(raw: Any, layout: str, options: TripletOptions, where: str, index: int) -> Triplet:
    """Converts a record of a layout to a triplet.

    Raises:
      NotUsed: it has no long text, no question or no answer.
      InputError: it does not have the layout.
    """
    check_object(raw, where)
    form = LAYOUTS[layout]
    context, question, answer = form.parts(raw, where)
    if not form.as_it_is:
        context, question = context.strip(), _LABEL.sub("", question.strip())
    if LONG in answer:
        if options.rewrite_long_answer:
            answer = short_answer(answer)
            question = f"{question}\n{DOCUMENT_REQUEST}"
    elif not form.as_it_is:
        answer = re.sub(r"^\s*Answer:\s*", "", answer).strip()
    if not (context.strip() and question.strip() and answer.strip()):
        raise NotUsed("empty")
    least = form.min_words if options.min_words is None else options.min_words
    if len(context.split(" ")) < least:
        raise NotUsed("short")
    return Triplet(str(raw.get("id", index)), context, question, answer)


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
    layout: str
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
    path: str, start: int, end: int, layout: str, options: TripletOptions, where: str = "", number: int = 0
) -> Triplet:
    """The triplet in these bytes of a file."""
    with storage.open_binary(path) as file:
        file.seek(start)
        data = file.read(end - start)
    try:
        return to_triplet(json_text.loads(data), layout, options, where or path, number)
    except (ValueError, NotUsed) as error:
        raise InputError(f"{where or path}: the file has changed since it was opened ({error})") from None


def _not_used(raw: Any, layout: str, options: TripletOptions, where: str, number: int) -> str | None:
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
    layout: str | None = None if options.layout == "auto" else options.layout
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
