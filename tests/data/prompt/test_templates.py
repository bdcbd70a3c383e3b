"""Built-in chat templates: the families' published strings, and a mask on exactly the answers and what ends them."""

import itertools

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlvm_jax.data.prompt import sandbox
from vlvm_jax.data.prompt.conversation import Expansion, encode, tokenize
from vlvm_jax.data.prompt.templates import TEMPLATES, get_template
from vlvm_jax.data.record import Turn
from vlvm_jax.errors import InputError

# The jinja sources that the families publish, but for their checks of the order of roles.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PUBLISHED = {
    "llama-2": (LLAMA_2, "<s>", "</s>"),
    "llama-3": (LLAMA_3, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "chatml": (QWEN2, None, "<|im_end|>"),
    "smolvlm": (SMOLVLM, "<|im_start|>", "<end_of_utterance>"),
}
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
MARKS = ["<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS += ["<|im_start|>", "<|im_end|>", "<end_of_utterance>"]


def characters():
    """Every byte is a token, and every mark: what is learned can be told to the character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return made


CHARACTERS = characters()


def parts(text):
    """A message's content as SmolVLM's template takes it."""
    first, *rest = text.replace("<image>\n", "<image>").split("<image>")
    said = [{"type": "text", "text": first}] if first or not rest else []
    for words in rest:
        said += [{"type": "image"}, *([{"type": "text", "text": words}] if words else [])]
    return said


def published(name, messages, add_generation_prompt=False):
    """What transformers makes of messages with the family's own template."""
    source, bos, eos = PUBLISHED[name]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=CHARACTERS, bos_token=bos, eos_token=eos)
    if name == "smolvlm":
        messages = [{**message, "content": parts(message["content"])} for message in messages]
    return tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def messages_of(turns, system=""):
    said = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        said += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    return said


