"""Chat templates of this library's own, by name. A checkpoint's own is in `checkpoint_template`."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from vlvm_jax.data.prompt.conversation import (
    ANY_PLACEHOLDER,
    KINDS,
    PLACEHOLDER,
    Message,
    Prompt,
    literals_in,
    markers_at,
    plain_text,
)
from vlvm_jax.data.record import MediaKind, Turn
from vlvm_jax.errors import InputError

_PLACEHOLDERS: dict[str, str] = {kind: placeholder for placeholder, kind in KINDS.items()}


# Of a template whose parts are JSON strings. Media are written as `plain_text` writes them.
_JINJA = """\
{{%- macro said(content) -%}}
  {{%- if content is string -%}}{{{{ content }}}}{{%- else -%}}
    {{%- for part in content -%}}
      {{%- if part.type == "image" -%}}{{{{ "{image}\\n" }}}}
      {{%- elif part.type == "video" -%}}{{{{ "{video}\\n" }}}}
      {{%- else -%}}{{{{ part.text }}}}{{%- endif -%}}
    {{%- endfor -%}}
  {{%- endif -%}}
{{%- endmacro -%}}
{{%- set system = {system} -%}}
{{%- if messages[0].role == "system" -%}}
  {{%- set system = said(messages[0].content) -%}}{{%- set messages = messages[1:] -%}}
{{%- endif -%}}
{{{{ {bos} }}}}
{{%- if system -%}}{{{{ {system_start} + system + {system_end} }}}}{{%- endif -%}}
{{%- for message in messages -%}}
  {{%- if message.role == "user" -%}}{{{{ {user} + said(message.content) + {user_end} }}}}
  {{%- else -%}}{{{{ {assistant} + said(message.content) + {answer_end} }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{ {begins} }}}}{{%- endif -%}}
