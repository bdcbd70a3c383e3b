"""Settings of a model: towers, connector, adapter, decoder, LoRA, and what they start from."""

import math
from typing import Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from vlvm_jax.config.settings import DType, FrozenDict, Settings

Remat = Literal["none", "minimal", "full", "offload"]


class VisionConfig(Settings):
    """A ViT tower; field names are HF's. `idefics3` is SigLIP with Idefics3's own position rule (also SmolVLM's),
    `internvl` InternViT-300M. `attention_bias`: queries, keys and values have biases, which only InternViT may lack.

    `feature_layer` is the layer whose output is used, counted as HF counts hidden states: -1 the last, -2 the
    penultimate (LLaVA's choice). `position_init` is the standard deviation of fresh position embeddings (default
    hidden_size**-0.5; larger lets a small tower trained from scratch tell places apart sooner). `attention_layer` asks
    for the attention that patches receive at that layer (a Python index into the layers that run), which the
    `encoder_attn` sampler ranks by.
    """

    kind: Literal["clip", "siglip", "idefics3", "internvl"] = "clip"
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt
    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"
    layer_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = True
    feature_layer: int = -2
    post_norm: bool = False
    position_init: PositiveFloat | None = None
    attention_layer: int | None = None
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid(self) -> int:
        """Patches along a side; pixels left over at the right and the bottom are not seen (SigLIP-384/14: 6)."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def has_class_token(self) -> bool:
        return self.kind in ("clip", "internvl")

    @property
    def num_used_layers(self) -> int:
        return self.num_hidden_layers + self.feature_layer + 1

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.kind != "internvl" and not self.attention_bias:
            raise ValueError(f"attention_bias: a {self.kind} tower has biases")
        if self.kind == "internvl" and self.post_norm:
            raise ValueError("post_norm: an internvl tower has no norm after its layers")
        if not 0 < self.num_used_layers <= self.num_hidden_layers:
            raise ValueError(f"feature_layer {self.feature_layer} is outside {self.num_hidden_layers} layers")
        if (
            self.attention_layer is not None
            and not -self.num_used_layers <= self.attention_layer < self.num_used_layers
        ):
            raise ValueError(f"attention_layer {self.attention_layer} is outside the {self.num_used_layers} that run")
        return self


class TextConfig(Settings):
    """CLIP's text tower; field names are HF's, defaults those of openai/clip-vit-large-patch14-336.

    `eos_token_id` says which token's feature stands for the text: the first with this id, or, for the 2 that older
    config files have whatever their tokenizer, the one with the highest id (transformers' rule).
    """

    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    max_position_embeddings: PositiveInt = 77
    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"
    layer_norm_eps: PositiveFloat = 1e-5
    eos_token_id: NonNegativeInt = 2

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class ClipConfig(Settings):
    """A CLIP: two towers and a projection of each to `projection_dim`.

    `vision` None means a tower of the sizes of the model's own. `dtype` is the computation's, None the model's.
    """

    text: TextConfig = TextConfig()
    vision: VisionConfig | None = None
    projection_dim: PositiveInt = 768
    dtype: DType | None = None


class RopeScaling(Settings):
    """How rotary frequencies are stretched beyond the length of pretraining; field names are HF's `rope_scaling`.

    `linear` divides all frequencies by `factor`; `llama3` leaves the high ones, divides the low ones, blends between.
    """

    rope_type: Literal["linear", "llama3"]
    factor: PositiveFloat
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: PositiveInt = 8192


class FrameTokens(Settings):
    """What becomes of the frames of clips between the tower and the decoder, in the terms of stock VLM classes.

    `pool` is over squares of `pool_stride` patches, frames of clips only. `average` and `max` drop an odd rest as
    torch's pools do; `bilinear` resizes to ceil(side / stride). `pool_place` pools tower features, or the connector's
    output. `newline` names the media after which the learned `image_newline` follows; the parameter exists unless it is
    `none`. `newline_place` says where it follows in a clip: at its `end`, after every `frame`, or after every `row` of
    a frame.
    """

    pool: Literal["none", "average", "max", "bilinear"] = "none"
    pool_stride: PositiveInt = 2
    pool_place: Literal["before_connector", "after_connector"] = "after_connector"
    newline: Literal["none", "image", "video", "all"] = "none"
    newline_place: Literal["end", "frame", "row"] = "end"


class DecoderConfig(Settings):
    """A decoder of the Llama family; field names are HF's. `qk_norm`: queries and keys are normalised within each head
    before they are rotated. `sliding_window`: how many positions a token sees, its own among them; None for all."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh"] = "silu"
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = False
    attention_out_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    max_position_embeddings: PositiveInt = 4096
    sliding_window: PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions need an even one")
        return self


