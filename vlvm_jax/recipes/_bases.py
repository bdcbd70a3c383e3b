"""Image models that recipes start from: sizes, where the weights are, how text and pixels are prepared.

Sizes are written out, so that a recipe can be compiled and planned without the weights; they are compared with the
checkpoint's `config.json` when it is opened. `of_checkpoint(path)` takes everything from a checkpoint instead.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlvm_jax.config import (
    ClipConfig,
    ConnectorConfig,
    DecoderConfig,
    InitFrom,
    ModelConfig,
    TextConfig,
    VisionConfig,
    to_json,
)
from vlvm_jax.data.embedded import words
from vlvm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Base:
    """An image model.

    Attributes:
      init_from: where its weights are, as `ModelConfig.init_from`; None for one that a recipe makes.
      chat_template: as `DataConfig.chat_template`; by default the checkpoint's own.
      processor: as `DataConfig.processor`; None if images are prepared as the tower's settings say.
      frame_options: options of the adapter `frames` with which the checkpoint was trained on clips, if it was.
    """

    vision: VisionConfig
    connector: ConnectorConfig
    decoder: DecoderConfig
    init_from: str | InitFrom | None
    chat_template: str = "checkpoint"
    processor: str | None = "{encoder}"
    frame_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def model(self, adapter: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Settings of a model in bf16 that is this one with an adapter.

        Args:
          adapter: without its connector, which is this model's.
          settings: of `ModelConfig`, beside or in place of these.
        """
        adapter = {**adapter, "connector": to_json(self.connector)}
        parts = {"vision": self.vision, "adapter": adapter, "decoder": self.decoder, "init_from": self.init_from}
        model = ModelConfig.model_validate({**parts, "dtype": "bfloat16", **settings})
        return model.model_dump(mode="json", exclude_none=True)

    def data(self, **settings: Any) -> dict[str, Any]:
        """Data settings that go with it, and others beside or in place of them."""
        processor = {"processor": self.processor} if self.processor else {}
        return {"tokenizer": "{decoder}", **processor, "chat_template": self.chat_template, **settings}


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A CLIP that scores frames by a question, and where its weights are."""

    sizes: ClipConfig
    source: str


# --- parts that several models have ------------------------------------------------------------------------------


def _clip_large(image_size: int) -> VisionConfig:
    """OpenAI's ViT-L/14."""
    return VisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=image_size,
        patch_size=14,
    )


def _vicuna_7b(vocab_size: int, rms_norm_eps: float = 1e-5, max_position_embeddings: int = 4096) -> DecoderConfig:
    """Llama's and Llama-2's 7B."""
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        rms_norm_eps=rms_norm_eps,
        max_position_embeddings=max_position_embeddings,
    )


