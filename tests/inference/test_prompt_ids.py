"""A prompt's token ids against transformers' own processor: white space, other scripts, long questions."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import tiny_checkpoints as tiny
from support.hf_checkpoints import FAMILIES, processor

from vlvm_jax.data.record import Turn
from vlvm_jax.errors import InputError
from vlvm_jax.inference.loading import load
from vlvm_jax.inference.prompts import Prompts
from vlvm_jax.inference.requests import Request, conversation

QUESTIONS = {
    "trailing spaces": "what is it ?  ",
    "leading spaces": "  what is it ?",
    "inner spaces": "what  is   it ?",
    "line ends": "\n\nwhat is it ?\n\n",
    "tabs": "\twhat\tis it ?\t",
    "no-break and wide spaces": "\u00a0what is it ?\u3000",
    "separators": "what\u2028is\x85it\x0c?",
    "chinese": "视频里发生了什么\uff1f",
    "arabic": "ماذا يحدث في الفيديو؟",
    "emoji": "👩\u200d👩\u200d👧 🎬 ?",
    "combining": "Cafe\u0301 \u1112\u1161\u11ab",
}
LONG = "红 what ماذا 🎬 " * 700  # some 10,000 characters


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    made = {}

    def load_prompts(family: str, tokenizer: str = "byte_level") -> Prompts:
        if (family, tokenizer) not in made:
            folder = tiny.checkpoint(tmp_path_factory.mktemp(family), family, tokenizer)
            made[family, tokenizer] = load(str(folder), frames=4).prompts
        return made[family, tokenizer]

    return load_prompts


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return tiny.picture(tmp_path_factory.mktemp("picture") / "1.png")


def theirs(family, tokenizer, question, picture):
    """Ids of transformers' processor for the same question."""
    if family == "smolvlm":
        pytest.importorskip("num2words")
    hf: Any = processor(family, tokenizer)
    content = [{"type": "image"}] * (picture is not None) + [{"type": "text", "text": question}]
    shown = hf.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    special = not (hf.tokenizer.bos_token and shown.startswith(hf.tokenizer.bos_token))
    images = None if picture is None else [Image.open(picture).convert("RGB")]
    return np.asarray(hf(text=shown, images=images, add_special_tokens=special)["input_ids"]).reshape(-1)


def ours(prompts, question, picture):
    request = Request("1", () if picture is None else (("image", picture),), question)
    return prompts.sample(request, prompts.prompt(request), prompts.media(request))["token_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_transformers_own(prompts, picture, family):
    """The question is tokenized as it stands, with and without a picture before it."""
    for name, question in QUESTIONS.items():
        for shown in (None, picture):
            expected = theirs(family, "byte_level", question, shown)
            np.testing.assert_array_equal(ours(prompts(family), question, shown), expected, err_msg=name)


def test_ids_of_a_tokenizer_that_puts_spaces_before_words(prompts, picture):
    for name, question in QUESTIONS.items():
        expected = theirs("llava", "llama_like", question, picture)
        np.testing.assert_array_equal(ours(prompts("llava", "llama_like"), question, picture), expected, err_msg=name)


def test_later_questions_keep_their_spaces(prompts):
    turns = conversation(conversation((), " what ? "), " why ? ")
    text = prompts("llava").prompt(Request("1", (), turns)).text
    assert "USER:  what ?  ASSISTANT:" in text and text.endswith("USER:  why ?  ASSISTANT:")


@pytest.mark.parametrize("question", ["what \ud83d ?", (Turn("a \udc80", "b"), Turn("c", ""))])
def test_half_a_character_is_refused(prompts, question):
    with pytest.raises(InputError, match="1: the question holds half a character"):
        prompts("llava").prompt(Request("1", (), question))


def test_a_long_question_is_read_whole_or_refused_in_one_line(prompts, picture):
    loaded = prompts("llava")
    longest, loaded.longest = loaded.longest, 100_000
    np.testing.assert_array_equal(ours(loaded, LONG, picture), theirs("llava", "byte_level", LONG, picture))
    loaded.longest = longest
    with pytest.raises(InputError, match=r"1: an image's 16 tokens \+ \d+ text tokens = \d+, .*is 512") as error:
        ours(loaded, LONG, picture)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
