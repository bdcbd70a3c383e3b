"""From a conversation to token ids, with visual placeholders laid out and the tokens to be learned marked.

A template makes one string of the turns (`Prompt`); its placeholders become runs of visual positions, with text of
their own in some families (`Expansion`); then the whole string is tokenised at once.
"""

import bisect
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from vlvm_jax.data.records import MediaKind, Turn
from vlvm_jax.errors import InputError

PLACEHOLDER = "<image>"
KINDS: dict[str, MediaKind] = {PLACEHOLDER: "image", "<video>": "video"}
ANY_PLACEHOLDER = re.compile("|".join(KINDS))
Content = str | Sequence[Mapping[str, Any]]  # text with placeholders, or parts {"type": "text"|"image"|"video", ...}
Message = Mapping[str, Any]  # {"role": "user"|"assistant"|"system", "content": Content}


@dataclasses.dataclass(frozen=True)
class Marker:
    """Where a placeholder stands in a prompt, and the number of its medium."""

    start: int
    stop: int
    medium: int


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation as one string.

    Attributes:
      markers: placeholders in the order of the text, which may differ from the order of the media.
      answers: character spans of what is to be learned: answers with what ends them.
      kinds: of the media, in their own order.
      special_tokens: whether the tokenizer still has to put its own special tokens around the string.
    """

    text: str
    markers: tuple[Marker, ...]
    answers: tuple[tuple[int, int], ...] = ()
    kinds: tuple[MediaKind, ...] = ()
    special_tokens: bool = False


@dataclasses.dataclass(frozen=True)
class Expansion:
    """What a placeholder becomes: text, and runs of visual positions by their number.

    `token` stands for a visual position in the tokenizer's vocabulary, if that has one.
    """

    pieces: tuple[str | int, ...]
    token: str = PLACEHOLDER

    @property
    def num_tokens(self) -> int:
        return sum(piece for piece in self.pieces if isinstance(piece, int))


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One sample.

    Attributes:
      ids: [n].
      media_mask: [n] True for visual positions.
      loss_mask: [n] True for tokens to be learned.
      order: the media in the order in which the text shows them.
    """

    ids: Int[np.ndarray, " n"]
    media_mask: Bool[np.ndarray, " n"]
    loss_mask: Bool[np.ndarray, " n"]
    order: tuple[int, ...] = ()


class Template(Protocol):
    """How a conversation becomes one string."""

    def conversation(self, turns: Sequence[Turn], kinds: Sequence[MediaKind]) -> Prompt:
        """Of turns with one `<image>` per medium in their questions, for training: with the answers' spans."""
        ...

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Prompt:
        """Of messages, for an answer to be generated."""
        ...

    def written(self, text: str) -> Prompt:
        """Of a string that is a prompt already, with `<image>` and `<video>` for its media."""
        ...


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Turns between fixed strings. The loss is on answers and what ends them (`answer_end`)."""

    system: str
    user: str
    assistant: str
    user_end: str
    answer_end: str
    bos: str = ""

    def conversation(self, turns: Sequence[Turn], kinds: Sequence[MediaKind]) -> Prompt:
        text, answers = render(turns, self)
        return Prompt(text, _markers(re.finditer(PLACEHOLDER, text)), tuple(answers), tuple(kinds))

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Prompt:
        text = self.bos + self.system
        for message in messages:
            said = plain_text(message["content"])
            if message["role"] == "assistant":
                text += f"{self.assistant}{said}{self.answer_end}"
            elif message["role"] == "user":
                text += f"{self.user}{said}{self.user_end}"
            else:
                raise InputError(
                    f"a message of the role {message['role']!r}: this chat template has a fixed system text and takes "
                    "'user' and 'assistant'"
                )
        if add_generation_prompt:
            text += self.assistant.rstrip(" ")  # the space belongs to the first word of the answer
        return self.written(text)

    def written(self, text: str) -> Prompt:
        places = list(ANY_PLACEHOLDER.finditer(text))
        return Prompt(text, _markers(places), kinds=tuple(KINDS[place.group()] for place in places))


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
TEMPLATES = {
    # LLaVA-1.5's conversation `vicuna_v1`.
    "vicuna_v1": ChatTemplate(VICUNA_SYSTEM, "USER: ", "ASSISTANT: ", " ", "</s>", bos="<s>"),
    # The same without the system sentence: for models trained from scratch, whose every token counts.
    "bare": ChatTemplate("", "USER: ", "ASSISTANT: ", " ", "</s>"),
    # Qwen's ChatML.
    "chatml": ChatTemplate(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        "<|im_end|>\n",
    ),
}


def load_tokenizer(path: str) -> Tokenizer:
    """A `tokenizer.json`, or the directory that holds one."""
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"config.data.tokenizer: {path} holds no tokenizer.json")
    return Tokenizer.from_file(str(file))


def get_template(name: str) -> ChatTemplate:
    if name not in TEMPLATES:
        raise InputError(f"config.data.chat_template: no template {name!r}; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def encode(
    turns: Sequence[Turn],
    media: Sequence[int | Expansion],
    tokenizer: Tokenizer,
    template: Template,
    *,
    loss_on: str = "answer",
    kinds: Sequence[MediaKind] | None = None,
) -> Tokens:
    """Token ids of a conversation; the i-th placeholder becomes `media[i]`, or that many marked positions.

    Which tokens are learned follows from their character offsets in the one string of the template.
    """
    kinds = ("image",) * len(media) if kinds is None else kinds
    return tokenize(template.conversation(turns, kinds), media, tokenizer, loss_on=loss_on)


def tokenize(
    prompt: Prompt, media: Sequence[int | Expansion], tokenizer: Tokenizer, *, loss_on: str = "answer"
) -> Tokens:
    """Token ids of a prompt with its placeholders expanded.

    Where the tokenizer knows the placeholders as special tokens, the string is tokenised whole with one for each run,
    so that the text around them comes out as it does when transformers writes the runs out. Where it does not, the
    text between runs is tokenised piece by piece and visual positions get id 0.

    Raises:
      InputError: there are more or fewer placeholders than media.
    """
    expansions = [m if isinstance(m, Expansion) else Expansion((m,)) for m in media]
    if len(prompt.markers) != len(expansions):
        raise InputError(f"the prompt shows {len(prompt.markers)} placeholders for {len(expansions)} images and clips")
    text, runs, moved = _expand(prompt, expansions)
    answers = [(moved(start), moved(stop)) for start, stop in prompt.answers]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if all(expansion.token in known for expansion in expansions):
        found = _tokens_of(text, runs, tokenizer, prompt.special_tokens)
    else:
        found = _tokens_between(text, runs, tokenizer)
    ids, mask, loss = [], [], []
    for token_id, start, stop, run in found:
        count = 1 if run is None else run.count
        # Byte-level and Llama tokenizers join the space before an answer to its first word.
        learned = loss_on == "all_text" or any(start < b and a < stop for a, b in answers)
        ids += [token_id] * count
        mask += [run is not None] * count
        loss += [run is None and learned] * count
    order = tuple(marker.medium for marker in prompt.markers)
    return Tokens(np.asarray(ids, np.int32), np.asarray(mask, bool), np.asarray(loss, bool), order)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One token's place in the expanded text, which `count` visual positions take."""

    start: int
    stop: int
    count: int


