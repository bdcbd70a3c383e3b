"""Which of the samples made of texts are kept, by base model (docs/t2vid.md; the paper's code)."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field, PositiveInt

from vlvm_jax.config import FrozenDict, Settings, build
from vlvm_jax.data.pages.text_layouts import LAYOUTS
from vlvm_jax.data.record import PLACEHOLDERS
from vlvm_jax.errors import InputError

TAG = "<video>"


class Filters(Settings):
    """What a sample may be at most; None asks nothing.

    `tokens_per_image` times the pages, and the tokens of question and answer (`sample_text`), may be
    `max_total_tokens`. `max_question_words` are by layout of the source (`text_layouts`); a question must have
    fewer, counted by `question_words`.
    """

    max_images: PositiveInt | None = None
    tokens_per_image: PositiveInt | None = None
    max_total_tokens: PositiveInt | None = None
    max_question_words: Any = Field(default_factory=FrozenDict)


_QUESTION_WORDS = {
    name: layout.max_question_words for name, layout in LAYOUTS.items() if layout.max_question_words is not None
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "minicpm": {"max_images": 90, "tokens_per_image": 96, "max_total_tokens": 8192},
    "sparrow": {"max_images": 100, "tokens_per_image": 96, "max_total_tokens": 10240},
    "idefics3": {"max_images": 65, "tokens_per_image": 169, "max_total_tokens": 10240},
}


def filters(preset: str | None = None, **given: Any) -> Filters:
    """The filters of a base model as released, or none, with what is given instead.

    Args:
      preset: `minicpm` (T2Vid's MiniCPM-V-2.5), `sparrow` (Sparrow's) or `idefics3`; None for no filter.
      given: of `Filters`; None changes nothing. A number for `max_question_words` holds for all layouts.

    Raises:
      InputError: there is no such preset, or a value cannot be.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset={preset}: there are {', '.join(PRESETS)}")
    limits: dict[str, Any] = dict(PRESETS[preset], max_question_words=_QUESTION_WORDS) if preset else {}
    limits |= {key: value for key, value in given.items() if value is not None}
    if isinstance(limits.get("max_question_words"), int):
        limits["max_question_words"] = {"*": limits["max_question_words"]}
    made = build(Filters, limits, "filters")
    if made.max_total_tokens is not None and made.tokens_per_image is None:
        raise InputError("--max_total_tokens counts visual tokens too: give --tokens_per_image")
    return made.model_copy(update={"max_question_words": FrozenDict(made.max_question_words)})


def question_words(question: str) -> int:
    """As the released filter counts them: pieces between single spaces, the video tag and the first word being one."""
    return len(f"{TAG}\n{question}".split(" "))


def sample_text(question: str, answer: str) -> str:
    """What is tokenised to count a sample's text."""
    return f"{TAG}\n{question}\n{answer}"


def reason(
    question: str, answer: str, pages: int, layout: str, limits: Filters, count_tokens: Callable[[str], int]
) -> str | None:
    """Why a sample is dropped, None for one that is kept.

    The reasons, in the order in which they are looked for: `no_pages`, `too_many_pages`, `too_many_tokens`,
    `long_question`, `tag` (a placeholder within the question or the answer).

    Args:
      count_tokens: of a text, the base model's with its special tokens; called where tokens are limited.
    """
    if not pages:
        return "no_pages"
    if limits.max_images is not None and pages > limits.max_images:
        return "too_many_pages"
    if limits.max_total_tokens is not None:
        visual = pages * (limits.tokens_per_image or 0)
        if count_tokens(sample_text(question, answer)) + visual > limits.max_total_tokens:
            return "too_many_tokens"
    words = limits.max_question_words.get(layout, limits.max_question_words.get("*"))
    if words is not None and question_words(question) >= words:
        return "long_question"
    if any(tag in text for tag in PLACEHOLDERS for text in (question, answer)):
        return "tag"
    return None
