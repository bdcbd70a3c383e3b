"""What `convert export` writes, and as which class: a bare tower or decoder, or a whole model."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from tokenizers import Tokenizer

from vlvm_jax import families
from vlvm_jax.config import AdapterConfig, Config, DecoderConfig, FrameTokens, LoraConfig, ModelConfig, VisionConfig
from vlvm_jax.data.files import read_json, without_code
from vlvm_jax.data.prompt.answers import read_template
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.data.prompt.tokenizer_files import checkpoint_tokenizer
from vlvm_jax.errors import InputError
from vlvm_jax.families import vlvm
from vlvm_jax.families._vlm import Media
from vlvm_jax.families.base import Exported, Layout, MediaTokens, Rule
from vlvm_jax.models import adapters
from vlvm_jax.models.params import Model
from vlvm_jax.weights import tables
from vlvm_jax.weights.export import config_json, ladder, lora, media_tokens
from vlvm_jax.weights.export.ladder import Rung
from vlvm_jax.weights.hf import side_files
from vlvm_jax.weights.recipe_source import RecipeSource
from vlvm_jax.weights.sources import HFDirectory, Source, Stored
from vlvm_jax.weights.torch_model import names as own_names

_NEWLINE = "adapter/image_newline"


@dataclasses.dataclass(frozen=True)
class Options:
    """What `convert export` can be told.

    Attributes:
      format: a class to export as, or None for the highest exact rung.
      media: what the export will be given.
      dtype: of the tensors; None keeps that of the checkpoint the model came from, or what is stored.
      lora: `merge` into the weights, or `peft`: the base here, the adapter in the folder `adapter`.
      verify: compare with PyTorch, if it is installed.
      max_shard_bytes: size of a safetensors file.
    """

    format: str | None = None
    media: Media = "all"
    dtype: str | None = None
    lora: str = "merge"
    verify: bool = True
    max_shard_bytes: int = 1 << 30


class Export:
    """What a bare and a whole export have alike.

    Attributes:
      base: `config.json` of the checkpoint that the model came from.
      vision, decoder: settings of the parts as they are exported, None for those that the source lacks.
      carried: tensors of the transformers class that have no place here, by their names relative to the tower.
    """

    def __init__(self, source: Source, options: Options, base: dict[str, Any] | None, rung: Rung):
        self.source, self.options, self.base, self.rung = source, options, base, rung
        self.vision: VisionConfig | None = source.vision
        self.decoder: DecoderConfig | None = source.decoder
        self.lora: LoraConfig | None = source.lora if isinstance(source, Stored) else None
        self.trained = bool(source.stages)
        self.tokenizer = _tokenizer(source)
        self.carried = side_files.carried(source.hf_files) if isinstance(source, Stored) and source.hf_files else {}
        if isinstance(source, HFDirectory):
            self.carried = side_files.carried_of(source.checkpoint)
        if options.lora == "peft" and self.lora is None:
            raise InputError(f"--lora=peft: {source.name} has no LoRA parameters; leave the flag out")

    @property
    def run(self) -> Config | None:
        """The config of the run that trained the model, or of the recipe that put it together; else None."""
        return getattr(self.source, "config", None)

    @property
    def dtype(self) -> str:
        """Name of the dtype that `config.json` gives."""
        if self.options.dtype:
            return self.options.dtype
        declared = (self.base or {}).get("dtype") or (self.base or {}).get("torch_dtype")
        if declared:
            return str(declared)
        return str(jnp.result_type(*{a.dtype for a in self.source.shapes.values()}))

    @property
    def rounds(self) -> bool:
        """Whether the export rounds weights: merged ones, or ones stored in another dtype than the export's."""
        as_it_came = not self.trained and self.run is None and self.options.dtype is None
        if self.dtype == "float32" or as_it_came:
            return False
        merged = self.lora is not None and self.options.lora == "merge"
        stored = {str(a.dtype) for path, a in self.source.shapes.items() if not lora.is_lora(path)}
        return merged or stored != {self.dtype}

    @property
    def layout(self) -> Layout:
        assert self.rung.stock is not None
        return self.rung.stock.layouts[0]

    def config(self) -> dict[str, Any]:
        """What `config.json` of the export holds."""
        assert self.rung.stock is not None
        return config_json.make(self.rung.stock, self.exported(), self.base)

    def exported(self) -> Exported:
        """What a family needs to know to write the config."""
        return Exported(self.vision, self.decoder, None, None, None, bool(self.carried), self.dtype)

    def rules(self) -> list[Rule]:
        """The tensors of the export."""
        return tables.rules_for(self.layout, vision=self.vision, decoder=self.decoder)

    def tensors(self, rule: Rule) -> Iterator[tuple[str, np.ndarray]]:
        """A parameter as its tensors go out: merged, rounded, in PyTorch's order of axes."""
        value = self._value(rule.path)
        for layer, name in enumerate(rule.tensors()):
            part = value if rule.layers is None else value[layer]
            if rule.transform == "transpose":
                part = part.T
            elif rule.transform == "patches":
                patch = round((part.shape[0] // 3) ** 0.5)
                part = part.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
            part = part.reshape((1,) * rule.outer + part.shape)
            yield name, self.cast(part)

    def parameter(self, path: str) -> np.ndarray:
        """A parameter as it goes out: merged, and rounded to the export's dtype (LoRA's own stay fp32)."""
        return self.source.read(path) if lora.is_lora(path) else self.cast(self._merged(path))

    def cast(self, value: np.ndarray) -> np.ndarray:
        """Imports keep every tensor's own dtype unless told otherwise; trained ones get the export's."""
        if self.options.dtype is None and not self.trained:
            return value
        return value.astype(jnp.dtype(self.dtype))

    def _value(self, path: str) -> np.ndarray:
        """A whole parameter on the host, LoRA merged."""
        return self._merged(path)

    def _merged(self, path: str) -> np.ndarray:
        """A parameter as stored, with its LoRA merged unless that is exported as an adapter. Merging is done in fp32
        and rounded once, to the export's dtype."""
        if self.lora is None or self.options.lora == "peft":
            return self.source.read(path)
        wanted = jnp.dtype(self.dtype)

        def get(name: str) -> np.ndarray:
            value = self.source.read(name)
            longer = name == path and value.dtype != wanted  # `merged` gives the dtype of the kernel
            return value.astype(np.float32) if longer else value

        return np.asarray(lora.merged(path, get, self.lora))


class BareExport(Export):
    """A tower or a decoder, which is its own class."""


class ModelExport(Export):
    """A whole model.

    Attributes:
      tokens: ids of `<image>` and `<video>`.
      decoder: its vocabulary includes rows added for media tokens.
    """

    vision: VisionConfig
    decoder: DecoderConfig

    def __init__(
        self,
        source: Source,
        options: Options,
        base: dict[str, Any] | None,
        rung: Rung,
        adapter: AdapterConfig,
    ):
        super().__init__(source, options, base, rung)
        assert source.vision is not None and source.decoder is not None
        self.adapter, self.stored_decoder = adapter, source.decoder
        self.vision = source.vision
        if rung.stock is None:
            own_names.source_files(adapter.name)  # refused now, not after all tensors are written
            if reason := Model(source_model(source)).adapter.only_here:
                raise InputError(f"config.model.adapter.options.{reason}")
        self.tokens: MediaTokens = media_tokens.choose(base, self.tokenizer, self.stored_decoder.vocab_size)
        self.decoder = _with_room(self.stored_decoder, self.media_tokens(), self.tokenizer)
        if options.lora == "peft" and rung.stock is None:
            raise InputError(
                "--lora=peft: an export with its own PyTorch file has merged weights only; use --lora=merge"
            )

    @property
    def model(self) -> ModelConfig:
        """As exported, but without room for media tokens; with LoRA only where it goes out as an adapter."""
        return self._model(self.lora if self.options.lora == "peft" else None)

    @property
    def source_model(self) -> ModelConfig:
        """As trained: LoRA is not merged."""
        return self._model(self.lora)

    def _model(self, kept: LoraConfig | None) -> ModelConfig:
        return ModelConfig(
            vision=self.vision, adapter=self.adapter, decoder=self.stored_decoder, lora=kept, dtype="float32"
        )

    @property
    def frame_tokens(self) -> FrameTokens | None:
        """What the adapter does with frames, if stock classes have terms for it."""
        return adapters.frame_tokens(self.adapter)

    @property
    def layout(self) -> Layout:
        if self.rung.stock is not None:
            return super().layout
        return vlvm.NESTED if self.vision.kind in ("clip", "siglip") else vlvm.FLAT

    @property
    def end_id(self) -> int | None:
        """What ends an answer in the chat template of the run, if that is one token."""
        config = self.run
        if config is None or self.tokenizer is None or config.data.chat_template not in TEMPLATES:
            return None
        tokenizer = Tokenizer.from_str(self.tokenizer.read_text(encoding="utf-8"))
        return tokenizer.token_to_id(TEMPLATES[config.data.chat_template].answer_end.strip())

    def media_tokens(self) -> dict[str, int]:
        """The tokens that stand for media in prompts of the class, and their ids."""
        image, video = {media_tokens.IMAGE: self.tokens.image}, {media_tokens.VIDEO: self.tokens.video}
        return image | video if self.rung.has_video else image

    def exported(self) -> Exported:
        connector = self.adapter.connector
        has_head = bool(self.carried)
        return Exported(self.vision, self.decoder, connector, self.frame_tokens, self.tokens, has_head, self.dtype)

    def config(self) -> dict[str, Any]:
        if self.rung.stock is not None:
            return super().config()
        ids = {"image_token_id": self.tokens.image, "video_token_id": self.tokens.video}
        fields = own_names.config_fields(self.model, **ids)
        return fields | config_json.parts(self.exported(), self.base) | {"dtype": self.dtype} | self._asked()

    def _asked(self) -> dict[str, Any]:
        """What our own class's config says for whoever asks the model here."""
        base, run, files = self.base or {}, self.run, self.source.hf_files
        asked = base.get("preparation")
        if run is not None:
            template = read_template(run.answers.prompt_template, "config.answers.prompt_template")
            answers = run.answers.model_copy(update={"prompt_template": template})
            stage = self.source.stages[-1] if self.source.stages else None
            asked = vlvm.preparation_fields(run.model_copy(update={"answers": answers}), stage)
        towers = None if files is None else side_files.of_tower(files) / "config.json"
        processed = None if towers is None else vlvm.processed_as(without_code(read_json(towers)))
        given = {"preparation": asked, "processed_as": processed}
        return {key: value for key, value in given.items() if value is not None}

    def rules(self) -> list[Rule]:
        stock = self.rung.stock
        rules = tables.rules_for(
            self.layout,
            vision=self.vision,
            decoder=self.decoder,
            connector=self.adapter.connector,
            newline=_NEWLINE in self.source.shapes if stock is None else stock.has_newline,
        )
        # A newline that no medium at hand needs stays behind where the class has none.
        known = {_NEWLINE, *(rule.path for rule in rules)}
        own = [path for path in self.source.shapes if path not in known and not lora.is_lora(path)]
        if own and stock is not None:
            raise AssertionError(f"{own} have no place in {stock.name}, which was found exact")
        return rules + own_names.adapter_rules(own, Model(self.model).adapter.clip_config)

    def _value(self, path: str) -> np.ndarray:
        """A whole parameter on the host, LoRA merged, the vocabulary with its added rows."""
        if path not in self.source.shapes:
            # Some classes want a newline even where only clips will be sent, which have none.
            assert path == _NEWLINE
            return np.zeros(self.decoder.hidden_size, np.float32)
        value = self._merged(path)
        if self.decoder.vocab_size == self.stored_decoder.vocab_size:
            return value
        axis = {"decoder/embed_tokens/embedding": 0, "decoder/lm_head/kernel": 1}.get(path)
        return value if axis is None else _with_rows(value, axis, self.decoder.vocab_size)


def source_model(source: Source) -> ModelConfig:
    """The settings of a whole model."""
    assert source.vision is not None and source.adapter is not None and source.decoder is not None
    return ModelConfig(vision=source.vision, adapter=source.adapter, decoder=source.decoder)


def plan(source: Source, options: Options) -> BareExport | ModelExport:
    """Decides which class a source is exported as.

    Raises:
      InputError: the class asked for is not exact, or an option does not suit the source.
    """
    base = _base_config(source)
    origin = families.of_config(base)
    rung = ladder.choose(
        source.vision,
        source.decoder,
        source.adapter,
        families.class_name(base),
        trained=bool(source.stages) or isinstance(source, RecipeSource),
        own_clips=None if origin is None or base is None else origin.own_clips(base),
        media=options.media,
        asked=options.format,
    )
    if source.adapter is None or source.vision is None or source.decoder is None:
        return BareExport(source, options, base, rung)
    return ModelExport(source, options, base, rung, source.adapter)


def _base_config(source: Source) -> dict[str, Any] | None:
    if source.hf_files is None or not (source.hf_files / "config.json").exists():
        return None
    return without_code(read_json(source.hf_files / "config.json"))


def _tokenizer(source: Source) -> epath.Path | None:
    """`tokenizer.json` of the checkpoint the model came from, or the one its run was trained with. If there is only
    another form (`tokenizer.model`, `vocab.json`), it is converted."""
    if source.hf_files is None:
        return None
    if (source.hf_files / "tokenizer.json").exists():
        return source.hf_files / "tokenizer.json"
    if source.adapter is None or not (source.hf_files / "tokenizer_config.json").exists():
        return None
    made = side_files.temporary_folder("tokenizer") / "tokenizer.json"
    checkpoint_tokenizer(str(side_files.local(source.hf_files))).backend_tokenizer.save(str(made))
    return made


def _with_room(decoder: DecoderConfig, media: dict[str, int], tokenizer: epath.Path | None) -> DecoderConfig:
    """The decoder with a row for every id of the export's texts; if any is missing, rows become a multiple of 64."""
    needed = 1 + max(*media.values(), media_tokens.highest_id(tokenizer))
    if needed <= decoder.vocab_size:
        return decoder
    return decoder.model_copy(update={"vocab_size": -(-needed // 64) * 64})


def _with_rows(value: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Copies of token 0 as new tokens: their logits equal its own, so that a greedy choice never falls on them."""
    first = np.take(value, [0], axis=axis)
    return np.concatenate([value, np.repeat(first, size - value.shape[axis], axis=axis)], axis=axis)
