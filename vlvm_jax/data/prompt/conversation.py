"""From a conversation to token ids, with visual placeholders laid out and the tokens to be learned marked.

A template makes one string of the turns (`Prompt`); its placeholders become runs of visual positions, with text of
their own in some families (`Expansion`); then the whole string is tokenised at once.
"""

import bisect
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from vlvm_jax import storage
from vlvm_jax.data.record import MediaKind, Turn
from vlvm_jax.errors import InputError

PLACEHOLDER = "<image>"
KINDS: dict[str, MediaKind] = {PLACEHOLDER: "image", "<video>": "video"}
ANY_PLACEHOLDER = re.compile("|".join(KINDS))
_PRIVATE = 0xF0000  # first character of a plane for private use, which no text has
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
      literals: character spans of what looks like a placeholder but is text, as in an answer about HTML.
    """

    text: str
    markers: tuple[Marker, ...]
    answers: tuple[tuple[int, int], ...] = ()
    kinds: tuple[MediaKind, ...] = ()
    special_tokens: bool = False
    literals: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Expansion:
    """What a placeholder becomes: text, and runs of visual positions by their number.

    `token` stands for a visual position in the tokenizer's vocabulary, if that has one. `note` is a sentence that
    follows on a line of its own.
    """

    pieces: tuple[str | int, ...]
    token: str = PLACEHOLDER
    note: str = ""

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

    def conversation(self, turns: Sequence[Turn], kinds: Sequence[MediaKind], *, system: str = "") -> Prompt:
        """Of turns with one `<image>` per medium in their questions, for training: with the answers' spans.

        Args:
          system: instructions before the first turn, instead of those that the template may have of its own.
        """
        ...

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Prompt:
        """Of messages, for an answer to be generated."""
        ...

    def written(self, text: str) -> Prompt:
        """Of a string that is a prompt already, with `<image>` and `<video>` for its media."""
        ...


def load_tokenizer(path: str) -> Tokenizer:
    """A `tokenizer.json`, or the directory that holds one."""
    file = path if storage.is_remote(path) else str(Path(path).expanduser())
    try:
        text = storage.read_bytes(f"{file}/tokenizer.json" if storage.is_dir(file) else file)
    except FileNotFoundError:
        raise InputError(f"config.data.tokenizer: {path} holds no tokenizer.json") from None
    return Tokenizer.from_str(text.decode())


def encode(
    turns: Sequence[Turn],
    media: Sequence[int | Expansion],
    tokenizer: Tokenizer,
    template: Template,
    *,
    loss_on: str = "answer",
    kinds: Sequence[MediaKind] | None = None,
    system: str = "",
) -> Tokens:
    """Token ids of a conversation; the i-th placeholder becomes `media[i]`, or that many marked positions.

    Which tokens are learned follows from their character offsets in the one string of the template.
    """
    kinds = ("image",) * len(media) if kinds is None else kinds
    return tokenize(template.conversation(turns, kinds, system=system), media, tokenizer, loss_on=loss_on)


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
    literals = [(moved(start), moved(stop)) for start, stop in prompt.literals]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if all(expansion.token in known for expansion in expansions):
        tokens = _tokens_of(text, runs, tokenizer, prompt.special_tokens, literals)
    else:
        tokens = _tokens_between(text, runs, tokenizer, literals)
    ids, mask, loss = [], [], []
    for token_id, start, stop, run in tokens:
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
        expansion = expansions[marker.medium]
        for piece in expansion.pieces:
            if isinstance(piece, int):
                runs.append(_Run(len(text), len(text) + len(expansion.token), piece))
            text += expansion.token if isinstance(piece, int) else piece
        done = marker.stop
        if expansion.note:
            text += f"\n{expansion.note}" + ("" if prompt.text.startswith("\n", done) else "\n")
        ends.append(done)
        shifts.append(len(text) - done)
    return text + prompt.text[done:], runs, lambda place: place + shifts[bisect.bisect_right(ends, place) - 1]


_Found = Iterator[tuple[int, int, int, _Run | None]]  # id, its characters, and the run that it stands for


def _tokens_of(
    text: str, runs: Sequence[_Run], tokenizer: Tokenizer, special_tokens: bool, literals: Sequence[tuple[int, int]]
) -> _Found:
    waiting = list(reversed(runs))
    for token_id, start, stop in _encoded(text, tokenizer, special_tokens, literals):
        visual = bool(waiting) and start <= waiting[-1].start < stop
        yield token_id, start, stop, waiting.pop() if visual else None


def _tokens_between(
    text: str, runs: Sequence[_Run], tokenizer: Tokenizer, literals: Sequence[tuple[int, int]]
) -> _Found:
    done = 0
    for run in (*runs, None):
        end = run.start if run else len(text)
        inside = [(start - done, stop - done) for start, stop in literals if done <= start < end]
        for token_id, start, stop in _encoded(text[done:end], tokenizer, False, inside):
            yield token_id, done + start, done + stop, None
        if run:
            yield 0, run.start, run.stop, run
            done = run.stop


def _encoded(
    text: str, tokenizer: Tokenizer, special_tokens: bool, literals: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Id and characters of each token of a text; literals are tokenized like any text, not as special tokens."""
    spelled = {text[start:stop] for start, stop in literals}
    spelled &= {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if not spelled:
        encoded = tokenizer.encode(text, add_special_tokens=special_tokens)
        yield from ((token_id, *place) for token_id, place in zip(encoded.ids, encoded.offsets, strict=True))
        return
    without = _renamed(tokenizer, tuple(sorted(spelled)))
    taken = {start for start, _ in literals}
    changed = re.sub(
        "|".join(map(re.escape, sorted(spelled, key=len, reverse=True))),
        lambda match: match.group() if match.start() in taken else without.names[match.group()],
        text,
    )
    encoded = without.tokenizer.encode(changed, add_special_tokens=special_tokens)
    for token_id, place in zip(encoded.ids, encoded.offsets, strict=True):
        yield without.ids.get(token_id, token_id), *place


@dataclasses.dataclass(frozen=True)
class _Renamed:
    """A tokenizer in which some added tokens have other names, so that their usual names are plain text.

    Attributes:
      names: the other name of each, of the same length.
      ids: the original id of each token that has another one here.
    """

    tokenizer: Tokenizer
    names: Mapping[str, str]
    ids: Mapping[int, int]


_RENAMED: dict[tuple[int, tuple[str, ...]], tuple[Tokenizer, _Renamed]] = {}  # by tokenizer, which stays alive with it


def _renamed(tokenizer: Tokenizer, spelled: tuple[str, ...]) -> _Renamed:
    key = (id(tokenizer), spelled)
    if key not in _RENAMED:
        names = {
            one: chr(_PRIVATE + number) + chr(_PRIVATE + len(spelled)) * (len(one) - 1)
            for number, one in enumerate(spelled)
        }
        made = json.loads(tokenizer.to_str())
        for token in made["added_tokens"]:
            if token["content"] in names:
                token["content"], token["normalized"] = names[token["content"]], False
        vocabulary = made["model"]["vocab"]  # may hold them too, and some models look whole words up there
        if isinstance(vocabulary, dict):
            made["model"]["vocab"] = {names.get(word, word): number for word, number in vocabulary.items()}
        else:
            made["model"]["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
        changed = Tokenizer.from_str(json.dumps(made))
        ids = {}
        for token_id, token in tokenizer.get_added_tokens_decoder().items():
            here = changed.token_to_id(names.get(token.content, token.content))
            assert here is not None, token.content
            if here != token_id:
                ids[here] = token_id
        _RENAMED[key] = tokenizer, _Renamed(changed, names, ids)
    return _RENAMED[key][1]


def markers_at(places: Iterable[re.Match]) -> tuple[Marker, ...]:
    """One for each match, the media in the order of the text."""
    return tuple(Marker(place.start(), place.end(), number) for number, place in enumerate(places))


def literals_in(text: str, markers: Iterable[Marker], tokens: Iterable[str] = ()) -> tuple[tuple[int, int], ...]:
    """Character spans of what is spelled like a placeholder, or like one of these tokens, but is no marker."""
    taken = {marker.start for marker in markers}
    spelled = sorted({*KINDS, *tokens}, key=len, reverse=True)
    places = re.finditer("|".join(map(re.escape, spelled)), text)
    return tuple(place.span() for place in places if place.start() not in taken)


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
