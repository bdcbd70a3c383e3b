"""The layouts in which data sets have long texts with a question and its answer.

How text and question of LongAlpaca and LongQLoRA were parted for T2Vid is not public. Here they are parted at the
sentences by which those data sets say where a text begins and ends. Records without such sentences have no long text
and are left out as `short`. BookSum and Natural Questions follow the public converters, except where a text holds the
separator itself: then the last one counts. Labels (`Question:`, `Answer:`) before a question or an answer are dropped
(ours).
"""

import abc
import re
from collections.abc import Mapping
from typing import Any

from vlvm_jax.data.record import check_object, short
from vlvm_jax.errors import InputError

_DOCUMENTS = ("Question: ", "Answer: ")  # labels of Natural Questions
LONG, GOLD = "Long Answer: ", "Gold Document ID: "
_BEGINS = re.compile(r"\b(?:paper|material|book|content)s? begins?\.")
_ENDS = re.compile(r"\bNow the (?:\w+ ){1,2}?ends?\.")


class NotUsed(Exception):
    """A record is no long text with a question; `cause` says why: `short`, `empty` or `answer`."""

    def __init__(self, cause: str):
        super().__init__(cause)
        self.cause = cause


class TextLayout(abc.ABC):
    """A layout.

    Attributes:
      name: in settings and files.
      keys: a record of the layout has these.
      min_words: of a text that is used, unless the settings say otherwise; as the public converters have it.
      max_question_words: a question that T2Vid's released filters keep has fewer; None for no limit.
      as_it_is: texts keep their labels and outer spaces.
    """

    name: str
    keys: tuple[str, ...]
    min_words = 0
    max_question_words: int | None = None
    as_it_is = False

    def matches(self, raw: Mapping[str, Any]) -> bool:
        """Whether a record has the layout's keys."""
        return not _is_one_text(raw) and all(key in raw for key in self.keys)

    @abc.abstractmethod
    def parts(self, raw: Mapping[str, Any], where: str) -> tuple[str, str, str]:
        """A record's context, question and answer.

        Raises:
          NotUsed: it has no long text, or no answer.
          InputError: it does not have the layout.
        """


class _Prompted(TextLayout):
    """A prompt, which holds context and question, and the answer to it."""

    _answer_label = "\nA:"  # in records with a single text

    def parts(self, raw: Mapping[str, Any], where: str) -> tuple[str, str, str]:
        prompt, answer = self._halves(raw, where)
        context, question = self._split(prompt, answer)
        return context, question, answer

    def _halves(self, raw: Mapping[str, Any], where: str) -> tuple[str, str]:
        """The prompt and the answer."""
        if "text" not in raw or all(key in raw for key in self.keys):
            first, second = self.keys
            return _text(raw, first, where), _text(raw, second, where)
        prompt, separator, answer = _text(raw, "text", where).rpartition(self._answer_label)
        if not separator:
            raise NotUsed("answer")
        return prompt, answer

    @abc.abstractmethod
    def _split(self, prompt: str, answer: str) -> tuple[str, str]:
        """The context and the question of a prompt."""


class NaturalQuestions(_Prompted):
    """{"prompt", "completion"} or {"text"} of Long-Data-Collections: documents, `Question: `, `Answer: `."""

    name = "natural_questions"
    keys = ("prompt", "completion")
    min_words = 3000
    _answer_label = "\nAnswer:"

    def matches(self, raw: Mapping[str, Any]) -> bool:
        if _is_one_text(raw):
            return GOLD in str(raw["text"])
        return super().matches(raw) and GOLD in str(raw["completion"])

    def _halves(self, raw: Mapping[str, Any], where: str) -> tuple[str, str]:
        prompt, answer = super()._halves(raw, where)
        one_text = "text" in raw and not all(key in raw for key in self.keys)
        return prompt, f"{self._answer_label.strip()}{answer}" if one_text else answer

    def _split(self, prompt: str, answer: str) -> tuple[str, str]:
        context, question = _parted(prompt, _DOCUMENTS[0])
        return context, _asked(_unlabelled_end(question))


