"""Tokenizers of directories that transformers does not choose a class for."""

import json

import pytest

from vlvm_jax.data.embedded import words
from vlvm_jax.data.prompt.tokenizer_files import checkpoint_tokenizer


@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "NoSuchTokenizer"])
def test_an_export_of_a_model_with_a_tokenizer_of_its_own(tmp_path, named):
    """As the models in the package have: the class is not that of a family."""
    words.tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vlvm"}))
    tokenizer = checkpoint_tokenizer(str(tmp_path))
    assert tokenizer.is_fast
    assert tokenizer("red circle")["input_ids"] == words.tokenizer().encode("red circle").ids
