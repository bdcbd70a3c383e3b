"""What a model is asked in words around a question, by base model and kind of question.

A template is text with `{question}` and, where it takes them, `{options}`. Ours say what the released ones say in words
of our own (their structure: SlowFast-LLaVA, arXiv 2407.15841; IG-VLM, arXiv 2403.18406); a file with the exact wording
of another project can stand in their place. The media come first, by the chat template.
"""

import re
import string
from collections.abc import Sequence
from pathlib import Path

from vlvm_jax.data.record import short
from vlvm_jax.errors import InputError

OPTION_LABELS = string.ascii_uppercase
_SLOTS = ("question", "options")

_FRAMES = "What you see is a sequence of key frames taken from a video, in order of time."
_GRID = "What you see is one image in which key frames of a video are arranged as a grid, to be read row by row."
_OPEN = (
    "Answer the question briefly, judging by the content and the context of the video as a whole and paying most "
    "attention to notable events, people or objects."
)
_EXPERT = (
    "You are an expert in analysing videos, and your task is to select the option that answers a question about one "
    "best."
)
_ONLY = "Give only the best option."

TEMPLATES = {
    # The question alone; options, where there are any, one per line under it.
    "question": "{question}",
    "options": "{question}\n{options}\n" + _ONLY,
    # SlowFast-LLaVA's and Free Video-LLM's, open-ended and with options.
    "key_frames": f"{_FRAMES} {_OPEN}\nQuestion: {{question}}",
    "key_frames_options": f"{_EXPERT}\n{_FRAMES}\nQuestion: {{question}}\nOptions:\n{{options}}\n{_ONLY}",
    # IG-VLM's.
    "image_grid": f"{_GRID} {_OPEN}\nQuestion: {{question}}",
    "image_grid_options": f"{_EXPERT}\n{_GRID}\nQuestion: {{question}}\nOptions: {{options}}\n{_ONLY}",
}
INLINE = ("image_grid_options",)  # "A: ... B: ..." on one line, where others have "(A) ..." on one each

# How an answer has to begin, for a model that is to go on from there.
PREFIXES = {"open": "Answer: In the video,", "options": "Best option:("}


def read_template(template: str, where: str) -> str:
    """A template for `render_question`: the name of one of ours, the text of a file, or the text itself.

    Args:
      template: a name in `TEMPLATES`, a path that ends in .txt, or text that holds `{question}`.
      where: the key or flag that gave it, for messages.

    Raises:
      InputError: there is no such template, or it has no place for the question or another one that nothing fills.
    """
    if template in TEMPLATES:
        return template
    text = template
    if template.endswith(".txt"):
        file = Path(template).expanduser()
        if not file.is_file():
            raise InputError(f"{where}: there is no file {template}; give one with {{question}} in it")
        text = file.read_text(encoding="utf-8").removesuffix("\n")
    if "{question}" not in text:
        raise InputError(
            f"{where}: {template!r} is no template; give one of {', '.join(TEMPLATES)}, a file ending in .txt or text, "
            "with {question} in it"
        )
    unknown = sorted(set(re.findall(r"\{(\w+)\}", text)) - set(_SLOTS))
    if unknown:
        raise InputError(
            f"{where}: nothing fills {{{unknown[0]}}} of this template; it may hold {{question}}, {{options}}"
        )
    return text


def render_question(question: str, options: Sequence[str], template: str, *, append_question_mark: bool = False) -> str:
    """What the user says: a template with the question and its options in it.

    Args:
      options: without their letters; none for an open-ended question.
      template: a name in `TEMPLATES`, or a text with `{question}`. A name that has no place for options stands for the
        one that has, where there are some: `key_frames` takes them as `key_frames_options` does.
      append_question_mark: one follows every question, also one that ends in it, as in IG-VLM's code.

    Raises:
      InputError: the template has no place for options and there are some, or it has one and there are none.
    """
    if options and f"{template}_options" in TEMPLATES:
        template = f"{template}_options"
    elif options and template == "question":
        template = "options"
    text = TEMPLATES.get(template, template)
    if ("{options}" in text) != bool(options):
        raise InputError(
            f"prompt_template: {template!r} has {'a' if not options else 'no'} place for options, and the question "
            f"{short(question)} has {'none' if not options else len(options)}; give a template "
            f"{'without' if not options else 'with'} {{options}}"
        )
    values = {"question": question + "?" * append_question_mark, "options": listed(options, inline=template in INLINE)}
    return re.sub(r"\{(question|options)\}", lambda slot: values[slot.group(1)], text)


def listed(options: Sequence[str], *, inline: bool = False) -> str:
    """Options with their letters: "(A) red" one per line, or "A: red B: blue"."""
    if len(options) > len(OPTION_LABELS):
        raise InputError(f"{len(options)} options; at most {len(OPTION_LABELS)} have letters")
    if inline:
        return " ".join(f"{letter}: {option}" for letter, option in zip(OPTION_LABELS, options, strict=False))
    return "\n".join(f"({letter}) {option}" for letter, option in zip(OPTION_LABELS, options, strict=False))
