"""Answers as the engine gives them, made by hand."""

from vlvm_jax.inference.requests import Answer


def answer_to(request, text, picked=None):
    return Answer(
        id=request.id, text=text, finish="stop", prompt_tokens=7, visual_tokens=4, new_tokens=len(text.split()),
        seconds_vision=0.1, seconds_prefill=0.1, seconds_decode=0.1, picked=picked,
    )  # fmt: skip
