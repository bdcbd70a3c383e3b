"""From a request to what the model reads, on the host."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vlvm_jax.config import AnswerConfig
from vlvm_jax.data.prompt.answers import read_template, render_question
from vlvm_jax.data.prompt.conversation import ANY_PLACEHOLDER, Message, Prompt
from vlvm_jax.data.prompt.guidance import scored_text, scoring_tokenizer
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.data.record import Record
from vlvm_jax.data.sample.assemble import Medium, Sample, assemble
from vlvm_jax.data.sample.loader import SampleLoader
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.errors import InputError
from vlvm_jax.inference.requests import Request
from vlvm_jax.json_text import LONE_SURROGATE


class Prompts:
    """Prepares requests as training prepared its samples: the same frames, template and layout of visual tokens.

    Args:
      positions: that the model has.
      answers: in which words a question is put, and with which its answer begins.

    Attributes:
      longest: tokens of a prompt and its answer at most.
      cut: ids of the requests whose question was cut for the tower that scores frames by it.
    """

    def __init__(self, spec: SampleSpec, positions: int, answers: AnswerConfig | None = None):
        self.spec, self.longest = spec, min(spec.length, positions)
        self.cut: set[str] = set()
        self.answers = answers or AnswerConfig()
        self.template = read_template(self.answers.prompt_template, "config.answers.prompt_template")
        self._limit = "max_position_embeddings" if self.longest == positions else "length"
        self.loader = SampleLoader([], spec)
        self.end_ids = self._end_ids()

    def media(self, request: Request) -> list[Medium]:
        """A request's images and clips, decoded.

        Raises:
          BadSampleError: one of them cannot be used.
        """
        return self.loader.media(Record(request.id, request.id, request.media, (), span=request.span))

    def prompt(self, request: Request) -> Prompt:
        """The conversation as one string.

        Raises:
          InputError: a question is empty, or the placeholders are not the media's.
        """
        if not request.turns or not all(ANY_PLACEHOLDER.sub("", turn.question).strip() for turn in request.turns):
            raise InputError(f"{request.id}: the question is empty; ask something")
        if any(LONE_SURROGATE.search(text) for turn in request.turns for text in (turn.question, turn.answer)):
            raise InputError(f"{request.id}: the question holds half a character (a lone surrogate), which is no text")
        prefix = request.prefix
        if prefix is None:
            prefix = self.answers.options_prefix if request.options else self.answers.prefix
        said = messages(self._put(request))
        if self.answers.system is not None:
            said = [{"role": "system", "content": self.answers.system}, *said]
        return begun(self.loader.template.prompt(said), prefix)

    def _put(self, request: Request) -> Request:
        """A request whose first question stands in the words of the template, its options with it."""
        first, *later = request.turns
        put = render_question(
            first.question, request.options, self.template, append_question_mark=self.answers.append_question_mark
        )
        return dataclasses.replace(request, question=(dataclasses.replace(first, question=put), *later))

    def prompt_ids(self, request: Request) -> Int[np.ndarray, " P"] | None:
        """Ids of what is asked for the tower that scores frames by it; None where there is none."""
        spec = self.spec
        if spec.data.prompt_tokenizer is None:
            return None
        asked = request.scoring_text
        if asked is None:
            question = ANY_PLACEHOLDER.sub("", request.turns[-1].question).strip()
            asked = scored_text(question, request.options, spec.data.clip_text)
        ids, cut = scoring_tokenizer(spec.data.prompt_tokenizer, spec.data.prompt_length)(asked)
        if cut:
            self.cut.add(request.id)
        return ids

    def sample(self, request: Request, prompt: Prompt, media: Sequence[Medium]) -> Sample:
        """The arrays of one prompt, not padded; see `sample.assemble`.

        Raises:
          InputError: it is longer than the model's context.
        """
        tokens = self.loader.tokenize(prompt, [medium.expansion for medium in media])
        self._check_length(request, media, len(tokens.ids), int(tokens.media_mask.sum()))
        slots, taps = self.loader.layout
        return assemble(tokens, media, self.spec.image_size, slots=slots, taps=taps)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.loader.processor.decode(token_ids)

    def _end_ids(self) -> tuple[int, ...]:
        """What ends an answer: by the checkpoint's `generation_config.json` and tokenizer, and by our template."""
        processor, template = self.loader.processor, TEMPLATES.get(self.spec.data.chat_template)
        ends = set(processor.eos_token_ids)
        if template is not None and (mark := template.answer_end.strip()):
            token = processor.backend.token_to_id(mark)
            assert token is not None, mark  # `get_template` refuses such a template
            ends.add(token)
        return tuple(sorted(ends))

    def _check_length(self, request: Request, media: Sequence[Medium], tokens: int, visual: int) -> None:
        if tokens < self.longest:
            return
        parts = [self._counted(medium) for medium in media]
        arithmetic = " + ".join([*parts, f"{tokens - visual} text tokens"])
        raise InputError(
            f"{request.id}: {arithmetic} = {tokens}, which leaves no room for an answer: {self._limit} is "
            f"{self.longest}; take fewer frames or tokens per frame, or ask less at once"
        )

    def _counted(self, medium: Medium) -> str:
        tokens, frames = medium.expansion.num_tokens, len(medium.frames)
        if medium.kind == "image":
            return f"an image's {tokens} tokens"
        each = f"{frames} frames x {tokens // frames}"
        return (
            f"{each} = {tokens} visual tokens" if tokens % frames == 0 else f"{frames} frames' {tokens} visual tokens"
        )


def messages(request: Request) -> list[Message]:
    """The conversation as a template takes it, every placeholder that of its medium's kind."""
    questions = [turn.question for turn in request.turns]
    written = sum(len(ANY_PLACEHOLDER.findall(question)) for question in questions)
    if not written:
        questions[0] = "".join("<image>\n" for _ in request.media) + questions[0]  # its own spaces are kept
    elif written != len(request.media):
        raise InputError(
            f"{request.id}: {written} placeholders (<image>, <video>) for {len(request.media)} images and clips; write "
            "one for each, or none"
        )
    kinds = iter(request.media)
    shown: list[Message] = []
    for turn, question in zip(request.turns, questions, strict=True):
        content = re.sub(ANY_PLACEHOLDER, lambda _: f"<{next(kinds)[0]}>", question)
        shown += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
    return shown[:-1]


def begun(prompt: Prompt, prefix: str) -> Prompt:
    """A prompt with the first words of its answer. Where neither ends or begins with white space, a space is put."""
    if not prefix:
        return prompt
    joined = prompt.text[-1:].isspace() or prefix[:1].isspace()
    return dataclasses.replace(prompt, text=prompt.text + ("" if joined else " ") + prefix)


def padded(values: np.ndarray, size: int) -> np.ndarray:
    """Filled up with zeros along its first axis."""
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])