def _siglip(image_size: int, patch_size: int, hidden_size: int, mlp: int, layers: int, heads: int) -> VisionConfig:
    """SigLIP with Idefics3's positions."""
    return VisionConfig(
        kind="idefics3",
        hidden_size=hidden_size,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        feature_layer=-1,
        post_norm=True,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


def _so400m(image_size: int) -> VisionConfig:
    """SigLIP-so400m/14."""
    return _siglip(image_size, patch_size=14, hidden_size=1152, mlp=4304, layers=27, heads=16)


def _shuffle(scale_factor: int) -> ConnectorConfig:
    """Idefics3's: joins squares of patches, and maps them without a bias."""
    return ConnectorConfig(kind="pixel_shuffle", bias=False, scale_factor=scale_factor)


# --- models ------------------------------------------------------------------------------------------------------

# Its vocabulary holds 64 rows more than Vicuna's, among them `<image>`.
LLAVA_1_5_7B = Base(
    vision=_clip_large(336),
    connector=ConnectorConfig(kind="mlp2x_gelu"),
    decoder=_vicuna_7b(32064),
    init_from="llava-hf/llava-1.5-7b-hf",
)

# LLaVA-1.5's sizes; the tower was trained too.
LLAVA_1_6_VICUNA_7B = dataclasses.replace(LLAVA_1_5_7B, init_from="llava-hf/llava-v1.6-vicuna-7b-hf")

# FTFV's own setting, as far as it is known: Vicuna-7B; the tower is the commonest of its time. No connector is
# pretrained: the first stage aligns one.
VICUNA_7B = Base(
    vision=_clip_large(224),
    connector=ConnectorConfig(kind="mlp2x_gelu"),
    decoder=_vicuna_7b(32000),
    init_from=InitFrom(encoder="openai/clip-vit-large-patch14", decoder="lmsys/vicuna-7b-v1.5"),
    chat_template="vicuna_v1",
)

# LLaVA-Lightning-7B-v1-1 as Video-ChatGPT's readme links it, with which that project begins: 224 pixels, one affine
# map, three rows of special tokens. The number of rows is compared with the checkpoint when that is opened.
LLAVA_V1_7B = Base(
    vision=_clip_large(224),
    connector=ConnectorConfig(kind="linear"),
    decoder=_vicuna_7b(32003, rms_norm_eps=1e-6, max_position_embeddings=2048),
    init_from="mmaaz60/LLaVA-7B-Lightening-v1-1",
    chat_template="vicuna_v1",
    processor=None,
)


def _qwen(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **settings: Any) -> DecoderConfig:
    """Qwen2 and Qwen2.5, or Qwen3 by its settings.

    Sizes are as the models' cards give them, and compared with the checkpoint when that is opened.
    """
    usual = {"head_dim": hidden // heads, "attention_bias": True, "max_position_embeddings": 32768}
    return DecoderConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        **(usual | settings),
    )


def _qwen_7b(vocabulary: int) -> DecoderConfig:
    """Qwen2-7B, and Qwen2.5-7B."""
    return _qwen(3584, 18944, 28, 28, 4, vocab_size=vocabulary)


# A base that speaks Chinese and whose connector is a resampler of Qwen-VL's form, aligned from the start.
QWEN2_7B = Base(
    vision=_clip_large(336),
    connector=ConnectorConfig(kind="resampler", num_queries=256),
    decoder=_qwen_7b(152064),
    init_from=InitFrom(encoder="openai/clip-vit-large-patch14-336", decoder="Qwen/Qwen2-7B-Instruct"),
)

# SigLIP-base/16, 4 x 4 patches joined, SmolLM2-135M.
SMOLVLM2_256M = Base(
    vision=_siglip(512, patch_size=16, hidden_size=768, mlp=3072, layers=12, heads=12),
    connector=_shuffle(4),
    decoder=DecoderConfig(
        vocab_size=49280,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        rope_theta=1e5,
        max_position_embeddings=8192,
    ),
    init_from="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
)

# 3 x 3 patches joined (81 tokens), SmolLM2-1.7B with its positions stretched.
SMOLVLM2_2B = Base(
    vision=_so400m(384),
    connector=_shuffle(3),
    decoder=DecoderConfig(
        vocab_size=49280,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=64,
        rope_theta=273768.0,
        max_position_embeddings=16384,
    ),
    init_from="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
)

# 2 x 2 patches joined (169 tokens), Llama-3-8B and three rows of special tokens.
IDEFICS3_8B = Base(
    vision=_so400m(364),
    connector=_shuffle(2),
    decoder=DecoderConfig(
        vocab_size=128259,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=5e5,
        max_position_embeddings=131072,
    ),
    init_from="HuggingFaceM4/Idefics3-8B-Llama3",
)


# InternViT-300M: 32 x 32 patches of 14 pixels, of which 2 x 2 become one token: 256 a frame.
_INTERNVIT = VisionConfig(
    kind="internvl",
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=448,
    patch_size=14,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    feature_layer=-1,
    image_mean=(0.485, 0.456, 0.406),
    image_std=(0.229, 0.224, 0.225),
)


def _internvl(source: str, decoder: DecoderConfig) -> Base:
    return Base(
        vision=_INTERNVIT,
        connector=ConnectorConfig(kind="pixel_shuffle_mlp"),
        decoder=decoder,
        init_from=f"OpenGVLab/{source}",
    )


INTERNVL3_1B = _internvl("InternVL3-1B-hf", _qwen(896, 4864, 24, 14, 2, vocab_size=151674))
INTERNVL3_8B = _internvl("InternVL3-8B-hf", _qwen_7b(151674))
INTERNVL3_5_4B = _internvl(
    "InternVL3_5-4B-HF",
    _qwen(
        2560, 9728, 36, 32, 8, vocab_size=151936, head_dim=128, attention_bias=False, qk_norm=True,
        max_position_embeddings=40960,
    ),
)  # fmt: skip

# SigLIP-so400m/14 at 384 without its last layer, Qwen2-7B. Frames are pooled by two, with a newline after every row.
LLAVA_VIDEO_7B = Base(
    vision=_so400m(384).model_copy(update={"kind": "siglip", "num_hidden_layers": 26, "post_norm": False}),
    connector=ConnectorConfig(kind="mlp2x_gelu"),
    decoder=_qwen_7b(152064),
    init_from="lmms-lab/LLaVA-Video-7B-Qwen2",
    frame_options={"pool": "average", "newline": "all", "newline_place": "row"},
)

# Of the recipe `base` (docs/base.md): 1.4 million parameters, 8 x 8 patches of 8 pixels.
SMALL = Base(
    vision=VisionConfig(
        kind="siglip",
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=64,
        patch_size=8,
        feature_layer=-1,
        hidden_act="gelu_pytorch_tanh",
        position_init=1.0,
    ),
    connector=ConnectorConfig(kind="mlp2x_gelu"),
    decoder=DecoderConfig(
        vocab_size=words.ROOM,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
    ),
    init_from=None,
    chat_template="bare",
    processor=None,
)

EMBEDDED = dataclasses.replace(SMALL, init_from="embedded")  # as it comes with the package

BASES = {
    "llava-1.5-7b": LLAVA_1_5_7B,
    "llava-v1.6-vicuna-7b": LLAVA_1_6_VICUNA_7B,
    "vicuna-7b": VICUNA_7B,
    "llava-v1-7b": LLAVA_V1_7B,
    "qwen2-7b": QWEN2_7B,
    "smolvlm2-256m": SMOLVLM2_256M,
    "smolvlm2-2.2b": SMOLVLM2_2B,
    "idefics3-8b": IDEFICS3_8B,
    "internvl3-1b": INTERNVL3_1B,
    "internvl3-8b": INTERNVL3_8B,
    "internvl3.5-4b": INTERNVL3_5_4B,
    "llava-video-7b": LLAVA_VIDEO_7B,
}
INTERNVL3 = tuple(name for name in BASES if name.startswith("internvl3"))  # presets of several recipes

CLIP_L_336 = Scorer(ClipConfig(), "openai/clip-vit-large-patch14-336")  # its tower is of LLaVA-1.5's sizes
CLIP_B_16 = Scorer(
    ClipConfig(
        text=TextConfig(hidden_size=512, intermediate_size=2048, num_attention_heads=8),
        vision=VisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            image_size=224,
            patch_size=16,
        ),
        projection_dim=512,
    ),
    "openai/clip-vit-base-patch16",
)

