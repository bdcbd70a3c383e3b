"""Tiny checkpoints with weights, tokenizer, template and processors: everything that answers need."""

import json

import numpy as np
import transformers
from PIL import Image

from support import hf, hf_checkpoints
from support.media_files import moving, write_clip
from vlvm_jax.data.embedded import words as embedded_words

LONGEST = 512


def checkpoint(folder, family: str, tokenizer: str = "byte_level", *, kv_heads: int = 1, size: int = 32):
    """A directory in Hugging Face format with random weights, in fp32."""
    hf_checkpoints.checkpoint(folder, family, tokenizer, size=size)
    words = hf_checkpoints.TOKENIZERS[tokenizer]()
    config = hf_checkpoints.model_config(family, size, 8)
    config.text_config.max_position_embeddings = LONGEST
    config.text_config.pad_token_id = None
    config.text_config.num_key_value_heads = kv_heads
    image = words.convert_tokens_to_ids("<image>")
    for name in ("image_token_index", "image_token_id"):
        if hasattr(config, name):
            setattr(config, name, image)
    for name in ("video_token_index", "video_token_id"):
        if hasattr(config, name):
            setattr(config, name, words.convert_tokens_to_ids("<video>"))
    name = type(config).__name__.removesuffix("Config")
    model = hf.randomize(getattr(transformers, f"{name}ForConditionalGeneration")(config))
    model.tie_weights()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [597, 598]}))
    return folder


def clip(path, frames: int = 12, size=(48, 32), seed: int = 0):
    write_clip(path, moving(frames, size, seed))
    return str(path)


def picture(path, height: int = 50, width: int = 70):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def clip_model(folder, size: int = 32):
    """A whole CLIP with random weights and a tokenizer that puts an end token after a text, as CLIP's does."""
    words = embedded_words.prompt_tokenizer()
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.CLIPTextConfig(
        **layers, vocab_size=words.get_vocab_size(), max_position_embeddings=12, bos_token_id=2,
        eos_token_id=words.token_to_id("</s>"),
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(**layers, image_size=size, patch_size=8)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    hf.randomize(transformers.CLIPModel(config), seed=1).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    return folder
