"""A checkpoint's chat template in training: the string, what is learned of it, and templates that cannot be used."""

import pytest
from support.hf_checkpoints import CHATML, INST, TOKENIZERS, USER_COLON, UTTERANCES
from transformers import PreTrainedTokenizerFast

from vlvm_jax.data.prompt.checkpoint_template import HFTemplate
from vlvm_jax.data.prompt.conversation import tokenize
from vlvm_jax.data.record import Turn
from vlvm_jax.errors import InputError
from vlvm_jax.families import smolvlm

LLAMA, BYTES = TOKENIZERS["llama_like"](), TOKENIZERS["byte_level"]()
TURNS = [Turn("<image>\nhow many ?", "two"), Turn("why ?", "so")]
QWEN_STRINGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EITHER = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def template(source, tokenizer=BYTES, **options):
    return HFTemplate(tokenizer, source, where="chat_template.jinja", **options)


def learned(prompt):
    return [prompt.text[start:stop] for start, stop in prompt.answers]


# --- the string, and what is learned -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "tokenizer", "expected", "answers"),
    [
        (
            USER_COLON,
            LLAMA,
            "USER: <image>\nhow many ? ASSISTANT: two</s> USER: why ? ASSISTANT: so</s> ",
            [" two</s>", " so</s>"],
        ),
        (
            INST,
            LLAMA,
            "<s>[INST] <image>\nhow many ? [/INST] two</s>[INST] why ? [/INST] so</s>",
            [" two</s>", " so</s>"],
        ),
        (
            CHATML,  # writes 'assistant \n' before an answer that is there and 'assistant\n' before one that is not
            BYTES,
            "<|im_start|>user <image>\nhow many ?<|im_end|><|im_start|>assistant\ntwo<|im_end|>"
            "<|im_start|>user \nwhy ?<|im_end|><|im_start|>assistant\nso<|im_end|>",
            ["two<|im_end|>", "so<|im_end|>"],
        ),
        (
            UTTERANCES,
            BYTES,
            "<|im_start|>User:<image>how many ?<end_of_utterance>\nAssistant: two<end_of_utterance>\n"
            "User: why ?<end_of_utterance>\nAssistant: so<end_of_utterance>\n",
            [" two<end_of_utterance>\n", " so<end_of_utterance>\n"],
        ),
        (
            QWEN_STRINGS,
            BYTES,
            "<|im_start|>user\n<image>\nhow many ?<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
            "<|im_start|>user\nwhy ?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n",
            ["two<|im_end|>\n", "so<|im_end|>\n"],
        ),
        (
            EITHER,
            BYTES,
            "user: <image>how many ?<|im_end|>assistant: two<|im_end|>user: why ?<|im_end|>assistant: so<|im_end|>",
            ["two<|im_end|>", "so<|im_end|>"],
        ),
    ],
    ids=["user_colon", "inst", "chatml", "utterances", "strings", "either"],
)
def test_conversations(source, tokenizer, expected, answers):
    made = template(source, tokenizer)
    prompt = made.conversation(TURNS, ["image"])
    assert prompt.text == expected and learned(prompt) == answers
    assert [prompt.text[m.start : m.stop] for m in prompt.markers] == ["<image>"]
    # The first answer's prompt is what generation starts from.
    question = [{"role": "user", "content": "<image>\nhow many ?"}]
    assert prompt.text[: prompt.answers[0][0]] == made.prompt(question).text
    tokens = tokenize(prompt, [3], tokenizer.backend_tokenizer)
    assert tokens.media_mask.sum() == 3 and not (tokens.media_mask & tokens.loss_mask).any()
    assert tokenizer.decode(tokens.ids[tokens.loss_mask]).replace(" ", "") == "".join(answers).replace(" ", "")


@pytest.mark.parametrize(("source", "special"), [(USER_COLON, True), (INST, False)])
def test_the_beginning_of_the_sequence_is_marked_once(source, special):
    prompt = template(source, LLAMA).conversation(TURNS, ["image"])
    assert prompt.special_tokens is special
    ids = tokenize(prompt, [1], LLAMA.backend_tokenizer).ids.tolist()
    assert ids[0] == LLAMA.bos_token_id and ids.count(LLAMA.bos_token_id) == 1


