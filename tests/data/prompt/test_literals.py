"""What looks like a placeholder but is text reaches the token ids as text, whatever special tokens there are."""

import numpy as np
import pytest
from support.hf_checkpoints import FAMILIES, MARKS, TOKENIZERS, checkpoint
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from vlvm_jax.data.prompt import templates
from vlvm_jax.data.prompt.conversation import encode
from vlvm_jax.data.record import Turn
from vlvm_jax.data.sample.processor import load_processor

IN_QUESTION = Turn("What does the <video> tag do, and <image>?", "it plays")
IN_ANSWER = Turn("list the tags", "<video>, <audio>, <image>")


def without_tokens(tokenizer: Tokenizer, *names: str) -> Tokenizer:
    """The tokenizer with other names for these tokens, which no text here has."""
    text = tokenizer.to_str()
    for name in names:
        text = text.replace(f'"{name}"', f'"{name[:-1]}-gone>"')
    return Tokenizer.from_str(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("turn", [IN_QUESTION, IN_ANSWER])
@pytest.mark.parametrize("loss_on", ["answer", "all_text"])
def test_text_alone_is_tokenized_as_if_there_were_no_such_tokens(name, turn, loss_on):
    tokenizer = TOKENIZERS[name]().backend_tokenizer
    template = templates.TEMPLATES["bare"]
    found = encode([turn], [], tokenizer, template, loss_on=loss_on)
    expected = encode([turn], [], without_tokens(tokenizer, "<image>", "<video>"), template, loss_on=loss_on)
    special = {tokenizer.token_to_id(mark) for mark in MARKS}
    assert found.ids.tolist() == expected.ids.tolist() and not special & set(found.ids.tolist())
    assert found.loss_mask.tolist() == expected.loss_mask.tolist() and found.loss_mask.any()
    assert not found.media_mask.any()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_clip_beside_a_literal(name):
    tokenizer = TOKENIZERS[name]().backend_tokenizer
    turn = Turn("<image>\nwhich tag ?", "the <video> tag")
    found = encode([turn], [5], tokenizer, templates.TEMPLATES["bare"], kinds=("image",))
    assert found.media_mask.sum() == 5
    assert set(found.ids[found.media_mask].tolist()) == {tokenizer.token_to_id("<image>")}
    assert tokenizer.token_to_id("<video>") not in found.ids
    expected = encode([turn], [5], without_tokens(tokenizer, "<video>"), templates.TEMPLATES["bare"], kinds=("image",))
    assert found.ids.tolist() == expected.ids.tolist() and found.loss_mask.tolist() == expected.loss_mask.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("turn", [IN_QUESTION, IN_ANSWER])
def test_a_checkpoint_s_own_template(tmp_path, family, turn):
    checkpoint(tmp_path / family, family)
    processor = load_processor(str(tmp_path / family))
    tokens = processor.encode([turn], [], [])
    decoded = processor.tokenizer.decode(tokens.ids.tolist(), skip_special_tokens=True)
    for text in ("<video>", "<image>"):
        assert decoded.replace(" ", "").count(text) == 1
        assert processor.tokenizer.convert_tokens_to_ids(text) not in tokens.ids
    again = processor.encode([Turn("<image>\nwhat ?", "a cat")], [processor.image_plan((32, 32), True)[0]], ["image"])
    assert again.media_mask.any()


def test_a_model_that_looks_whole_words_up():
    """Its vocabulary has the token too, and another added token comes after it."""
    words = ["[UNK]", "<image>", "<video>", "<end>", "tag", "what"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word) for word in ("<video>", "<new>", "<end>")])
    template = templates.ChatTemplate("", " ", "", " <end>")
    found = encode([Turn("what <video> <new>", "tag")], [], tokenizer, template)
    assert found.ids.tolist() == [5, 0, 6, 4, 3]
    assert np.flatnonzero(found.loss_mask).tolist() == [3, 4]
