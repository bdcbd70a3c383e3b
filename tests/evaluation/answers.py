"""Answers as the engine gives them, made by hand."""

from vlvm_jax.inference.answering import Answer


def answer_to(request, text, picked=None):
    return Answer(
        id=request.id, text=text, finish="end", prompt_tokens=7, visual_tokens=4, new_tokens=len(text.split()),
        picked=picked,
    )  # fmt: skip
