"""Conversations to token ids: the exact string, the exact ids, and a mask on exactly what is to be learned."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.prompt.conversation import Marker, Prompt, encode, load_tokenizer, tokenize
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.data.record import Turn
from vlvm_jax.errors import InputError

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<end_of_utterance>",
]
CORPUS = ["USER: what is in the picture ? ASSISTANT: yes it is a cat", "how many ? two three", "user assistant"] * 20


def byte_level() -> Tokenizer:
    """Byte-level BPE as of GPT-2 and Qwen: a word carries the space before it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def llama_like() -> Tokenizer:
    """SentencePiece BPE as in Llama's and Vicuna's tokenizer.json: the space becomes a mark on the next word."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator([word for line in [*CORPUS, "\n."] for word in line.split(" ")], trainer)
    return made


BYTE_LEVEL, LLAMA_LIKE, WORDS = byte_level(), llama_like(), embedded_words.tokenizer()


def words(ids):
    return [WORDS.id_to_token(int(i)) for i in ids]


def learned(tokens, tokenizer):
    """The text of every run of learned tokens."""
    runs = itertools.groupby(zip(tokens.ids.tolist(), tokens.loss_mask.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in run], skip_special_tokens=False) for mask, run in runs if mask]


# --- the word-level tokenizer of the embedded data set -----------------------------------------------------------


def test_bare_with_an_image():
    tokens = encode([Turn("<image>\nhow many ?", "two")], [3], WORDS, TEMPLATES["bare"])
    assert words(tokens.ids[4:]) == ["how", "many", "?", "ASSISTANT:", "two", "</s>"]
    assert words(tokens.ids[:1]) == ["USER:"]
    assert tokens.media_mask.tolist() == [False] + [True] * 3 + [False] * 6
    assert tokens.loss_mask.tolist() == [False] * 8 + [True] * 2
    assert (tokens.ids.dtype, tokens.media_mask.dtype, tokens.loss_mask.dtype) == (np.int32, bool, bool)


def test_bare_with_two_turns_learns_both_answers():
    turns = [Turn("<image>\nhow many ?", "two"), Turn("circle color ?", "red")]
    tokens = encode(turns, [2], WORDS, TEMPLATES["bare"])
    assert " ".join(words(tokens.ids[3:])) == (
        "how many ? ASSISTANT: two </s> USER: circle color ? ASSISTANT: red </s>"
    )
    assert words(tokens.ids[tokens.loss_mask]) == ["two", "</s>", "red", "</s>"]
    assert np.flatnonzero(tokens.loss_mask).tolist() == [7, 8, 14, 15]


def test_vicuna_with_an_image():
    tokens = encode([Turn("<image>\nhow many ?", "two")], [4], WORDS, TEMPLATES["vicuna_v1"])
    system = len(TEMPLATES["vicuna_v1"].system.split())
    assert words(tokens.ids[:1]) == ["<s>"]
    assert np.flatnonzero(tokens.media_mask).tolist() == list(range(system + 2, system + 6))
    assert words(tokens.ids[system + 6 :]) == ["how", "many", "?", "ASSISTANT:", "two", "</s>"]
    assert np.flatnonzero(tokens.loss_mask).tolist() == [system + 10, system + 11]


def test_several_images_in_one_conversation():
    turns = [Turn("<image> or <image> first ?", "circle"), Turn("<image>\nhow many ?", "one")]
    tokens = encode(turns, [2, 1, 3], WORDS, TEMPLATES["bare"])
    shown = ["*" if media else word for word, media in zip(words(tokens.ids), tokens.media_mask, strict=True)]
    assert " ".join(shown) == (
        "USER: * * or * first ? ASSISTANT: circle </s> USER: * * * how many ? ASSISTANT: one </s>"
    )
    assert words(tokens.ids[tokens.loss_mask]) == ["circle", "</s>", "one", "</s>"]


def test_loss_on_all_text_spares_only_the_placeholders():
    turns = [Turn("<image>\nhow many ?", "two"), Turn("circle color ?", "red")]
    tokens = encode(turns, [5], WORDS, TEMPLATES["bare"], loss_on="all_text")
    np.testing.assert_array_equal(tokens.loss_mask, ~tokens.media_mask)
    assert tokens.media_mask.sum() == 5
    answers = encode(turns, [5], WORDS, TEMPLATES["bare"])
    np.testing.assert_array_equal(tokens.ids, answers.ids)


# --- subword tokenizers ------------------------------------------------------------------------------------------

ANSWERS = ["yes", "it is a cat", "no, never!", "é 日本 🙂", "12", "line\nbreak", "USER: x", ""]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, LLAMA_LIKE], ids=["byte_level", "llama_like"])
def test_without_media_ids_are_those_of_the_whole_string(tokenizer, template):
    turns = [Turn("what is it ?", answer) for answer in ANSWERS]
    tokens = encode(turns, [], tokenizer, TEMPLATES[template])
    text = TEMPLATES[template].conversation(turns, []).text
    assert tokens.ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert not tokens.media_mask.any()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_byte_level_learns_answers_whole_and_nothing_else(template, answer):
    turns = [Turn("<image>\nwhat is it ?", answer), Turn("how many ?", "two")]
    tokens = encode(turns, [3], BYTE_LEVEL, TEMPLATES[template])
    end = TEMPLATES[template].answer_end
    # Where the prompt ends in a space, the answer's first token may hold it.
    space = TEMPLATES[template].assistant[-1:].strip("\n>")
    for run, said in zip(learned(tokens, BYTE_LEVEL), [answer, "two"], strict=True):
        assert run in (said + end, space + said + end)
    assert tokens.media_mask.sum() == 3 and not tokens.loss_mask[tokens.media_mask].any()


@pytest.mark.parametrize("answer", ["yes", "it is a cat", "is"])
def test_llama_learns_answers_whole_and_nothing_else(answer):
    turns = [Turn("<image>\nwhat is it ?", answer), Turn("how many ?", "two")]
    tokens = encode(turns, [3], LLAMA_LIKE, TEMPLATES["vicuna_v1"])
    assert learned(tokens, LLAMA_LIKE) == [f" {answer}</s>", " two</s>"]


def test_a_one_word_answer_is_learned():
    """LLaVA-1.5's data is full of them; with the space inside its only token, the word must not fall out."""
    assert "Ġyes" in BYTE_LEVEL.get_vocab()
    tokens = encode([Turn("what ?", "yes")], [], BYTE_LEVEL, TEMPLATES["vicuna_v1"])
    assert [BYTE_LEVEL.id_to_token(i) for i in tokens.ids[tokens.loss_mask]] == ["Ġyes", "</s>"]