# Of `base:clip`.
SMALL_CLIP = ClipConfig(
    text=TextConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=words.ROOM,
        max_position_embeddings=12,
        eos_token_id=words.SPECIAL_TOKENS.index("</s>"),
    ),
    vision=VisionConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        position_init=0.5,
    ),
    projection_dim=32,
)

EMBEDDED_CLIP = Scorer(SMALL_CLIP, "embedded-clip")  # as it comes with the package


def base(preset: str, path: str) -> Base:
    """The preset's model, or, where `path` names a checkpoint, that one in its place."""
    return of_checkpoint(path) if path else BASES[preset]


def of_checkpoint(path: str) -> Base:
    """Any checkpoint that `init_from` takes: sizes from its own files.

    Raises:
      InputError: it cannot be read, or is a bare tower or decoder.
    """
    from vlvm_jax.weights.sources import open_source

    source = open_source(path, "--config: base")
    if source.vision is None or source.decoder is None or source.connector is None:
        raise InputError(f"--config: base={path!r} is a bare tower or decoder; a recipe starts from a whole model")
    return Base(source.vision, source.connector, source.decoder, path)


def scorer(default: Scorer, path: str) -> Scorer:
    """A CLIP that scores frames: the default, or the one that `path` names, with sizes from its own files.

    Raises:
      InputError: it cannot be read, or is no whole CLIP.
    """
    if not path:
        return default
    from vlvm_jax.weights.hf import clip_source

    sizes = clip_source.sizes(clip_source.open_clip(path, "--config: clip"))
    if sizes.vision is None:
        raise InputError(
            f"--config: clip={path!r} shares its image tower with the model it is in; name a CLIP of its own"
        )
    return Scorer(sizes, path)
