"""Token ids of a question for the CLIP text tower that scores frames by it."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from vlvm_jax import json_text, storage
from vlvm_jax.config import ClipText
from vlvm_jax.data.prompt.answers import listed
from vlvm_jax.errors import InputError, brief

_KEY = "config.data.prompt_tokenizer"


class ScoringTokenizer:
    """As transformers' CLIP tokenizer with `padding="max_length", truncation=True`; safe to use from threads.

    Args:
      path: directory of a CLIP checkpoint's tokenizer, or a `tokenizer.json` alone.
      length: P, ids of a text: what the tower has positions for.

    Raises:
      InputError: it cannot be read, has no padding token, or puts no end token after a text.
    """

    def __init__(self, path: str, length: int):
        self.path, self.length = path, length
        self._backend, pad = _open(path if storage.is_remote(path) else str(Path(path).expanduser()))
        pad_id = self._backend.token_to_id(pad)
        if pad_id is None:
            raise InputError(f"{_KEY}: {path} pads with {pad!r}, which is not in its vocabulary")
        self._backend.no_truncation()
        self._backend.no_padding()
        around = self._backend.encode("").ids
        if not around or self._backend.encode("a").ids[-1] != around[-1]:
            raise InputError(
                f"{_KEY}: {path} puts no end token after a text, where CLIP reads a text's feature; give a CLIP "
                "checkpoint's tokenizer"
            )
        if length <= len(around):
            raise InputError(f"config.data.prompt_length: {length} tokens leave no room for a word; CLIP's are 77")
        self._backend.enable_truncation(length)
        self._backend.enable_padding(length=length, pad_id=pad_id, pad_token=pad)

    def __call__(self, text: str) -> tuple[Int[np.ndarray, " P"], bool]:
        """Ids of a text, and whether it was cut; a cut one keeps its end token."""
        encoded = self._backend.encode(text)
        return np.asarray(encoded.ids, np.int32), bool(encoded.overflowing)


@functools.lru_cache(maxsize=4)
def scoring_tokenizer(path: str, length: int) -> ScoringTokenizer:
    """The same one for all that ask."""
    return ScoringTokenizer(path, length)


def _open(path: str) -> tuple[Tokenizer, str]:
    """The tokenizer and its padding token."""
    folder = path if storage.is_dir(path) else storage.parent(path)
    file = f"{path}/tokenizer.json" if folder == path else path
    if storage.is_file(file):
        try:
            backend = Tokenizer.from_str(storage.read_bytes(file).decode())
        except Exception as error:  # tokenizers raises plain exceptions
            raise InputError(f"{_KEY}: {file} cannot be read ({brief(error)})") from None
    elif all((Path(path) / part).is_file() for part in ("vocab.json", "merges.txt")):
        from transformers import CLIPTokenizer

        backend = CLIPTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False).backend_tokenizer
    else:
        raise InputError(f"{_KEY}: {path} holds neither tokenizer.json nor vocab.json and merges.txt")
    said = (_beside(folder, name).get("pad_token") for name in ("tokenizer_config.json", "special_tokens_map.json"))
    own = (backend.padding or {}).get("pad_token")
    pad = next((token for token in (*said, own) if token), "<|endoftext|>")  # transformers' default for CLIP
    return backend, pad["content"] if isinstance(pad, dict) else pad


def _beside(folder: str, name: str) -> dict[str, Any]:
    """The object in a JSON file of the tokenizer's folder, empty if there is no such file."""
    file = f"{folder}/{name}"
    if not storage.is_file(file):
        return {}
    try:
        content = json_text.loads(storage.read_bytes(file))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({brief(error)})") from None
    return content if isinstance(content, dict) else {}


def scored_text(question: str, options: Sequence[str], kind: ClipText) -> str:
    """What frames are compared with: the question as asked, without its placeholders, or its options after it too."""
    if kind == "question" or not options:
        return question
    return f"{question}\n{listed(options)}"