"""


def _as_written(question: str) -> str:
    return question


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Turns between fixed strings. The loss is on answers and what ends them (`answer_end`).

    Attributes:
      user, user_end: around a question.
      assistant: before an answer.
      bos: before everything.
      between: before every question but the first.
      system: instructions of a conversation that brings none of its own.
      system_start, system_end: around instructions, where there are any.
      system_in_question: instructions stand inside the first question.
      trims: white space around what is said falls away.
      question: how a question is written, its placeholders `<image>` and `<video>` by their kinds.
    """

    user: str
    assistant: str
    user_end: str
    answer_end: str
    bos: str = ""
    between: str = ""
    system: str = ""
    system_start: str = ""
    system_end: str = ""
    system_in_question: bool = False
    trims: bool = False
    question: Callable[[str], str] = _as_written

    def conversation(self, turns: Sequence[Turn], kinds: Sequence[MediaKind], *, system: str = "") -> Prompt:
        waiting = iter(kinds)
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            question = turn.question
            if kinds:  # else what looks like a placeholder is text
                question = re.sub(PLACEHOLDER, lambda _: _PLACEHOLDERS[next(waiting, "image")], question)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": turn.answer}]
        text, answers = self._write(messages)
        places = [
            place
            for place in ANY_PLACEHOLDER.finditer(text)
            if kinds and not any(start <= place.start() < stop for start, stop in answers)
        ]
        markers = markers_at(places)
        return Prompt(text, markers, tuple(answers), tuple(kinds), literals=literals_in(text, markers))

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> Prompt:
        text, _ = self._write(messages)
        if add_generation_prompt:
            text += self.assistant.rstrip(" ")  # the space belongs to the first word of the answer
        return self.written(text)

    def written(self, text: str) -> Prompt:
        places = list(ANY_PLACEHOLDER.finditer(text))
        return Prompt(text, markers_at(places), kinds=tuple(KINDS[place.group()] for place in places))

    def jinja(self) -> str | None:
        """The same as the `chat_template` of a checkpoint; None where questions are rewritten, trimmed or preceded."""
        if self.question is not _as_written or self.trims or self.system_in_question or self.between:
            return None
        own = {name: json.dumps(value) for name, value in vars(self).items() if isinstance(value, str)}
        return _JINJA.format(**own, begins=json.dumps(self.assistant.rstrip(" ")), **_PLACEHOLDERS)

    def _write(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans of the answers with their ends."""
        system = self.system
        if messages and messages[0]["role"] == "system":
            system, messages = plain_text(messages[0]["content"]), messages[1:]
        system = system.strip() if self.trims else system
        instructions = f"{self.system_start}{system}{self.system_end}" if system else ""
        inside, outside = (instructions, "") if self.system_in_question else ("", instructions)
        text, before, answers = self.bos + outside, "", []
        for message in messages:
            said = plain_text(message["content"])
            said = said.strip() if self.trims else said
            if message["role"] == "user":
                text += f"{before}{self.user}{inside}{self.question(said)}{self.user_end}"
                before, inside = self.between, ""
            elif message["role"] == "assistant":
                text += self.assistant
                answers.append((len(text), len(text) + len(said) + len(self.answer_end)))
                text += said + self.answer_end
            else:
                raise InputError(
                    f"a message of the role {message['role']!r}: this chat template takes 'user' and 'assistant', and "
                    "'system' before them"
                )
        return text, answers


def _without_line_ends(question: str) -> str:
    """SmolVLM's: a line end after a placeholder belongs to it, and no space stands before an image that leads."""
    joined = re.sub(f"({ANY_PLACEHOLDER.pattern})\n", r"\1", question)
    return joined if joined.startswith(_PLACEHOLDERS["image"]) else f" {joined}"


def _media_alone(question: str) -> str:
    """LLaVA's pretraining: a caption is learned of the medium, not of the words that ask for it."""
    return "".join(ANY_PLACEHOLDER.findall(question)) or question


TEMPLATES = {
    # LLaVA-1.5's conversation `vicuna_v1`.
    "vicuna_v1": ChatTemplate(
        "USER: ",
        "ASSISTANT: ",
        " ",
        "</s>",
        bos="<s>",
        system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        system_end=" ",
    ),
    # The same without the system sentence: for models trained from scratch, whose every token counts.
    "bare": ChatTemplate("USER: ", "ASSISTANT: ", " ", "</s>", system_end=" "),
    # The same with every role on a line of its own: SlowFast-LLaVA's and Free Video-LLM's prompts for Vicuna.
    "vicuna_lines": ChatTemplate("USER: ", "ASSISTANT:\n", "\n", "</s>", bos="<s>", system_end="\n"),
    # LLaVA's pretraining: the medium, its caption, a line end.
    "plain": ChatTemplate("", "", "", "\n", bos="<s>", system_end="\n", question=_media_alone),
    "llama-2": ChatTemplate(
        "[INST] ",
        " ",
        " [/INST]",
        " </s>",
        bos="<s>",
        between="<s>",
        system_start="<<SYS>>\n",
        system_end="\n<</SYS>>\n\n",
        system_in_question=True,
        trims=True,
    ),
    "llama-3": ChatTemplate(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        system_start="<|start_header_id|>system<|end_header_id|>\n\n",
        system_end="<|eot_id|>",
        trims=True,
    ),
    "mistral": ChatTemplate("[INST] ", " ", " [/INST]", "</s>", bos="<s>", system_end="\n\n", system_in_question=True),
    # Qwen's ChatML.
    "chatml": ChatTemplate(
        "<|im_start|>user\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        "<|im_end|>\n",
        system="You are a helpful assistant.",
        system_start="<|im_start|>system\n",
        system_end="<|im_end|>\n",
    ),
    "smolvlm": ChatTemplate(
        "User:",
        "Assistant: ",
        "<end_of_utterance>\n",
        "<end_of_utterance>\n",
        bos="<|im_start|>",
        system_start="System: ",
        system_end="<end_of_utterance>\n",
        question=_without_line_ends,
    ),
}


def get_template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of that name.

    Raises:
      InputError: there is none, or what begins its conversations or ends its answers is no token of the tokenizer.
    """
    if name not in TEMPLATES:
        raise InputError(f"config.data.chat_template: no template {name!r}; there are {', '.join(TEMPLATES)}")
    template = TEMPLATES[name]
    for mark in (template.bos, template.answer_end.strip()):
        if mark and tokenizer.token_to_id(mark) is None:
            raise InputError(
                f"config.data.chat_template: {name!r} writes {mark}, which is no token of the tokenizer; choose the "
                "model's own template"
            )
    return template
