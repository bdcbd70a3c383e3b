"""Reads the tokenizer and the chat template of a checkpoint's directory, in every form in which they are saved."""

from pathlib import Path
from typing import Any

from vlvm_jax import families
from vlvm_jax.data.files import read_json, read_text
from vlvm_jax.data.prompt import templates
from vlvm_jax.errors import InputError, brief


def checkpoint_tokenizer(path: str) -> Any:
    """The tokenizer of a directory, as transformers sets it up, or of a bare `tokenizer.json`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = Path(path).expanduser()
    file = place / "tokenizer.json" if place.is_dir() else place
    try:
        if place.is_dir() and (place / "tokenizer_config.json").is_file():
            family = families.of_config(read_json(place / "config.json"))
            automatic = file.is_file() and (family is None or family.auto_tokenizer)
            cls = AutoTokenizer if automatic else _named_class(place)
            tokenizer = cls.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        elif file.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
        else:
            raise InputError(
                f"config.data.tokenizer: {path} holds no tokenizer.json, nor a tokenizer.model with a "
                "tokenizer_config.json"
            )
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        if not file.is_file() and (place / "tokenizer.model").is_file():
            raise InputError(
                f"{path}: holds tokenizer.model alone, which transformers reads with the packages sentencepiece and "
                f"protobuf: install or update both ({brief(error)})"
            ) from None
        raise InputError(f"{path}: transformers cannot load its tokenizer ({brief(error)})") from None
    if not tokenizer.is_fast:
        raise InputError(f"{path}: a tokenizer without tokenizer.json; save it once with transformers' fast tokenizer")
    return tokenizer


def _named_class(directory: Path) -> Any:
    """The class that `tokenizer_config.json` names. Without `tokenizer.json` it decides how the files are read.

    AutoTokenizer would choose by the model's type, and warns about the types of original LLaVA checkpoints.
    """
    import transformers

    name = str(read_json(directory / "tokenizer_config.json").get("tokenizer_class"))
    if name != "PreTrainedTokenizerFast":  # which reads any `tokenizer.json`; its namesake without "Fast" is abstract
        name = name.removesuffix("Fast")
    cls = getattr(transformers, name, None)
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedTokenizerBase)
    return cls if known else transformers.AutoTokenizer


def chat_template(directory: Path, tokenizer: Any) -> tuple[str, str]:
    """The template and its file: the processor's comes before the tokenizer's."""
    places = {
        "processor_config.json": read_json(directory / "processor_config.json").get("chat_template"),
        "chat_template.json": read_json(directory / "chat_template.json").get("chat_template"),
        "chat_template.jinja": read_text(directory / "chat_template.jinja"),
        "tokenizer_config.json": tokenizer.chat_template,
    }
    for name, template in places.items():
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return template, f"{directory}/{name}"
    raise InputError(
        f"config.data.chat_template: 'checkpoint', but {directory} has no chat template ({', '.join(places)}); "
        f"choose one of {', '.join(templates.TEMPLATES)}"
    )
