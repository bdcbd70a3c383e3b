"""A checkpoint's own chat template, rendered as transformers does it, but with bounds (`sandbox`)."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vlvm_jax.data.prompt.conversation import (
    ANY_PLACEHOLDER,
    KINDS,
    PLACEHOLDER,
    Marker,
    Message,
    Prompt,
    is_medium,
    kinds_in,
    literals_in,
    plain_text,
)
from vlvm_jax.data.record import MediaKind, Turn
from vlvm_jax.errors import InputError, brief

_PROBE = "PROBE"


class RefusedTemplateError(InputError):
    """A template is too long, or takes too many steps or too much room: it is not tried again."""


class HFTemplate:
    """A jinja chat template over messages of text, images and clips.

    Args:
      tokenizer: transformers tokenizer of the checkpoint; it renders and names the special tokens.
      template: jinja source.
      where: its file, for messages.
      image_token, video_token: what the template writes for a medium; without a `video_token` clips pass for images.
      video_template: replaces `template` for conversations with clips (SmolVLM).
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        *,
        where: str,
        image_token: str = PLACEHOLDER,
        video_token: str | None = None,
        video_template: str | None = None,
    ):
        self.tokenizer, self.template, self.where = tokenizer, template, where
        self.tokens: dict[MediaKind, str] = {"image": image_token}
        if video_token is not None:
            self.tokens["video"] = video_token
        self.video_template = video_template
        self._known_traits: dict[str, tuple[bool, str]] = {}
        self._refused: dict[str, RefusedTemplateError] = {}

    def conversation(self, turns: Sequence[Turn], kinds: Sequence[MediaKind], *, system: str = "") -> Prompt:
        """Every answer follows the generation prompt, which is what stands before it when it is generated.

        A template that ends answers with no special token (LLaVA-1.5's) gets the tokenizer's end-of-sequence token
        after each, and what it writes after that is not learned: a model that never saw an end would not stop.

        Raises:
          InputError: the template does not show every medium once, or the instructions, or rewrites earlier turns.
        """
        template = self._template_for(kinds)
        takes_lists, ending = self._traits(template)
        waiting = iter(kinds)
        messages: list[Message] = [{"role": "system", "content": _said(system, takes_lists)}] if system else []
        text, earlier, answers = "", "", []
        for turn in turns:
            # Without media, what looks like a placeholder is text.
            said = self._content(turn.question, waiting, takes_lists) if kinds else _said(turn.question, takes_lists)
            messages.append({"role": "user", "content": said})
            asked, whole, header = self._exchange(template, messages, turn.answer + ending)
            shown = header is not None and (turn.answer + ending).strip() in whole[header:]
            if header is None or not shown or not asked.startswith(earlier):
                raise InputError(
                    f"{self.where}: under this chat template a conversation does not start with its own earlier part, "
                    "so its answers cannot be told apart; choose another config.data.chat_template"
                )
            text += asked[len(earlier) :]
            learned = whole.rindex(ending) + len(ending) if ending else len(whole)
            answers.append((len(text), len(text) + learned - header))
            text += whole[header:]
            messages.append({"role": "assistant", "content": _said(turn.answer + ending, takes_lists)})
            earlier = whole
        if system.strip() not in text[: answers[0][0]]:
            raise InputError(
                f"{self.where}: this chat template leaves out the instructions of a system turn; choose another "
                "config.data.chat_template"
            )
        return self._prompt(text, kinds, answers)

    def _exchange(self, template: str, messages: list[Message], answer: str) -> tuple[str, str, int | None]:
        """The conversation up to its generation prompt, the same with the answer, and where there the answer begins
        (None: that cannot be told).

        Most templates write the generation prompt before answers too. LLaVA-OneVision's writes another header there;
        where that ends is told by answers that differ from their first character on.
        """
        takes_lists, _ = self._traits(template)

        def answered(words: str) -> str:
            message = {"role": "assistant", "content": _said(words, takes_lists)}
            return self._render(template, [*messages, message], False)

        asked, whole = self._render(template, messages, True), answered(answer)
        if whole.startswith(asked):
            return asked, whole, len(asked)
        told, header = self._render(template, messages, False), _common_start(answered("0"), answered("1"))
        alike = asked.startswith(told) and header.startswith(told) and whole.startswith(header)
        return asked, whole, len(header) if alike else None

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Prompt:
        """Content is a list of parts, or text in which `<image>` and `<video>` stand for media."""
        kinds: list[MediaKind] = [kind for message in messages for kind in kinds_in(message["content"])]
        template = self._template_for(kinds)
        takes_lists, _ = self._traits(template)
        waiting = iter(kinds)
        shown = []
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                content = self._content(content, waiting, takes_lists)
            elif takes_lists:
                content = [{"type": self._shown(next(waiting))} if is_medium(part) else part for part in content]
            else:
                content = self._content(plain_text(content), waiting, takes_lists)
            shown.append({**message, "content": content})
        return self._prompt(self._render(template, shown, add_generation_prompt), kinds)

    def written(self, text: str) -> Prompt:
        """A string that is a prompt already, with `<image>`, `<video>` or the family's own token for each medium."""
        names: dict[str, MediaKind] = {**KINDS, **{token: kind for kind, token in self.tokens.items()}}
        matches = list(re.finditer("|".join(map(re.escape, names)), text))
        markers = tuple(Marker(match.start(), match.end(), number) for number, match in enumerate(matches))
        kinds: list[MediaKind] = [names[match.group()] for match in matches]
        return Prompt(text, markers, kinds=tuple(kinds), special_tokens=self._needs_special_tokens(text))

    def _prompt(self, text: str, kinds: Sequence[MediaKind], answers: Sequence[tuple[int, int]] = ()) -> Prompt:
        """Finds the media in a rendered conversation: the first image token is the first image, and so on."""
        waiting = {shown: [i for i, kind in enumerate(kinds) if self._shown(kind) == shown] for shown in self.tokens}
        markers = []
        for match in re.finditer("|".join(map(re.escape, self.tokens.values())), text):
            if not kinds or any(start <= match.start() < stop for start, stop in answers):
                continue
            shown = next(kind for kind, token in self.tokens.items() if token == match.group())
            markers.append(Marker(match.start(), match.end(), waiting[shown].pop(0) if waiting[shown] else -1))
        if any(waiting.values()) or any(marker.medium < 0 for marker in markers):
            raise InputError(
                f"{self.where}: this chat template shows {len(markers)} of {len(kinds)} images and clips; "
                "choose another config.data.chat_template"
            )
        literals = literals_in(text, markers, self.tokens.values())
        special = self._needs_special_tokens(text)
        return Prompt(text, tuple(markers), tuple(answers), tuple(kinds), special, literals)

    def _needs_special_tokens(self, text: str) -> bool:
        return self.tokenizer.bos_token is None or not text.startswith(self.tokenizer.bos_token)

    def _content(self, text: str, waiting: Iterator[MediaKind], takes_lists: bool) -> Any:
        """A message's content from text with placeholders. A line end after a placeholder belongs to it: templates
        that show media put their own."""
        first, *rest = ANY_PLACEHOLDER.split(text)
        if not takes_lists:
            return first + "".join(self.tokens[self._shown(next(waiting))] + part for part in rest)
        parts = [{"type": "text", "text": first}] if first or not rest else []
        for part in rest:
            parts.append({"type": self._shown(next(waiting))})
            if part := part.removeprefix("\n"):
                parts.append({"type": "text", "text": part})
        return parts

    def _shown(self, kind: MediaKind) -> MediaKind:
        return kind if kind in self.tokens else "image"

    def _template_for(self, kinds: Sequence[MediaKind]) -> str:
        return self.video_template if self.video_template is not None and "video" in kinds else self.template

    def _traits(self, template: str) -> tuple[bool, str]:
        """Whether content is a list of parts, and what has to be put at the end of answers."""
        if template not in self._known_traits:
            self._known_traits[template] = self._probe(template)
        return self._known_traits[template]

    def _probe(self, template: str) -> tuple[bool, str]:
        probe = [{"role": "user", "content": _said(_PROBE, True)}]
        try:
            shown = self._render(template, probe, False)
            takes_lists = _PROBE in shown and "'text'" not in shown
        except RefusedTemplateError:
            raise
        except InputError:
            takes_lists = False
        exchange = [{"role": role, "content": _said(_PROBE, takes_lists)} for role in ("user", "assistant")]
        after = self._render(template, exchange, False).rpartition(_PROBE)[2]
        added = self.tokenizer.added_tokens_decoder.values()
        ends = any(token.content in after for token in added if token.special)
        return takes_lists, "" if ends else self.tokenizer.eos_token or ""

    def _render(self, template: str, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            from vlvm_jax.data.prompt import sandbox
        except ImportError as error:
            raise InputError(f"config.data.chat_template: 'checkpoint' needs jinja2 ({brief(error)})") from None
        if template in self._refused:
            raise self._refused[template]
        try:
            return sandbox.render(
                template,
                **{**self.tokenizer.special_tokens_map, "tools": None, "documents": None},
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
            )
        except ImportError as error:
            raise InputError(f"config.data.chat_template: 'checkpoint' needs jinja2 ({brief(error)})") from None
        except sandbox.OverBudgetError as error:
            self._refused[template] = RefusedTemplateError(
                f"{self.where}: the chat template takes more than a template may: {brief(error)}; choose another "
                "config.data.chat_template"
            )
            raise self._refused[template] from None
        except Exception as error:  # a template may fail in any way
            raise InputError(
                f"{self.where}: the chat template fails ({type(error).__name__}: {brief(error)})"
            ) from None


def _common_start(one: str, other: str) -> str:
    return "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _said(text: str, takes_lists: bool) -> Any:
    return [{"type": "text", "text": text}] if takes_lists else text
