"""What is asked, how it is answered, and what comes back."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from vlvm_jax.data.record import MediaKind, Turn
from vlvm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Request:
    """One question over images and clips.

    Attributes:
      id: returned with the answer; with `Decoding.seed` it makes what is drawn.
      media: (kind, path) of each image or clip, in the order of their placeholders.
      question: or a conversation, whose last turn has no answer yet. `<image>` or `<video>` may stand once for each
        medium; where none stands, all media come before the first question.
      options: of a multiple-choice question, without their letters; written as the model's prompt template has them.
      prefix: how the answer begins, None: as `AnswerConfig` says. It is part of the prompt, not of what comes back.
      span: seconds from and to which the clips count; None for all of them.
      scoring_text: what an adapter that looks at the question is shown instead of the last one.
    """

    id: str
    media: tuple[tuple[MediaKind, str], ...]
    question: str | tuple[Turn, ...]
    options: tuple[str, ...] = ()
    prefix: str | None = None
    span: tuple[float, float] | None = None
    scoring_text: str | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        return (Turn(self.question, ""),) if isinstance(self.question, str) else tuple(self.question)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are made.

    Attributes:
      max_new_tokens: of an answer at most, fewer where the model's context ends before; None for as many as the
        checkpoint's recipe says (`config.answers`), 128 where it has none.
      temperature: 0 takes the likeliest token each time.
      top_p: above temperature 0, tokens are drawn from the fewest that have this probability together.
      stop: strings that end an answer; they and what follows are cut off.
      seed: of what is drawn.

    Raises:
      InputError: a value that cannot be.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: {self.max_new_tokens}; an answer needs 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature: {self.temperature}; expected 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: {self.top_p} is not in (0, 1]")
        if self.top_p < 1 and not self.temperature:
            raise InputError(f"top_p: {self.top_p} does nothing at temperature 0; set a temperature, or drop it")
        if "" in self.stop:
            raise InputError("stop: an empty string would end every answer at once")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed: {self.seed} is not in [0, 2**32)")


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    Attributes:
      text: without white space around it, without special tokens and stop strings.
      finish: `stop` at an end token or a stop string, `length` when there was room for no more tokens.
      prompt_tokens: visual ones included.
      visual_tokens: of the prompt.
      new_tokens: said, the end token included.
      seconds_vision: of decoding and encoding this question's media; 0 where they were encoded before.
      seconds_prefill, seconds_decode: of the batch that this answer was in.
      picked: what the adapter chose for this question, where it chooses.
    """

    id: str
    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    seconds_vision: float
    seconds_prefill: float
    seconds_decode: float
    picked: dict[str, Any] | None = None


def conversation(earlier: Sequence[Turn], question: str) -> tuple[Turn, ...]:
    """A question after others that have their answers."""
    return (*earlier, Turn(question, ""))
