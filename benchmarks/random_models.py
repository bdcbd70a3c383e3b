"""Checkpoints of random weights and a clip for the benchmarks, written as transformers and cameras write them."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.prompt.answers import PREFIXES, TEMPLATES

QUESTION = "what does the person in the red shirt do after opening the door ?"
CLIP_SIZE, CLIP_FRAMES = (640, 480), 120
GRID = 24  # patches along a frame's side
LONGEST = 4096


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a LLaVA and of the CLIP beside it. Heads of both towers are 64 wide, the decoder's `head`."""

    tower: int
    tower_layers: int
    patch: int
    width: int
    inner: int
    layers: int
    head: int
    vocabulary: int
    dtype: str = "float32"


SCALES = {
    "tiny": Scale(64, 2, 2, 64, 128, 2, 16, 1024),
    "small": Scale(128, 3, 14, 1024, 2752, 4, 128, 32064),
    "7b": Scale(1024, 24, 14, 4096, 11008, 32, 128, 32064, "bfloat16"),
}


def write_llava(folder: Path, scale: Scale) -> None:
    """A checkpoint with its tokenizer and processor, random weights."""
    size = GRID * scale.patch
    words = tokenizer(scale.vocabulary - 64)
    pinpoints = [[size * rows, size * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    text = transformers.LlamaConfig(
        vocab_size=scale.vocabulary, hidden_size=scale.width, intermediate_size=scale.inner,
        num_hidden_layers=scale.layers, num_attention_heads=scale.width // scale.head, max_position_embeddings=LONGEST,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config = transformers.LlavaNextConfig(
        vision_config=tower(transformers.CLIPVisionConfig, scale, image_size=size, patch_size=scale.patch),
        text_config=text, image_grid_pinpoints=pinpoints, image_token_index=words.get_vocab()["<image>"],
    )  # fmt: skip
    save(transformers.LlavaNextForConditionalGeneration, config, scale, folder)
    words.save_pretrained(folder)
    edges: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    images = LlavaNextImageProcessorPil(**edges, image_grid_pinpoints=pinpoints)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": images.to_dict()}))


def write_clip_model(folder: Path, scale: Scale) -> None:
    """A CLIP that compares frames with questions. Its text tower has the image tower's depth and 3/4 of its width."""
    words = embedded_words.prompt_tokenizer()
    text = transformers.CLIPTextConfig(
        vocab_size=words.get_vocab_size(), hidden_size=scale.tower * 3 // 4, intermediate_size=scale.tower * 3,
        num_hidden_layers=max(scale.tower_layers // 2, 1), num_attention_heads=max(scale.tower * 3 // 256, 1),
        bos_token_id=words.token_to_id("<s>"), eos_token_id=words.token_to_id("</s>"),
    )  # fmt: skip
    vision = tower(transformers.CLIPVisionConfig, scale, image_size=GRID * scale.patch, patch_size=scale.patch)
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=scale.tower * 3 // 4
    )
    save(transformers.CLIPModel, config, scale, folder)
    words.save(str(folder / "tokenizer.json"))


def tower(cls: Any, scale: Scale, **sizes: int) -> Any:
    return cls(
        hidden_size=scale.tower, intermediate_size=4 * scale.tower, num_hidden_layers=scale.tower_layers,
        num_attention_heads=scale.tower // 64, **sizes,
    )  # fmt: skip


def save(cls: Any, config: Any, scale: Scale, folder: Path) -> None:
    torch.manual_seed(0)
    cls(config).to(getattr(torch, scale.dtype)).save_pretrained(folder)


def tokenizer(size: int) -> transformers.PreTrainedTokenizerFast:
    """Knows the words of the recipes' prompts, as a real one does, so that these have about their real length."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", "<image>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([*TEMPLATES.values(), *PREFIXES.values(), QUESTION, "USER: ASSISTANT:\n"] * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def write_video(path: Path) -> None:
    """A texture that moves."""
    width, height = CLIP_SIZE
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    texture = np.asarray(coarse.resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(CLIP_FRAMES):
            x, y = (int(side / 2 * (1 + math.sin(number / turn))) for side, turn in ((width, 7), (height, 11)))
            frame = av.VideoFrame.from_ndarray(texture[y : y + height, x : x + width])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
