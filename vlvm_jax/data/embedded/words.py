"""The words of the embedded data set, one token each, and the tokenizers made of them.

A word's place is its token in every checkpoint there is, the one in the package among them: words are added at the end
and never moved.
"""

from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
_TEXT = """
USER: ASSISTANT: ?
red green blue yellow circle square triangle cross
top middle bottom left center right up down large small
none one two three four five six
color shape row column size place count direction speed
what how many is there happens does it say differs with in all or of than
yes no nothing empty above larger faster slower
first second third last before after moves blinks times
where each
"""
VOCABULARY = tuple(_TEXT.split())
ROOM = 128  # rows of embeddings, those of words to come among them; any mesh divides it


def tokenizer() -> Tokenizer:
    """One token per word."""
    tokens = [*SPECIAL_TOKENS, *VOCABULARY]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    made.add_special_tokens(list(SPECIAL_TOKENS))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def prompt_tokenizer() -> Tokenizer:
    """The same for a text tower like CLIP's, which reads a text's feature where it ends."""
    made = tokenizer()
    around = [(token, SPECIAL_TOKENS.index(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    made.enable_padding(pad_id=SPECIAL_TOKENS.index("<pad>"), pad_token="<pad>")
    return made
