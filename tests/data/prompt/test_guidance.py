"""Ids of a question for CLIP's text tower, against transformers' tokenizer."""

import concurrent.futures
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, CLIPTokenizer

from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.prompt.guidance import ScoringTokenizer, scored_text
from vlvm_jax.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz?"
TEXTS = ["what is it?", "", "  A  Dog ", "cat " * 40, "a b c d e f g h i j", "a b c d e f g h i j k"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP tokenizer of single letters, saved as transformers saves one."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    folder = tmp_path_factory.mktemp("clip")
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("length", [5, 12, 77])
def test_ids_are_those_of_transformers(clip, length):
    theirs = AutoTokenizer.from_pretrained(str(clip), local_files_only=True)
    ours = ScoringTokenizer(str(clip), length)
    for text in TEXTS:
        ids, cut = ours(text)
        assert ids.dtype == np.int32 and ids.shape == (length,)
        assert ids.tolist() == theirs(text, padding="max_length", truncation=True, max_length=length)["input_ids"]
        assert cut == (len(theirs(text)["input_ids"]) > length)


def test_a_cut_text_keeps_its_end(clip):
    ids, cut = ScoringTokenizer(str(clip), 12)("a" * 30)
    assert cut and ids[0] == 0 and ids[-1] == 1
    assert 1 not in ids[:-1]


@pytest.mark.parametrize("pad", ["a", {"content": "!", "lstrip": False}])
def test_the_padding_token_is_the_checkpoints(clip, tmp_path, pad):
    backend = Tokenizer.from_file(str(clip / "tokenizer.json"))
    backend.add_tokens(["!"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    ids, _ = ScoringTokenizer(str(tmp_path), 8)("b")
    assert set(ids[3:].tolist()) == {backend.token_to_id(pad if isinstance(pad, str) else "!")}


def test_a_folder_of_the_older_files(clip, tmp_path):
    model = json.loads((clip / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    ours, other = ScoringTokenizer(str(tmp_path), 12), ScoringTokenizer(str(clip), 12)
    for text in TEXTS:
        assert ours(text)[0].tolist() == other(text)[0].tolist()


def test_a_file_alone(clip):
    ours, folder = ScoringTokenizer(str(clip / "tokenizer.json"), 12), ScoringTokenizer(str(clip), 12)
    assert ours("what?")[0].tolist() == folder("what?")[0].tolist()


def test_threads_get_the_same_ids(clip):
    ours = ScoringTokenizer(str(clip), 20)
    expected = {text: ours(text)[0].tolist() for text in TEXTS}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for text, (ids, _) in zip(TEXTS * 50, pool.map(ours, TEXTS * 50), strict=True):
            assert ids.tolist() == expected[text]


def test_what_is_no_clip_tokenizer(clip, tmp_path):
    with pytest.raises(InputError, match=r"holds neither tokenizer\.json nor vocab\.json"):
        ScoringTokenizer(str(tmp_path), 77)
    embedded_words.tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"prompt_tokenizer: .* pads with '<\|endoftext\|>', which is not in"):
        ScoringTokenizer(str(tmp_path), 77)
    plain = Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="puts no end token after a text"):
        ScoringTokenizer(str(tmp_path), 77)
    plain.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 1)]
    )
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="puts no end token after a text"):
        ScoringTokenizer(str(tmp_path), 77)
    with pytest.raises(InputError, match="prompt_length: 2 tokens leave no room"):
        ScoringTokenizer(str(clip), 2)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json cannot be read"):
        ScoringTokenizer(str(tmp_path), 77)


def test_what_is_scored():
    assert scored_text("why ?", ("red", "blue"), "question") == "why ?"
    assert scored_text("why ?", (), "question_and_options") == "why ?"
    assert scored_text("why ?", ("red", "blue"), "question_and_options") == "why ?\n(A) red\n(B) blue"
