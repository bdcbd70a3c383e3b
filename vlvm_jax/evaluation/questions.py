"""Questions about clips, as every list of them gives them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlvm_jax.data.record import MediaKind
from vlvm_jax.data.sources.options import Choice


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
    """The questions of one list.

    Attributes:
      format: in which the file was read.
      questions: in the file's order, at least one; no two have the same id.
      digest: sha256 of the files.
      notes: what to tell the user about the list, a line each.
    """

    format: str
    questions: tuple[Question, ...]
    digest: str
    notes: tuple[str, ...] = ()


Draft = tuple[Question, Choice | None]  # a question and its options; the whole list decides which one is right
