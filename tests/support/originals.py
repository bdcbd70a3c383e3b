"""Tiny checkpoints in the layout of the LLaVA repositories with tokenizers: everything that answers need."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import families, hf_checkpoints
from support.families import clip, llama, qwen2, siglip, vlm

VOCAB = 500  # rows, more than either tokenizer has tokens
SIZES = {"vocab_size": VOCAB, "max_position_embeddings": 640, "pad_token_id": None, "eos_token_id": VOCAB - 1}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def plain():
    """As LLaVA-1.5."""
    return vlm("llava", clip(32, patch_size=8), llama(**SIZES))


def tiled():
    """As LLaVA-NeXT."""
    return vlm("llava_next", clip(32, patch_size=8), llama(**SIZES))


def onevision():
    """As LLaVA-OneVision and LLaVA-Video."""
    return vlm(
        "llava_onevision", siglip(32, patch_size=8), qwen2(**SIZES), vision_aspect_ratio="anyres_max_2"
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "plain": (plain, "Llama"),
    "tiled": (tiled, "Llama"),
    "onevision": (onevision, "Qwen"),
}


def write(folder: Path, name: str, *, with_tower: bool = True, **keys: Any) -> Path:
    """A checkpoint directory; `keys` are put in its config. Beside it `<name>-tower`, as the config names it."""
    make, language = MODELS[name]
    source = folder.with_name(f"{folder.name}-hf")
    make().save_pretrained(source)
    families.write_original(source, folder, language, with_tower)
    shutil.rmtree(source)
    hf_checkpoints.byte_level().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    families.edit_config(folder, lambda config: config.update(keys))
    return folder
