"""What a run is made of: frozen, validated settings, built from the `ConfigDict` a file in `configs/` returns.

Every error names the key by its full path (`stages.1.trainable`), what was found and what was expected.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from vlvm_jax.errors import InputError

DType = Literal["float32", "bfloat16"]
Remat = Literal["none", "minimal", "full", "offload"]


class Settings(pydantic.BaseModel):
    """Base of all settings: immutable, hashable, unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


SettingsT = TypeVar("SettingsT", bound=Settings)


class VisionConfig(Settings):
    """A ViT tower; field names are HF's. `idefics3` is SigLIP with Idefics3's own position rule (also SmolVLM's).

    `feature_layer` is the layer whose output is used, counted as HF counts hidden states: -1 the last, -2 the
    penultimate (LLaVA's choice). `position_init` is the standard deviation of fresh position embeddings (default
    hidden_size**-0.5; larger lets a small tower trained from scratch tell places apart sooner). `attention_layer` asks
    for the attention that patches receive at that layer (a Python index into the layers that run), which the
    `encoder_attn` sampler ranks by.
    """

    kind: Literal["clip", "siglip", "idefics3"] = "clip"
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt
    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"
    layer_norm_eps: PositiveFloat = 1e-5
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


class DecoderConfig(Settings):
    """A decoder of the Llama family; field names are HF's."""

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
    tie_word_embeddings: bool = False
    max_position_embeddings: PositiveInt = 4096

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
    """`bias` is of the linear kinds, `scale_factor` of `pixel_shuffle`, `num_queries`, a square number, of `resampler`;
    see `models.connector`."""

    kind: Literal["linear", "mlp2x_gelu", "pixel_shuffle", "resampler"] = "mlp2x_gelu"
    bias: bool = True
    scale_factor: PositiveInt = 2
    num_queries: PositiveInt = 256

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


class FrozenDict(dict):
    """A dict that hashes by content, so that a config stays hashable (NNX compares modules by their static parts)."""

    def __hash__(self):
        return hash(json.dumps(self, sort_keys=True, default=list))

    def __setitem__(self, key, value):
        raise TypeError("settings are immutable")

    def __delitem__(self, key):
        raise TypeError("settings are immutable")


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


class MixtureEntry(Settings):
    """A file of annotations, shards, a table or a mixture file (see `data.sources.mixture`) and how much of it to take.

    `path` may hold `{a,b}` and `*`; of a TFDS data set it is FOLDER@SPLIT. `format` is that of the records
    (`data.sources`) or of the files; "auto" is what the first record and the names say. `media_root` is the folder of
    the media, by default the file's own. `fields` names the columns of tables: `{"video": "clip", "question": "text"}`.
    `pages` says how `text_pages` are drawn from long texts (`data.sources.text_pages.TextPages`).

    `media` keeps only image, video or text records, `types` only those with a question of one of these types.
    `fraction` takes that share of what is kept, `count` that many, drawn with the stage's seed; `repeat` takes what is
    drawn several times.

    `weight` mixes the entries of a stage, which then all have one, in this ratio: an epoch holds one entry's records
    once and those of the others as often as it takes, at least once.
    """

    path: str
    format: Literal[
        "auto", "llava", "messages", "videochat2", "video_chatgpt", "vcgbench", "vcgbench_consistency", "qa",
        "array_record", "parquet", "tfds", "mixture", "text_pages",
    ] = "auto"  # fmt: skip
    media_root: str | None = None
    fields: Any = Field(default_factory=FrozenDict)
    pages: Any = Field(default_factory=FrozenDict)
    media: tuple[Literal["image", "video", "text"], ...] = ("image", "video", "text")
    types: tuple[str, ...] = ()
    fraction: float = Field(default=1.0, gt=0, le=1)
    count: PositiveInt | None = None
    repeat: PositiveInt = 1
    weight: PositiveFloat | None = None

    @pydantic.field_validator("fields", mode="after")
    @classmethod
    def _freeze(cls, fields):
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields.values()):
            raise ValueError("fields must name a column for each key, as {'video': 'clip'}")
        return FrozenDict(fields)

    @pydantic.field_validator("pages", mode="after")
    @classmethod
    def _freeze_pages(cls, pages):
        if not isinstance(pages, Mapping):
            raise ValueError("pages must be options by name, as {'chunk_size': 115}")
        return FrozenDict(pages)

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.pages and self.format != "text_pages":
            raise ValueError("pages are drawn from texts: give format 'text_pages'")
        if self.weight is not None and self.repeat > 1:
            raise ValueError("weight already says how often; drop repeat")
        if self.count is not None and self.fraction < 1:
            raise ValueError("give one of fraction and count")
        return self