def test_text_on_both_sides_of_a_placeholder_is_tokenised_as_it_stands():
    tokens = encode([Turn("what is <image> and <image> ?", "yes")], [2, 4], BYTE_LEVEL, TEMPLATES["bare"])
    before, between, after = "USER: what is ", " and ", " ? ASSISTANT: yes</s>"
    ids = [BYTE_LEVEL.encode(piece, add_special_tokens=False).ids for piece in (before, between, after)]
    assert tokens.ids[~tokens.media_mask].tolist() == ids[0] + ids[1] + ids[2]
    start = len(ids[0])
    second = start + 2 + len(ids[1])
    expected = [*range(start, start + 2), *range(second, second + 4)]
    assert np.flatnonzero(tokens.media_mask).tolist() == expected
    assert learned(tokens, BYTE_LEVEL) == [" yes</s>"]


plain_text = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(
    turns=st.lists(st.builds(Turn, plain_text, plain_text), min_size=1, max_size=3),
    template=st.sampled_from(sorted(set(TEMPLATES) - {"plain"})),  # where nothing stands between the turns
)
def test_any_text_is_learned_in_the_answers_and_only_there(turns, template):
    tokens = encode(turns, [], BYTE_LEVEL, TEMPLATES[template])
    text = TEMPLATES[template].conversation(turns, []).text
    assert tokens.ids.tolist() == BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    # A token may join white space on either side of an answer's edge, but no other character.
    runs = learned(tokens, BYTE_LEVEL)
    assert len(runs) == len(turns)
    for run, turn in zip(runs, turns, strict=True):
        answer = turn.answer.strip() if TEMPLATES[template].trims else turn.answer
        whole = answer + TEMPLATES[template].answer_end
        assert run.endswith(whole) and not run.removesuffix(whole).strip()


# --- loading -----------------------------------------------------------------------------------------------------


def test_tokenizer_from_its_file_or_its_folder(tmp_path):
    BYTE_LEVEL.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(str(path)).get_vocab() == BYTE_LEVEL.get_vocab()


@pytest.mark.parametrize("name", ["", "absent", "absent/tokenizer.json"])
def test_tokenizer_that_is_not_there(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(InputError) as caught:
        load_tokenizer(path)
    assert str(caught.value) == f"config.data.tokenizer: {path} holds no tokenizer.json"


def test_each_placeholder_becomes_its_own_medium():
    """A template may show the second medium first."""
    text = "<image> yes <image> cat"
    prompt = Prompt(text, (Marker(0, 7, medium=1), Marker(12, 19, medium=0)), answers=((8, 11),))
    tokens = tokenize(prompt, [2, 5], WORDS)
    assert tokens.order == (1, 0)
    assert tokens.media_mask.tolist() == [True] * 5 + [False] + [True] * 2 + [False]
    assert tokens.loss_mask.tolist() == [False] * 5 + [True] + [False] * 3
