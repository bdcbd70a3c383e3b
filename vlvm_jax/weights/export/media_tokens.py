"""The ids of `<image>` and `<video>` in an export's vocabulary, and a tokenizer that knows them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from vlvm_jax import families
from vlvm_jax.data.files import read_json
from vlvm_jax.families.base import MediaTokens

IMAGE, VIDEO = "<image>", "<video>"


def choose(base: Mapping[str, Any] | None, tokenizer: epath.Path | None, vocab_size: int) -> MediaTokens:
    """Ids as the base's config or the tokenizer has them; new ones follow all that are in use.

    Args:
      base: `config.json` of the checkpoint the model came from.
      tokenizer: its `tokenizer.json`, or the run's.
      vocab_size: rows of the embedding. Ids at or past it make the exporter add rows.
    """
    known = _added_tokens(tokenizer)
    image, video = _of_config(base, "image"), _of_config(base, "video")
    image = known.get(IMAGE) if image is None else image
    video = known.get(VIDEO) if video is None else video
    used = [*known.values(), *(i for i in (image, video) if i is not None)]
    free = max([_tokenizer_size(tokenizer) if tokenizer else vocab_size, *(i + 1 for i in used)])
    if image is None:
        image, free = free, free + 1
    return MediaTokens(image, free if video is None else video)


def _of_config(base: Mapping[str, Any] | None, kind: str) -> int | None:
    """What the config says, or the class where the config leaves it to that."""
    if base is None:
        return None
    for key in (f"{kind}_token_index", f"{kind}_token_id"):
        if isinstance(base.get(key), int):
            return base[key]
    family = families.of_config(base)
    return None if family is None else family.default_token_id(base, kind)


def _added_tokens(tokenizer: epath.Path | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    added = read_json(tokenizer).get("added_tokens") or []
    return {token["content"]: token["id"] for token in added}


def _tokenizer_size(tokenizer: epath.Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer.read_text()).get_vocab_size(with_added_tokens=True)


def highest_id(tokenizer: epath.Path | None) -> int:
    """The highest id in the tokenizer; -1 without a tokenizer."""
    if tokenizer is None:
        return -1
    from tokenizers import Tokenizer

    return max(Tokenizer.from_str(tokenizer.read_text()).get_vocab(with_added_tokens=True).values(), default=-1)


def write_tokenizer(source: epath.Path, folder: Path, tokens: Mapping[str, int]) -> None:
    """Writes `tokenizer.json` with the tokens at their ids, and a `tokenizer_config.json` if the folder has none.

    The ids follow on each other and on what the tokenizer has, as `choose` gives them; a tokenizer that has them
    already is copied as it is.
    """
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(source.read_text())
    for content, wanted in sorted(tokens.items(), key=lambda pair: pair[1]):
        if tokenizer.token_to_id(content) is None and wanted == tokenizer.get_vocab_size(with_added_tokens=True):
            tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    if not (folder / "tokenizer_config.json").exists():
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}, indent=2)
        )
