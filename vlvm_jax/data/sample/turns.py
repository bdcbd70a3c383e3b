"""Questions as prompts show them."""

import dataclasses
from collections.abc import Iterable

from vlvm_jax.data.prompt import answers, conversation
from vlvm_jax.data.record import Record, Turn


def bare(turn: Turn) -> str:
    """A question without its placeholders."""
    return turn.question.replace(conversation.PLACEHOLDER, "").strip()


def rendered(turn: Turn, template: str, has_media: bool = True) -> Turn:
    """A turn whose question stands in the template, its placeholders before it."""
    if template == "question" and not turn.options:
        return turn
    media = f"{conversation.PLACEHOLDER}\n" * turn.question.count(conversation.PLACEHOLDER) if has_media else ""
    question = answers.render_question(bare(turn) if has_media else turn.question, turn.options, template)
    return dataclasses.replace(turn, question=media + question)


def split_turns(records: Iterable[Record]) -> list[Record]:
    """One record per question, each asked alone: an earlier answer must not help a later one."""
    alone = []
    for record in records:
        media = "".join(f"{conversation.PLACEHOLDER}\n" for _ in record.media)
        for number, turn in enumerate(record.turns):
            question = turn.question
            if record.media and question.count(conversation.PLACEHOLDER) != len(record.media):
                question = media + question.replace(conversation.PLACEHOLDER, "").strip()
            alone.append(
                dataclasses.replace(
                    record, id=f"{record.id}/{number}", turns=(dataclasses.replace(turn, question=question),)
                )
            )
    return alone