class ConnectorConfig(Settings):
    """`bias` is of the linear kinds, `scale_factor` of the shuffling ones, `num_queries`, a square number, of
    `resampler`; see `models.connector`."""

    kind: Literal["linear", "mlp2x_gelu", "pixel_shuffle", "pixel_shuffle_mlp", "resampler"] = "mlp2x_gelu"
    bias: bool = True
    scale_factor: PositiveInt = 2
    num_queries: PositiveInt = 256

    @property
    def shuffles(self) -> bool:
        """Whether squares of patches become one token each."""
        return self.kind in ("pixel_shuffle", "pixel_shuffle_mlp")

    @pydantic.model_validator(mode="after")
    def _check(self):
        if math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise ValueError(f"num_queries {self.num_queries} is not a square number; queries lie on a square grid")
        return self


class AdapterConfig(Settings):
    """Which file of `models/adapters/` turns frame features into visual tokens, and its options.

    `options` are that file's own `Options`, checked when the adapter is built.
    """

    name: str
    connector: ConnectorConfig = ConnectorConfig()
    options: Any = Field(default_factory=dict)

    @pydantic.field_validator("options", mode="after")
    @classmethod
    def _freeze(cls, options):
        return FrozenDict(options)


class LoraConfig(Settings):
    """Low-rank adapters on dense layers, y = x W + scale * (x A) B (LoRA, arXiv 2106.09685).

    `parts` says whose layers get them, `targets` which (HF's module names; None: all dense ones). `scale` is alpha /
    rank, with `rslora` alpha / sqrt(rank) (arXiv 2312.03732). Only what a stage's `trainable` names is trained, for
    instance `decoder/**/lora_*`.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    targets: tuple[str, ...] | None = None
    parts: tuple[Literal["decoder", "encoder"], ...] = Field(default=("decoder",), min_length=1)
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def targets_in(self, part: str) -> tuple[str, ...]:
        """Names of the modules of one part that have adapters; none for a part that is not in `parts`."""
        if part not in self.parts:
            return ()
        return tuple(name for name in LORA_MODULES[part] if self.targets is None or name in self.targets)

    @pydantic.model_validator(mode="after")
    def _check(self):
        known = [name for part in self.parts for name in LORA_MODULES[part]]
        for name in self.targets or ():
            if name not in known:
                raise ValueError(f"targets: no layer {name!r} in {' or '.join(self.parts)}; there are {known}")
        for part in self.parts:
            if not self.targets_in(part):
                raise ValueError(f"targets: {list(self.targets or ())} names no layer of {part!r}, which is in parts")
        return self


# Dense layers within each part's stack of layers.
LORA_MODULES = {
    "decoder": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}


class InitFrom(Settings):
    """A model built from parts: a hub id or directory for each, None for one that starts fresh.

    `clip` is a whole CLIP, text side and projections too, for adapters that hold one.
    """

    encoder: str | None = None
    connector: str | None = None
    decoder: str | None = None
    clip: str | None = None


class ModelConfig(Settings):
    """Tower, adapter and decoder; `dtype` is the computation's, parameters' dtypes belong to the stage."""

    vision: VisionConfig
    adapter: AdapterConfig
    decoder: DecoderConfig
    lora: LoraConfig | None = None
    dtype: DType = "bfloat16"
    vision_remat: Remat = "none"
    decoder_remat: Remat = "none"
    init_from: str | InitFrom | None = None