def _expand(prompt: Prompt, expansions: Sequence[Expansion]) -> tuple[str, list[_Run], Callable[[int], int]]:
    """The text with every placeholder expanded, a single token for each run; the runs; and where characters went."""
    text, runs, done = "", [], 0
    ends, shifts = [0], [0]
    for marker in prompt.markers:
        text += prompt.text[done : marker.start]
        for piece in expansions[marker.medium].pieces:
            token = expansions[marker.medium].token
            if isinstance(piece, int):
                runs.append(_Run(len(text), len(text) + len(token), piece))
            text += token if isinstance(piece, int) else piece
        done = marker.stop
        ends.append(done)
        shifts.append(len(text) - done)
    return text + prompt.text[done:], runs, lambda place: place + shifts[bisect.bisect_right(ends, place) - 1]


_Found = Iterator[tuple[int, int, int, _Run | None]]  # id, its characters, and the run that it stands for


def _tokens_of(text: str, runs: Sequence[_Run], tokenizer: Tokenizer, special_tokens: bool) -> _Found:
    waiting = list(reversed(runs))
    encoded = tokenizer.encode(text, add_special_tokens=special_tokens)
    for token_id, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
        visual = bool(waiting) and start <= waiting[-1].start < stop
        yield token_id, start, stop, waiting.pop() if visual else None


def _tokens_between(text: str, runs: Sequence[_Run], tokenizer: Tokenizer) -> _Found:
    done = 0
    for run in (*runs, None):
        piece = text[done : run.start if run else None]
        encoded = tokenizer.encode(piece, add_special_tokens=False)
        for token_id, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            yield token_id, done + start, done + stop, None
        if run:
            yield 0, run.start, run.stop, run
            done = run.stop


def _markers(places: Iterable[re.Match]) -> tuple[Marker, ...]:
    return tuple(Marker(place.start(), place.end(), number) for number, place in enumerate(places))


def plain_text(content: Content) -> str:
    """A message's content as one string, with a placeholder and a line end for each of its images and clips."""
    if isinstance(content, str):
        return content
    shown = {kind: f"{placeholder}\n" for placeholder, kind in KINDS.items()}
    return "".join(shown[_kind(part)] if is_medium(part) else part["text"] for part in content)


def kinds_in(content: Content) -> list[MediaKind]:
    """The media of a message's content, in order."""
    if isinstance(content, str):
        return [KINDS[placeholder] for placeholder in ANY_PLACEHOLDER.findall(content)]
    return [_kind(part) for part in content if is_medium(part)]


def is_medium(part: Mapping[str, Any]) -> bool:
    return part["type"] in ("image", "image_url", "video")


def _kind(part: Mapping[str, Any]) -> MediaKind:
    return "video" if part["type"] == "video" else "image"


def render(turns: Sequence[Turn], template: ChatTemplate) -> tuple[str, list[tuple[int, int]]]:
    """The whole conversation as one string, and the character spans of the answers with their ends."""
    text = template.bos + template.system
    spans = []
    for turn in turns:
        text += f"{template.user}{turn.question}{template.user_end}{template.assistant}"
        spans.append((len(text), len(text) + len(turn.answer) + len(template.answer_end)))
        text += turn.answer + template.answer_end
    return text, spans