CONVERSATIONS = {
    "text": [Turn("hi", "yes")],
    "image first": [Turn("<image>\nhow many ?", "two")],
    "image in the middle": [Turn("what is <image> about ?", "a cat")],
    "three turns": [Turn("<image>\n<image>\nwhich ?", "the first"), Turn("why ?", "so"), Turn("<image>\nthis ?", "no")],
    "several lines": [Turn("one\ntwo\n\nthree", "a\nb"), Turn("é 日本 🙂", "12 </p>")],
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("system", ["", "Be brief.\nAnswer in one word."])
def test_the_string_is_that_of_the_family(name, turns, system):
    count = sum(turn.question.count("<image>") for turn in turns)
    prompt = TEMPLATES[name].conversation(turns, ["image"] * count, system=system)
    assert prompt.text == published(name, messages_of(turns, system))
    assert [prompt.text[m.start : m.stop] for m in prompt.markers] == ["<image>"] * count
    # What an answer is generated from is what stood before it in training, but for a last space.
    asked = messages_of(turns, system)[:-1]
    generated = TEMPLATES[name].prompt(asked)
    assert generated.text == published(name, asked, add_generation_prompt=True)
    assert generated.text == prompt.text[: prompt.answers[-1][0]].rstrip(" ")


@pytest.mark.parametrize("name", ["llama-2", "llama-3"])
def test_white_space_falls_away_where_the_family_has_it_so(name):
    turns = [Turn(" hi \n", "\nyes  ")]
    assert TEMPLATES[name].conversation(turns, []).text == published(name, messages_of(turns))


def test_a_smolvlm_clip_after_its_space():
    assert TEMPLATES["smolvlm"].conversation([Turn("<image>\nwhat ?", "so")], ["video"]).text == (
        "<|im_start|>User: <video>what ?<end_of_utterance>\nAssistant: so<end_of_utterance>\n"
    )


# Segments by hand: "+" is learned, "-" is not, a number is visual positions. The two exchanges are
# ("<image>\nwhich ?", "left") and ("why ?", "so").
MASKS = {
    "vicuna_v1": [
        ("-", f"<s>{VICUNA_SYSTEM}USER: "), 3, ("-", "\nwhich ? ASSISTANT: "), ("+", "left</s>"),
        ("-", "USER: why ? ASSISTANT: "), ("+", "so</s>"),
    ],
    "bare": [
        ("-", "USER: "), 3, ("-", "\nwhich ? ASSISTANT: "), ("+", "left</s>"), ("-", "USER: why ? ASSISTANT: "),
        ("+", "so</s>"),
    ],
    "vicuna_lines": [
        ("-", "<s>USER: "), 3, ("-", "\nwhich ?\nASSISTANT:\n"), ("+", "left</s>"), ("-", "USER: why ?\nASSISTANT:\n"),
        ("+", "so</s>"),
    ],
    "plain": [("-", "<s>"), 3, ("+", "left\n"), ("-", "why ?"), ("+", "so\n")],
    "llama-2": [
        ("-", "<s>[INST] "), 3, ("-", "\nwhich ? [/INST] "), ("+", "left </s>"), ("-", "<s>[INST] why ? [/INST] "),
        ("+", "so </s>"),
    ],
    "llama-3": [
        ("-", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"), 3,
        ("-", "\nwhich ?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"), ("+", "left<|eot_id|>"),
        ("-", "<|start_header_id|>user<|end_header_id|>\n\nwhy ?<|eot_id|>"),
        ("-", "<|start_header_id|>assistant<|end_header_id|>\n\n"), ("+", "so<|eot_id|>"),
    ],
    "mistral": [
        ("-", "<s>[INST] "), 3, ("-", "\nwhich ? [/INST] "), ("+", "left</s>"), ("-", "[INST] why ? [/INST] "),
        ("+", "so</s>"),
    ],
    "chatml": [
        ("-", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"), 3,
        ("-", "\nwhich ?<|im_end|>\n<|im_start|>assistant\n"), ("+", "left<|im_end|>\n"),
        ("-", "<|im_start|>user\nwhy ?<|im_end|>\n<|im_start|>assistant\n"), ("+", "so<|im_end|>\n"),
    ],
    "smolvlm": [
        ("-", "<|im_start|>User:"), 3, ("-", "which ?<end_of_utterance>\nAssistant: "),
        ("+", "left<end_of_utterance>\n"), ("-", "User: why ?<end_of_utterance>\nAssistant: "),
        ("+", "so<end_of_utterance>\n"),
    ],
}  # fmt: skip
SYSTEMS = {  # what stands where without instructions the first question's words begin, and what of those goes
    "vicuna_v1": ("<s>Be brief. USER: ", f"<s>{VICUNA_SYSTEM}USER: "),
    "bare": ("Be brief. USER: ", "USER: "),
    "vicuna_lines": ("<s>Be brief.\nUSER: ", "<s>USER: "),
    "plain": ("<s>Be brief.\n", "<s>"),
    "llama-2": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n", "<s>[INST] "),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    ),
    "mistral": ("<s>[INST] Be brief.\n\n", "<s>[INST] "),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    ),
    "smolvlm": ("<|im_start|>System: Be brief.<end_of_utterance>\nUser:", "<|im_start|>User:"),
}


def expected(segments):
    """ids, media_mask and loss_mask of segments."""
    rows = []
    for segment in segments:
        if isinstance(segment, int):
            rows += [(0, True, False)] * segment
        else:
            learned, text = segment
            rows += [(i, False, learned == "+") for i in CHARACTERS.encode(text, add_special_tokens=False).ids]
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_every_template_is_tested():
    assert MASKS.keys() == SYSTEMS.keys() == TEMPLATES.keys()


TURNS = [Turn("<image>\nwhich ?", "left"), Turn("why ?", "so")]


@pytest.mark.parametrize("loss_on", ["answer", "all_text"])
@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("name", MASKS)
def test_each_token_is_learned_or_not(name, system, loss_on):
    segments = MASKS[name]
    if system:
        given, usual = SYSTEMS[name]
        assert segments[0] == ("-", usual)
        segments = [("-", given), *segments[1:]]
    tokens = encode(TURNS, [3], CHARACTERS, TEMPLATES[name], loss_on=loss_on, system=system)
    ids, media, learned = expected(segments)
    np.testing.assert_array_equal(tokens.ids, ids)
    np.testing.assert_array_equal(tokens.media_mask, media)
    np.testing.assert_array_equal(tokens.loss_mask, learned if loss_on == "answer" else ~media)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_beginning_is_marked_as_often_as_the_family_does(name):
    tokens = encode(TURNS, [3], CHARACTERS, TEMPLATES[name])
    bos = TEMPLATES[name].bos
    if not bos:
        assert tokens.ids[0] not in [CHARACTERS.token_to_id(mark) for mark in ("<s>", "<|begin_of_text|>")]
        return
    begins = tokens.ids.tolist().count(CHARACTERS.token_to_id(bos))
    assert CHARACTERS.id_to_token(int(tokens.ids[0])) == bos
    assert begins == (2 if name == "llama-2" else 1)  # Llama 2 begins every exchange anew


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kinds", list(itertools.product(["image", "video"], repeat=2)))
def test_media_of_both_kinds_in_any_order(name, kinds):
    turns = [Turn("<image>\nor <image>\n?", "left"), Turn("why ?", "so")]
    tokens = encode(turns, [2, 3], CHARACTERS, TEMPLATES[name], kinds=kinds)
    assert tokens.media_mask.sum() == 5 and tokens.order == (0, 1)
    learned = CHARACTERS.decode(tokens.ids[tokens.loss_mask], skip_special_tokens=False)
    end = TEMPLATES[name].answer_end
    assert learned == f"left{end}so{end}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_placeholders_in_an_answer_are_words(name):
    tokens = encode([Turn("<image>\nwhat is shown ?", "a <video> tag")], [4], CHARACTERS, TEMPLATES[name])
    assert tokens.media_mask.sum() == 4
    learned = CHARACTERS.decode(tokens.ids[tokens.loss_mask], skip_special_tokens=False)
    assert learned == f"a <video> tag{TEMPLATES[name].answer_end}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_of_an_answer_is_what_training_shows_before_it(name):
    messages = messages_of(TURNS, "Be brief.")[:-1]
    messages[1] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which ?"}]}
    prompt = TEMPLATES[name].prompt(messages)
    trained = TEMPLATES[name].conversation(TURNS, ["image"], system="Be brief.")
    assert prompt.text == trained.text[: trained.answers[-1][0]].rstrip(" ")
    assert prompt.kinds == ("image",) and tokenize(prompt, [3], CHARACTERS).media_mask.sum() == 3


def test_a_note_stands_on_a_line_of_its_own():
    noted = Expansion((2,), note="Noted.")
    turns = [Turn("<image>\nwhich ?", "left"), Turn("and <image> or <image>?", "so")]
    tokens = encode(turns, [noted, noted, 1], CHARACTERS, TEMPLATES["bare"])
    segments = [
        ("-", "USER: "), 2, ("-", "\nNoted.\nwhich ? ASSISTANT: "), ("+", "left</s>"), ("-", "USER: and "), 2,
        ("-", "\nNoted.\n or "), 1, ("-", "? ASSISTANT: "), ("+", "so</s>"),
    ]  # fmt: skip
    ids, media, learned = expected(segments)
    np.testing.assert_array_equal(tokens.ids, ids)
    np.testing.assert_array_equal(tokens.media_mask, media)
    np.testing.assert_array_equal(tokens.loss_mask, learned)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_unknown_template():
    assert get_template("bare", CHARACTERS) is TEMPLATES["bare"]
    with pytest.raises(
        InputError, match=r"config\.data\.chat_template: no template 'vicuna'; there are vicuna_v1, bare"
    ):
        get_template("vicuna", CHARACTERS)


@pytest.mark.parametrize(
    ("name", "without", "named"),
    [
        ("vicuna_v1", "<s>", "<s>"),
        ("llama-2", "</s>", "</s>"),
        ("chatml", "<|im_end|>", "<|im_end|>"),
        ("smolvlm", "<end_of_utterance>", "<end_of_utterance>"),
    ],
)
def test_another_familys_template(name, without, named):
    """A model that is taught to end with letters where its tokenizer has no such token never stops."""
    made = Tokenizer(models.WordLevel({mark: i for i, mark in enumerate(MARKS) if mark != without} | {"?": 99}, "?"))
    with pytest.raises(InputError) as caught:
        get_template(name, made)
    assert str(caught.value) == (
        f"config.data.chat_template: {name!r} writes {named}, which is no token of the tokenizer; choose the model's "
        "own template"
    )


@pytest.mark.parametrize("messages", [[("user", "hi"), ("system", "x")], [("tool", "x")]])
def test_other_roles(messages):
    with pytest.raises(InputError, match="takes 'user' and 'assistant', and 'system' before them"):
        TEMPLATES["bare"].prompt([{"role": role, "content": content} for role, content in messages])


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_as_jinja_writes_the_same(name):
    """Of templates that only put strings around what is said; the others have none."""
    template = TEMPLATES[name]
    if (text := template.jinja()) is None:
        assert name in ("plain", "llama-2", "llama-3", "mistral", "smolvlm")
        return
    picture = [{"type": "image"}, {"type": "text", "text": 'what "is" {{ it }} ?\n'}]
    messages = [
        {"role": "user", "content": picture},
        {"role": "assistant", "content": "a 'dog' \\ cat"},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "and ?"}]},
    ]
    for asked in (messages, [{"role": "system", "content": "Be brief."}, *messages]):
        written = sandbox.render(text, messages=asked, add_generation_prompt=True)
        assert written == template.prompt(asked).text
    assert (
        sandbox.render(text, messages=messages[:2]) == template.prompt(messages[:2], add_generation_prompt=False).text
    )
