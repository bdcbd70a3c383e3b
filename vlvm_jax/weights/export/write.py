"""`convert export`: a run, a checkpoint or an import as a directory that transformers loads.

Tensors go out one parameter at a time, in the layout that Hugging Face checkpoints have on the hub. The directory
appears whole or not at all, and only after the exported model was compared with this one (`verify`).
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from tokenizers import Tokenizer

from vlvm_jax.config import DecoderConfig, LoraConfig, ModelConfig, VisionConfig
from vlvm_jax.data.files import read_json, without_code
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.data.prompt.tokenizer_files import checkpoint_tokenizer
from vlvm_jax.errors import InputError
from vlvm_jax.families import llava_layout, read
from vlvm_jax.families import write as class_config
from vlvm_jax.families.write import MediaTokens
from vlvm_jax.weights import tables
from vlvm_jax.weights.export import card, ladder, lora, media_tokens, verify
from vlvm_jax.weights.export.ladder import OWN_CLASS, Rung
from vlvm_jax.weights.hf import side_files
from vlvm_jax.weights.hf.safetensors_files import SafetensorsWriter
from vlvm_jax.weights.sources import HFDirectory, Source, Stored, open_source
from vlvm_jax.weights.tables import Layout, Rule
from vlvm_jax.weights.torch_model import names as own_names


def own_layout(vision: VisionConfig) -> Layout:
    """Tensor names of our own class; CLIP's and SigLIP's towers with the inner prefix that transformers 5.0 wants."""
    return Layout(
        OWN_CLASS,
        {
            "tower": "model.vision_tower." + ("" if vision.kind == "idefics3" else "vision_model."),
            "decoder": "model.language_model.",
            "head": "",
            "connector": "model.adapter.connector.",
            "newline": "model.adapter.",
        },
    )


PEFT_PREFIXES = {
    "llava": {"decoder": "model.language_model", "encoder": "model.vision_tower.encoder"},
    "smolvlm": {"decoder": "model.text_model", "encoder": "model.vision_model.encoder"},
    "bare": {"decoder": "model"},
}


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
    media: ladder.Media = "all"
    dtype: str | None = None
    lora: str = "merge"
    verify: bool = True
    max_shard_bytes: int = 1 << 30


@dataclasses.dataclass(frozen=True)
class Result:
    rung: Rung
    parameters: int
    bytes: int
    verified: verify.Report | None
    directory: Path


def export_checkpoint(
    source: str, destination: Path, options: Options, progress: Callable[[int, int], None] | None = None
) -> Result:
    """Exports what `source` names.

    Args:
      progress: called with (parameters done, parameters in all).

    Raises:
      InputError: the source or the destination is at fault, or the class asked for is not exact.
    """
    if destination.exists():
        raise InputError(f"{destination}: exists already; remove it, or name another destination")
    export = Export(open_source(source, "SRC"), options)
    temporary = destination.parent / f"{destination.name}.exporting"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        parameters, size = export.write(temporary, progress)
        report = verify.compare(export, temporary) if options.verify else None
        (temporary / "README.md").write_text(card.text(export, report), encoding="utf-8")
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Result(export.rung, parameters, size, report, destination)


class Export:
    """What is exported and as what.

    Attributes:
      model: settings of the whole model; None for a bare tower or decoder.
      vision, decoder, adapter: of the parts; the decoder's vocabulary includes rows added for media tokens.
      tokens: ids of `<image>` and `<video>`, None for a bare part.
    """

    def __init__(self, source: HFDirectory | Stored, options: Options):
        self.source, self.options = source, options
        self.vision, self.adapter = source.vision, source.adapter
        self.lora = source.lora if isinstance(source, Stored) else None
        self.base = _base_config(source)
        self.base_family = read.base_family(self.base)
        self.trained = bool(source.stages)
        self.tokenizer = _tokenizer(source)
        self.rung = ladder.choose(
            source.vision, source.decoder, source.adapter, self.base_family,
            trained=self.trained, own_clips=self._own_clips(), media=options.media, asked=options.format,
        )  # fmt: skip
        if self.rung.family == OWN_CLASS:
            assert source.adapter is not None
            own_names.source_files(source.adapter.name)  # refused now, not after all tensors are written
        self.tokens: MediaTokens | None = None
        self.decoder: DecoderConfig | None = source.decoder
        self.stored_vocab = source.decoder.vocab_size if source.decoder else 0
        if source.adapter is not None and source.decoder is not None:
            self.tokens = media_tokens.choose(self.base, self.tokenizer, self.stored_vocab)
            self.decoder = _with_room(source.decoder, self.media_tokens(), self.tokenizer)
        self.carried = side_files.carried(source.hf_files) if isinstance(source, Stored) and source.hf_files else {}
        if isinstance(source, HFDirectory):
            self.carried = side_files.carried_of(source.checkpoint)
        if options.lora == "peft":
            self._check_peft()

    def media_tokens(self) -> dict[str, int]:
        """The tokens that stand for media in prompts of the class, and their ids."""
        assert self.tokens is not None
        image, video = {media_tokens.IMAGE: self.tokens.image}, {media_tokens.VIDEO: self.tokens.video}
        return image | video if self.rung.has_video else image

    def _own_clips(self) -> dict[str, Any] | None:
        """What the original LLaVA layout says about clips."""
        is_original = self.base is not None and llava_layout.language(self.base) is not None
        return llava_layout.clip_options(self.base) if is_original and self.base else None

    def _check_peft(self) -> None:
        if self.lora is None:
            raise InputError(f"--lora=peft: {self.source.name} has no LoRA parameters; leave the flag out")
        if self.rung.number == 4:
            raise InputError(
                "--lora=peft: an export with its own PyTorch file has merged weights only; use --lora=merge"
            )

    @property
    def model(self) -> ModelConfig | None:
        """As exported, but without room for media tokens; with LoRA only where it goes out as an adapter."""
        return self._model(self.lora if self.options.lora == "peft" else None)

    @property
    def source_model(self) -> ModelConfig | None:
        """As trained: LoRA is not merged."""
        return self._model(self.lora)

    def _model(self, kept: LoraConfig | None) -> ModelConfig | None:
        if self.vision is None or self.adapter is None or self.source.decoder is None:
            return None
        return ModelConfig(
            vision=self.vision, adapter=self.adapter, decoder=self.source.decoder, lora=kept, dtype="float32"
        )

    @property
    def rounds(self) -> bool:
        """Whether the export rounds weights: merged ones, or ones stored in another dtype than the export's."""
        if self.dtype == "float32" or not (self.trained or self.options.dtype):
            return False
        merged = self.lora is not None and self.options.lora == "merge"
        stored = {str(a.dtype) for path, a in self.source.shapes.items() if not lora.is_lora(path)}
        return merged or stored != {self.dtype}

    def parameter(self, path: str) -> np.ndarray:
        """A parameter of `model` as it goes out: merged, and rounded to the export's dtype (LoRA's own stay fp32)."""
        return self.source.read(path) if lora.is_lora(path) else self.cast(self._merged(path))

    @property
    def layout(self) -> Layout:
        if self.rung.family == OWN_CLASS:
            assert self.vision is not None
            return own_layout(self.vision)
        return tables.LAYOUTS[self.rung.family][0]

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
    def end_id(self) -> int | None:
        """What ends an answer in the chat template of the run, if that is one token."""
        config = self.source.config if isinstance(self.source, Stored) else None
        if config is None or self.tokenizer is None or config.data.chat_template not in TEMPLATES:
            return None
        tokenizer = Tokenizer.from_str(self.tokenizer.read_text(encoding="utf-8"))
        return tokenizer.token_to_id(TEMPLATES[config.data.chat_template].answer_end.strip())

    def write(self, folder: Path, progress: Callable[[int, int], None] | None) -> tuple[int, int]:
        """Tensors, config, tokenizer, code; returns the numbers of parameters and of bytes."""
        rules = self._rules()
        carried = {f"{self.layout.prefixes['tower']}{name}": value for name, value in self.carried.items()}
        names = [*carried, *(name for rule in rules for name in rule.tensors())]
        writer = SafetensorsWriter(folder, names, self.options.max_shard_bytes)
        for number, rule in enumerate(rules):
            self._write_parameter(writer, rule)
            if progress is not None:
                progress(number + 1, len(rules))
        for name, value in carried.items():
            writer.add(name, self.cast(value))
        writer.close()
        self._write_files(folder)
        if self.options.lora == "peft":
            self._write_peft(folder / "adapter")
        return writer.total_parameters, writer.total_bytes

    def _rules(self) -> list[Rule]:
        newline = "adapter/image_newline"
        has_newline = self.rung.family in ("llava_next", "llava_next_video", "llava_onevision")
        if self.rung.family == OWN_CLASS:
            has_newline = newline in self.source.shapes
        rules = tables.rules_for(
            self.layout,
            vision=self.vision,
            decoder=self.decoder,
            connector=self.adapter.connector if self.adapter else None,
            newline=has_newline,
        )
        # A newline that no medium at hand needs stays behind where the class has none.
        known = {newline, *(rule.path for rule in rules)}
        own = [path for path in self.source.shapes if path not in known and not lora.is_lora(path)]
        if own and self.rung.family != OWN_CLASS:
            raise AssertionError(f"{own} have no place in {self.rung.family}, which was found exact")
        for path in own:
            name, transpose = own_names.adapter_tensor_name(path)
            rules.append(Rule(name, path, "transpose" if transpose else "same"))
        return rules

    def _write_parameter(self, writer: SafetensorsWriter, rule: Rule) -> None:
        for name, value in self._tensors(rule):
            writer.add(name, value)

    def _tensors(self, rule: Rule) -> Iterator[tuple[str, np.ndarray]]:
        value = self._value(rule.path)
        for layer, name in enumerate(rule.tensors()):
            part = value if rule.layers is None else value[layer]
            if rule.transform == "transpose":
                part = part.T
            elif rule.transform == "patches":
                patch = round((part.shape[0] // 3) ** 0.5)
                part = part.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
            yield name, self.cast(part)

    def _value(self, path: str) -> np.ndarray:
        """A whole parameter on the host, LoRA merged, the vocabulary with its added rows."""
        if path not in self.source.shapes:
            # llava_next_video and onevision want a newline even where only clips will be sent, which have none.
            assert path == "adapter/image_newline" and self.decoder is not None
            return np.zeros(self.decoder.hidden_size, np.float32)
        value = self._merged(path)
        if self.decoder is None or self.decoder.vocab_size == self.stored_vocab:
            return value
        axis = {"decoder/embed_tokens/embedding": 0, "decoder/lm_head/kernel": 1}.get(path)
        return value if axis is None else _with_rows(value, axis, self.decoder.vocab_size)

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

    def cast(self, value: np.ndarray) -> np.ndarray:
        """Imports keep every tensor's own dtype unless told otherwise; trained ones get the export's."""
        if self.options.dtype is None and not self.trained:
            return value
        return value.astype(jnp.dtype(self.dtype))

    def _write_files(self, folder: Path) -> None:
        if self.source.hf_files is not None:
            side_files.copy_flat(self.source.hf_files, folder)
            self._write_processors(folder)
        if self.tokens is not None and self.tokenizer is not None:
            media_tokens.write_tokenizer(self.tokenizer, folder, self.media_tokens())
        _write_json(folder / "config.json", self.config())
        if not (folder / "generation_config.json").exists() and self.end_id is not None:
            values = {"eos_token_id": self.end_id, "pad_token_id": self.end_id}
            _write_json(folder / "generation_config.json", values)
        if self.rung.family == OWN_CLASS:
            assert self.adapter is not None
            for name, path in own_names.source_files(self.adapter.name).items():
                shutil.copyfile(path, folder / name)

    def _write_processors(self, folder: Path) -> None:
        """The processors' files for a tower in the original LLaVA layout, which has none."""
        if self.source.hf_files is None or self.vision is None:
            return
        files = Path(side_files.local(side_files.of_tower(self.source.hf_files)))
        raw = read_json(files / "config.json")
        if llava_layout.language(raw) is None:
            return
        tower = llava_layout.tower_processor(files, raw, llava_layout.tower_sizes(files, raw))
        family, size = self.rung.family, self.vision.image_size
        padded = raw.get("image_aspect_ratio") == "pad" and family == "llava"
        image = llava_layout.processor_of(family, tower, size, self.config().get("image_grid_pinpoints"), padded)
        _write_json(folder / "preprocessor_config.json", image)
        if name := {"llava_next_video": "LlavaNextVideo", "llava_onevision": "LlavaOnevision"}.get(family):
            kept = {key: value for key, value in tower.items() if not key.endswith("_type")}
            _write_json(
                folder / "video_preprocessor_config.json", {"video_processor_type": f"{name}VideoProcessor", **kept}
            )

    def config(self) -> dict[str, Any]:
        if self.rung.family != OWN_CLASS:
            return class_config.class_config(
                self.rung.family, self.vision, self.decoder, self.adapter, self.tokens, self.base, self.dtype,
                has_head=bool(self.carried),
            )  # fmt: skip
        assert self.model and self.decoder and self.vision and self.tokens
        fields = own_names.config_fields(self.model, image_token_id=self.tokens.image, video_token_id=self.tokens.video)
        text_type = ((self.base or {}).get("text_config") or {}).get("model_type")
        return fields | {
            "vision_config": class_config.vision_dict(self.vision, OWN_CLASS, has_head=bool(self.carried)),
            "text_config": class_config.text_dict(self.decoder, text_type),
            "dtype": self.dtype,
        }

    def _write_peft(self, folder: Path) -> None:
        assert self.lora is not None
        family = self.rung.family
        key = "bare" if self.rung.number == 0 else "smolvlm" if family in ("smolvlm", "idefics3") else "llava"
        wanted = {path: self.source.read(path) for path in self.source.shapes if lora.is_lora(path)}
        lora.write_peft(folder, wanted, self.lora, PEFT_PREFIXES[key], base_model="..")


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


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _with_room(decoder: DecoderConfig, media: Mapping[str, int], tokenizer: epath.Path | None) -> DecoderConfig:
    """The decoder with a row for every id of the export's texts; if any is missing, rows become a multiple of 64."""
    needed = 1 + max(*media.values(), media_tokens.highest_id(tokenizer))
    if needed <= decoder.vocab_size:
        return decoder
    return decoder.model_copy(update={"vocab_size": -(-needed // 64) * 64})


def _with_rows(value: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Copies of token 0 as new tokens: their logits equal its own, so that a greedy choice never falls on them."""
    first = np.take(value, [0], axis=axis)
    return np.concatenate([value, np.repeat(first, size - value.shape[axis], axis=axis)], axis=axis)