class Triplets(TextLayout):
    """{"context", "question", "answer"}; also what `data synthesize --format=triplets` writes."""

    name = "triplets"
    keys = ("context", "question", "answer")
    as_it_is = True

    def parts(self, raw: Mapping[str, Any], where: str) -> tuple[str, str, str]:
        context, question, answer = (_text(raw, key, where) for key in self.keys)
        return context, question, answer


class LongAlpaca(_Prompted):
    """{"instruction", "output"} of LongAlpaca-12k: text and question in one instruction."""

    name = "long_alpaca"
    keys = ("instruction", "output")
    max_question_words = 500

    def _split(self, prompt: str, answer: str) -> tuple[str, str]:
        return _marked(prompt)


class LongQLoRA(_Prompted):
    """{"input", "output"} of LongQLoRA's 39k: a record is like one of LongAlpaca, Natural Questions or BookSum."""

    name = "long_qlora"
    keys = ("input", "output")
    max_question_words = 30

    def _split(self, prompt: str, answer: str) -> tuple[str, str]:
        if _ENDS.search(prompt):
            return _marked(prompt)
        if LONG in answer and _DOCUMENTS[0] in prompt:
            context, question = _parted(prompt, _DOCUMENTS[0])
            return context, _unlabelled_end(question)
        if "\nQ:" in prompt:
            context, question = _parted(prompt, "\nQ:")
            return context, re.sub(r"\s*A:\s*$", "", question)
        raise NotUsed("short")


class BookSum(_Prompted):
    """{"prompt", "completion"} or {"text"} of Long-Data-Collections: text, `Q: `, `A:`."""

    name = "booksum"
    keys = ("prompt", "completion")
    min_words = 3000

    def matches(self, raw: Mapping[str, Any]) -> bool:
        return _is_one_text(raw) or super().matches(raw)

    def _split(self, prompt: str, answer: str) -> tuple[str, str]:
        context, question = _parted(prompt, "Q:")
        return context, question.rpartition("A:")[0] or question


# By name. A record has the first of these that it matches.
LAYOUTS: Mapping[str, TextLayout] = {
    layout.name: layout for layout in (NaturalQuestions(), Triplets(), LongAlpaca(), LongQLoRA(), BookSum())
}


def detect(raw: Any, where: str) -> str:
    """The name of the layout that a record has.

    Raises:
      InputError: it has none.
    """
    check_object(raw, where)
    for name, layout in LAYOUTS.items():
        if layout.matches(raw):
            return name
    raise InputError(
        f"{where}: expected 'context', 'question' and 'answer', or the keys of LongAlpaca ('instruction', 'output'), "
        f"LongQLoRA ('input', 'output'), BookSum or Natural Questions ('prompt', 'completion'); its keys are "
        f"{short(sorted(raw))}"
    )


def _is_one_text(raw: Mapping[str, Any]) -> bool:
    return "text" in raw and "context" not in raw


def _text(raw: Mapping[str, Any], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} must be a text, found {short(value)}")
    return value


def _marked(text: str) -> tuple[str, str]:
    """The context and the question of an instruction that says where its text begins and ends."""
    ends = list(_ENDS.finditer(text))
    if not ends:
        raise NotUsed("short")
    head = text[: ends[-1].start()]
    begins = _BEGINS.search(head)
    # Without the sentence the text begins after the instruction's first line.
    start = begins.end() if begins and begins.start() < 1000 else head.find("\n") + 1
    return head[start:], text[ends[-1].end() :]


def _parted(text: str, label: str) -> tuple[str, str]:
    context, separator, question = text.rpartition(label)
    if not separator:
        raise NotUsed("short")
    return context, question


def _unlabelled_end(question: str) -> str:
    return re.sub(r"\s*Answer:\s*$", "", question)


def _asked(question: str) -> str:
    """A question of Natural Questions, which has neither capitals nor a question mark."""
    question = question.strip().capitalize()
    return question if not question or question.endswith(("?", "\uff1f")) else f"{question}?"


def short_answer(answer: str) -> str:
    """The short answer and the number of its document, of an answer with a long part."""
    said, _, rest = answer.strip().partition(LONG)
    brief = said.partition("Answer: ")[2].strip()
    gold = rest.partition(GOLD)[2].strip()
    if not brief or not gold:
        raise NotUsed("answer")
    return f"{brief}\nDocument ID: {gold}"