def _all_weighted(data: tuple[MixtureEntry, ...]) -> tuple[MixtureEntry, ...]:
    without = [entry.path for entry in data if entry.weight is None]
    if 0 < len(without) < len(data):
        raise ValueError(f"weight: give all entries one, or none; {without[0]} has none")
    return data


class DataConfig(Settings):
    """What all stages share: the tokenizer, the chat template and how images and frames are prepared.

    `processor` is a directory in Hugging Face format whose image processor is used as transformers uses it, and with it
    the tokenizer; without one, images are scaled and cropped as CLIP's are. `chat_template` is the name of one of ours,
    or "checkpoint" for the one that lies by the tokenizer. `image_layout` `anyres` cuts images into tiles as the
    processor's family does; `single` shows them as one square. `time_instruction` has a sentence follow every clip with
    its duration and the times of the frames that are shown. `workers` are processes that load samples, 0 for threads of
    the training process; "auto" measures how long samples take. Where several processes share a machine, give a number.

    `frame_sampling` says which frames of a clip are taken (`data.decoding`): `uniform` midpoints of equal parts, `fps`
    of them a second, `segment`, in training one drawn from each equal part, `segment_mid`, rounded midpoints (of
    Video-ChatGPT, SlowFast-LLaVA, Free Video-LLM and others; `video_chatgpt` takes no frame twice), or `segment_start`,
    IG-VLM's first frames of parts. `short_video` `identity` takes each frame once of a clip of no more frames than are
    asked for, where `formula` has the rule repeat some. A clip kept as images has `folder_fps` frames a second where
    nothing else says.

    `frame_fit` says how frames, and images shown as one square, become squares: `crop` keeps the middle, `squash`
    scales both edges, `pad` adds the tower's mean colour, `auto` is what the processor does, and `crop` without one.
    `clips` `grid` shows a clip as one image of its frames (IG-VLM), which `image_layout` anyres cuts as others.

    `prompt_tokenizer` is the tokenizer of a CLIP text tower that a sample's first question goes to: a directory, a hub
    id, `{clip}` for that of `init_from.clip`, or a `tokenizer.json`. Its ids are cut and padded to `prompt_length`.
    `clip_text` says whether the options of a multiple-choice question go there too.

    `cache_mb` MiB of decoded clips and square images are kept by every loading process for the next epoch.
    """

    tokenizer: str
    chat_template: str = "vicuna_v1"
    processor: str | None = None
    image_layout: Literal["single", "anyres"] = "single"
    embedded: Any = None
    frame_sampling: Literal["uniform", "fps", "segment", "segment_mid", "segment_start", "video_chatgpt"] = "uniform"
    short_video: Literal["formula", "identity"] = "formula"
    fps: PositiveFloat = 1.0
    folder_fps: PositiveFloat = 1.0
    frame_fit: Literal["auto", "crop", "squash", "pad"] = "auto"
    clips: Literal["frames", "grid"] = "frames"
    prompt_tokenizer: str | None = None
    prompt_length: PositiveInt = 77
    clip_text: Literal["question", "question_and_options"] = "question"
    time_instruction: bool = False
    workers: NonNegativeInt | Literal["auto"] = "auto"
    cache_mb: NonNegativeInt = 0
    max_bad_share: float = Field(default=0.01, ge=0, le=1)

    @pydantic.field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value):
        if value != "auto" and not str(value).isdigit():
            raise ValueError("give a number of processes, 0 or more, or 'auto'")
        return value

    @pydantic.field_validator("embedded", mode="after")
    @classmethod
    def _freeze(cls, options):
        return None if options is None else FrozenDict(options)

    @pydantic.model_validator(mode="after")
    def _check(self):
        for key, value in (("chat_template", "checkpoint"), ("image_layout", "anyres")):
            if getattr(self, key) == value and self.processor is None:
                raise ValueError(f"{key} {value!r} needs processor, the directory of a checkpoint")
        if self.clips == "grid" and self.time_instruction:
            raise ValueError("clips 'grid' shows an image, whose frames have no times; leave time_instruction off")
        return self


