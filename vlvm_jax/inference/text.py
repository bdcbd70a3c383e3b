"""The text of one answer as its tokens come: what can be shown already, and where it ends."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

_UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character


class AnswerText:
    """The text of an answer as its tokens come.

    Args:
    decode: token ids to text, without special tokens.
    end_ids: tokens that end the answer.
    stop: strings that end it; they may begin and end within tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], end_ids: Iterable[int], stop: tuple[str, ...] = ()):
        self.decode, self.end_ids, self.stop = decode, frozenset(end_ids), stop
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length"] | None = None
        self._shown = ""
        self._ended_by_token = False

    @property
    def new_tokens(self) -> int:
        """Tokens that were said, the end token included."""
        return len(self.tokens) + self._ended_by_token

    @property
    def text(self) -> str:
        """All of it, once it is finished."""
        return self._cut(self.decode(self.tokens)).strip()

    def push(self, tokens: Iterable[int]) -> str:
        """Takes the next tokens; returns what can be shown now. Nothing counts after the end.

        Held back are white space, the start of a character and what may be the start of a stop string.
        """
        for token in tokens:
            if self.finish is not None:
                break
            if token in self.end_ids:
                self.finish, self._ended_by_token = "stop", True
            else:
                self.tokens.append(token)
        text = self.decode(self.tokens)
        if self._cut(text) != text:
            self.finish, self._ended_by_token = "stop", False
            while self._stops(self.tokens[:-1]):
                self.tokens.pop()
        if self.finish is not None:
            return self._show(self.text)
        text = text.rstrip(_UNFINISHED)  # with its leading spaces, with which a stop string may begin
        held = max((n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return self._show(text[: len(text) - held].strip())

    def close(self) -> str:
        """There are no more tokens; returns what is left to show."""
        if self.finish is None:
            self.finish = "length"
        return self._show(self.text)

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._shown += new
        return new

    def _stops(self, tokens: Sequence[int]) -> bool:
        text = self.decode(tokens)
        return self._cut(text) != text

    def _cut(self, text: str) -> str:
        """What stands before the stop string that is complete first; so however many tokens come at a time."""
        stops = [(place + len(stop), place) for stop in self.stop if (place := text.find(stop)) >= 0]
        return text[: min(stops)[1]] if stops else text
