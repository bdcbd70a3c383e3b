"""From a conversation to token ids, with visual placeholders laid out and the tokens to be learned marked."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from vlvm_jax.data.records import Turn
from vlvm_jax.errors import InputError

PLACEHOLDER = "<image>"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How turns become one string. The loss is on answers and what ends them (`answer_end`)."""

    system: str
    user: str
    assistant: str
    user_end: str
    answer_end: str
    bos: str = ""


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


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One sample: `ids` int32 [n], `media_mask` and `loss_mask` bool [n]."""

    ids: np.ndarray
    media_mask: np.ndarray
    loss_mask: np.ndarray


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
    media_tokens: Sequence[int],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    loss_on: str = "answer",
) -> Tokens:
    """Token ids of a conversation; the i-th placeholder becomes `media_tokens[i]` marked positions.

    The text between placeholders is tokenised whole, so that pieces join as they would in one string; which tokens
    are learned follows from their character offsets.
    """
    text, spans = render(turns, template)
    ids, media, loss = [], [], []
    counts = iter(media_tokens)
    start = 0
    for piece in _split_keeping(text, PLACEHOLDER):
        if piece == PLACEHOLDER:
            count = next(counts)
            ids += [0] * count
            media += [True] * count
            loss += [False] * count
        elif piece:
            encoded = tokenizer.encode(piece, add_special_tokens=False)
            ids += encoded.ids
            media += [False] * len(encoded.ids)
            for begin, end in encoded.offsets:
                # Byte-level and Llama tokenizers join the space before an answer to its first word.
                inside = any(start + begin < b and a < start + end for a, b in spans)
                loss.append(loss_on == "all_text" or inside)
        start += len(piece)
    return Tokens(np.asarray(ids, np.int32), np.asarray(media, bool), np.asarray(loss, bool))


def render(turns: Sequence[Turn], template: ChatTemplate) -> tuple[str, list[tuple[int, int]]]:
    """The whole conversation as one string, and the character spans of the answers with their ends."""
    text = template.bos + template.system
    spans = []
    for turn in turns:
        text += f"{template.user}{turn.question}{template.user_end}{template.assistant}"
        spans.append((len(text), len(text) + len(turn.answer) + len(template.answer_end)))
        text += turn.answer + template.answer_end
    return text, spans


def _split_keeping(text: str, separator: str) -> list[str]:
    parts = text.split(separator)
    return [piece for part in parts for piece in (separator, part)][1:]