class AnswerConfig(Settings):
    """How a question about a clip is put when answers are generated.

    `frames` are taken of the clip; None: as many as the last stage takes. `prompt_template` is the name of a template
    in `data.text.answers`, a file ending in .txt, or text, with `{question}` and `{options}`; `append_question_mark`
    puts one after every question, also after one that has it (IG-VLM). `system` are instructions before it, None those
    of the chat template. The answer has to begin with `prefix`, where there are options with `options_prefix`, and has
    at most `max_new_tokens` tokens after it.
    """

    frames: PositiveInt | None = None
    prompt_template: str = "question"
    append_question_mark: bool = False
    system: str | None = None
    prefix: str = ""
    options_prefix: str = ""
    max_new_tokens: PositiveInt = 128


class StageConfig(Settings):
    """One training stage.

    `trainable` maps parameter patterns to learning rates; the last match wins and what matches none is frozen.
    `encoder/layers/[-3:]/**` addresses the last three of the layers that run. `batch_size` counts rows; with `pack`,
    a row holds as many samples as fit its `frames` and `length`. What `reset` matches starts the stage fresh instead of
    from the stage before. `copied` maps modules to others like them, of which they start the stage as copies:
    `{"adapter/temporal_connector": "adapter/connector"}`.

    `schedule` is what follows a linear warm-up; `log_warmup_cosine` is DeepSpeed's, whose warm-up rises with the
    logarithm of the step (`training.optimizer`).

    `objective` is what is learned: the next token of the text, or what the adapter itself has to learn before the
    decoder has a part in it (`VideoAdapter.own_losses`). With `accumulate`, micro-batches are contrasted one by one.
    """

    name: str
    data: tuple[MixtureEntry, ...]
    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    frames: PositiveInt
    video_frames: PositiveInt | None = None
    length: PositiveInt
    pack: bool = True
    trainable: tuple[tuple[str, PositiveFloat], ...]
    reset: tuple[str, ...] = ()
    copied: tuple[tuple[str, str], ...] = ()
    schedule: Literal["cosine", "constant", "linear", "log_warmup_cosine"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    final_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip_norm: PositiveFloat | None = 1.0
    loss_chunks: PositiveInt = 1
    loss_on: Literal["answer", "all_text"] = "answer"
    objective: Literal["text", "adapter"] = "text"
    frozen_dtype: DType = "float32"
    seed: int = 0
    save_every: PositiveInt | None = None
    log_every: PositiveInt = 10

    _weights = pydantic.field_validator("data", mode="after")(_all_weighted)

    @pydantic.field_validator("trainable", "copied", mode="before")
    @classmethod
    def _pairs(cls, value):
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @pydantic.model_validator(mode="after")
    def _check(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if not self.trainable:
            raise ValueError("trainable names no parameters")
        if self.frames_per_video > self.frames:
            raise ValueError(f"video_frames {self.video_frames} do not fit the row's frames {self.frames}")
        return self

    @property
    def frames_per_video(self) -> int:
        return self.video_frames or self.frames


class EvalConfig(Settings):
    """Held-out questions asked after the last stage, with the controls to hold the answers against: grey clips, frames
    in another order, and, for adapters that look at the question, another record's question to look at."""

    name: str
    data: tuple[MixtureEntry, ...]
    batch_size: PositiveInt
    frames: PositiveInt
    video_frames: PositiveInt | None = None
    length: PositiveInt
    pack: bool = True
    controls: tuple[Literal["blank_video", "shuffled_frames", "shuffled_prompt"], ...] = (
        "blank_video",
        "shuffled_frames",
    )
    limit: PositiveInt | None = None
    seed: int = 0
    loss_on: Literal["answer"] = "answer"

    _weights = pydantic.field_validator("data", mode="after")(_all_weighted)

    @property
    def frames_per_video(self) -> int:
        return self.video_frames or self.frames


class MeshConfig(Settings):
    """Sizes of the mesh axes; -1 (at most once) takes the devices that are left.

    `data` and `fsdp` split a batch's rows, `context` the tokens of a row, `tensor` heads and hidden units; parameters
    lie split over `fsdp`, `context` and `tensor`. `dcn_data` is the number of slices, which split the rows first; -1 is
    as many as there are.
    """

    dcn_data: int = -1
    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1


class CheckpointConfig(Settings):
    save_every: PositiveInt = 500
    keep: PositiveInt = 2


class Config(Settings):
    name: str
    model: ModelConfig
    data: DataConfig
    stages: tuple[StageConfig, ...] = ()
    evals: tuple[EvalConfig, ...] = ()
    answers: AnswerConfig = AnswerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tensorboard: bool = True
    wandb_project: str | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages share a name: {names}")
        for held_out in self.evals:
            if held_out.pack and self.data.prompt_tokenizer is not None:
                raise ValueError(
                    f"{held_out.name}: data.prompt_tokenizer has a question guide what is seen of its clip, and a row "
                    "holds one question; set pack to False"
                )
        longest = self.model.decoder.max_position_embeddings
        for part in (*self.stages, *self.evals):
            if part.length > longest:
                raise ValueError(f"{part.name}: length {part.length} > the decoder's max_position_embeddings {longest}")
        return self


def require_stages(config: Config) -> None:
    """Raises `InputError` for a recipe that trains nothing."""
    if not config.stages:
        raise InputError(
            f"config.stages: {config.name} trains nothing; ask its model with python -m vlvm_jax.generate or "
            "vlvm_jax.evaluate"
        )


def build(cls: type[SettingsT], values: Any, where: str = "config") -> SettingsT:
    """Builds settings from plain data, or raises `InputError` with one line for the first fault."""
    try:
        return cls.model_validate(_plain(values))
    except pydantic.ValidationError as error:
        raise InputError(_one_line(error, cls, where)) from None


def _plain(values: Any) -> Any:
    """A `ConfigDict` as plain dicts, also where it stands inside lists."""
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    if isinstance(values, Mapping) and not isinstance(values, FrozenDict):
        return {key: _plain(value) for key, value in values.items()}
    return [_plain(value) for value in values] if isinstance(values, list) else values


def _one_line(error: pydantic.ValidationError, cls: type[Settings], where: str) -> str:
    fault = error.errors()[0]
    path = ".".join([where, *(str(part) for part in fault["loc"])])
    if fault["type"] == "extra_forbidden":
        known = _fields_at(cls, fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(known))}"
        return f"{path}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{path}: this key is required and missing"
    message = fault["msg"].removeprefix("Value error, ")
    value = fault.get("input")
    found = "" if isinstance(value, Mapping | Settings) else f" (found {value!r})"
    return f"{path}: {message}{found}"


def _fields_at(cls: Any, loc: tuple) -> list[str]:
    """Field names of the settings class at a location of an error, following nested and tuple-typed fields."""
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = cls.model_fields[part].annotation
        nested = [annotation, *getattr(annotation, "__args__", ())]
        cls = next(a for a in nested if isinstance(a, type) and issubclass(a, Settings))
    return list(cls.model_fields)


def to_json(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def fingerprint(settings: Settings) -> str:
    """Short hash of everything in the settings; two runs share a workdir only if it is equal."""
    text = json.dumps(to_json(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
