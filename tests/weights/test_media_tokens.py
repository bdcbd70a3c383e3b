"""Which ids stand for media in an export, and a tokenizer that knows them."""

import json

import pytest
from etils import epath
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from vlvm_jax.families.base import MediaTokens
from vlvm_jax.weights.export.media_tokens import choose, write_tokenizer

WORDS = 10


@pytest.fixture
def tokenizer(tmp_path):
    """`tokenizer.json` of ten words and, as asked for, special tokens after them."""

    def make(*special: str) -> epath.Path:
        made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.add_special_tokens(list(special))
        path = epath.Path(tmp_path / "source.json")
        made.save(str(path))
        return path

    return make


@pytest.mark.parametrize(
    ("base", "special", "vocab", "image", "video"),
    [
        # The config's, under either name.
        ({"model_type": "llava", "image_token_index": 7}, None, 20, 7, 20),
        ({"model_type": "smolvlm", "image_token_id": 7}, None, 20, 7, 20),
        ({"model_type": "llava_onevision", "image_token_index": 18, "video_token_index": 19}, None, 20, 18, 19),
        # The class's own, where the config leaves it to that.
        ({"model_type": "llava"}, None, 32064, 32000, 32064),
        ({"model_type": "llava_next_video"}, None, 32064, 32001, 32000),
        ({"model_type": "llava_onevision"}, None, 152000, 151646, 151647),
        # The tokenizer's.
        (None, ("<image>", "<video>"), 20, 10, 11),
        (None, ("<video>", "<image>"), 20, 11, 10),
        ({"model_type": "llava", "mm_vision_tower": "x"}, ("<image>",), 20, 10, 11),
        # New ones, after all that are in use.
        (None, (), 20, 10, 11),
        (None, ("<pad>",), 20, 11, 12),
        (None, None, 20, 20, 21),
        ({"model_type": "llava", "image_token_index": 30}, ("<pad>",), 20, 30, 31),
    ],
)
def test_ids(tokenizer, base, special, vocab, image, video):
    path = None if special is None else tokenizer(*special)
    assert choose(base, path, vocab) == MediaTokens(image, video)


@pytest.mark.parametrize("special", [(), ("<image>",), ("<video>", "<image>")])
def test_the_tokenizer_says_the_ids_that_were_chosen(tokenizer, special, tmp_path):
    path = tokenizer(*special)
    tokens = choose(None, path, 20)
    folder = tmp_path / "export"
    folder.mkdir()
    write_tokenizer(path, folder, {"<image>": tokens.image, "<video>": tokens.video})
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded("w3 <image> w4 <video>")["input_ids"] == [3, tokens.image, 4, tokens.video]
    assert loaded.decode([3, tokens.image], skip_special_tokens=True) == "w3"


def test_a_tokenizer_config_that_there_is_stays(tokenizer, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    write_tokenizer(tokenizer(), folder, {"<image>": 10, "<video>": 11})
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"model_max_length": 77}