@pytest.mark.parametrize("answer", ["", " two ", "two</s>", "é 日本", "<video>", "0", "1 or 0", "ASSISTANT: x"])
@pytest.mark.parametrize("source", [USER_COLON, CHATML, QWEN_STRINGS])
def test_any_answer(source, answer):
    tokenizer = LLAMA if source == USER_COLON else BYTES
    ending = {USER_COLON: "</s>", CHATML: "<|im_end|>", QWEN_STRINGS: "<|im_end|>\n"}[source]
    prompt = template(source, tokenizer, video_token="<video>").conversation([Turn("why ?", answer)], [])
    assert learned(prompt) == [(" " if source == USER_COLON else "") + answer + ending]
    assert prompt.markers == ()


def test_placeholders_in_the_text():
    prompt = template(UTTERANCES).conversation([Turn("is <image> like\n<image>\n ?", "no")], ["image", "image"])
    assert prompt.text.startswith("<|im_start|>User: is <image> like\n<image> ?<end_of_utterance>\n")


def test_the_order_of_media_is_that_of_the_text():
    made = template(USER_COLON, video_token="<video>")
    prompt = made.conversation([Turn("<image>\nor <image>\nor <image> ?", "no")], ["video", "image", "video"])
    assert prompt.text.startswith("USER: <image>\n<video>\n<video>\n")
    assert [marker.medium for marker in prompt.markers] == [1, 0, 2]
    assert prompt.kinds == ("video", "image", "video")


def test_another_template_for_clips():
    made = template(UTTERANCES, video_token="<video>", video_template=smolvlm.Family().clip_template)
    prompt = made.conversation([Turn("<image>\nwhat ?", "so")], ["video"])
    assert prompt.text == ("<|im_start|>User: <video>what ?<end_of_utterance>\nAssistant: so<end_of_utterance>\n")
    assert "<image>what" in made.conversation([Turn("<image>\nwhat ?", "so")], ["image"]).text


def test_messages_and_written_prompts():
    made = template(CHATML, video_token="<video>")
    parts = [{"type": "image_url", "image_url": "x"}, {"type": "video"}, {"type": "text", "text": "what ?"}]
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    prompt = made.prompt([system, {"role": "user", "content": parts}])
    assert prompt.text == (
        "<|im_start|>system \nBe brief.<|im_end|><|im_start|>user <image><video>\nwhat ?<|im_end|>"
        "<|im_start|>assistant\n"
    )
    assert prompt.kinds == ("image", "video") and [m.medium for m in prompt.markers] == [0, 1]
    assert made.written(prompt.text) == prompt
    closed = made.prompt([{"role": "user", "content": "what ?"}], add_generation_prompt=False)
    assert closed.text == "<|im_start|>user \nwhat ?<|im_end|>"


@pytest.mark.parametrize(("source", "tokenizer"), [(USER_COLON, LLAMA), (CHATML, BYTES), (QWEN_STRINGS, BYTES)])
def test_a_system_turn_comes_first_and_is_not_learned(source, tokenizer):
    made = template(source, tokenizer)
    prompt, without = (made.conversation(TURNS, ["image"], system=system) for system in ("Be brief.", ""))
    assert prompt.text.endswith(without.text) and "Be brief." in prompt.text.removesuffix(without.text)
    assert learned(prompt) == learned(without)


# --- templates that cannot be used -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %}", "its own earlier part"),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}|{% endfor %}", "its own earlier part"),
        (USER_COLON.replace("'image'", "'picture'"), "shows 0 of 1 images and clips"),
        (UTTERANCES.replace("'<image>'", "'<image><image>'"), "shows 2 of 1 images and clips"),
        ("{{ raise_exception('no such role') }}", r"the chat template fails \(TemplateError: no such role\)"),
        ("{% for %}", r"the chat template fails \(TemplateSyntaxError"),
    ],
)
def test_templates_that_cannot_be_used(source, message):
    with pytest.raises(InputError, match=message) as caught:
        template(source).conversation(TURNS, ["image"])
    assert str(caught.value).startswith("chat_template.jinja: ") and "\n" not in str(caught.value)


def test_a_template_without_a_place_for_instructions():
    source = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}|{% endfor %}"
    with pytest.raises(InputError, match="leaves out the instructions of a system turn"):
        template(source).conversation(TURNS[1:], [], system="Be brief.")


def test_a_tokenizer_without_an_end():
    bare = PreTrainedTokenizerFast(tokenizer_object=BYTES.backend_tokenizer)
    prompt = template("{% for m in messages %}{{ m['content'] }}|{% endfor %}", bare).conversation(TURNS[1:], [])
    assert learned(prompt) == ["so|"]
