"""Checkpoints in the layout of the original LLaVA repositories (haotian-liu/LLaVA, LLaVA-VL/LLaVA-NeXT by lmms-lab).

The tower's weights may or may not be in the files. What the keys of `config.json` mean: `_llava_layout`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlvm_jax import families
from vlvm_jax.config import ConnectorConfig, FrameTokens
from vlvm_jax.data.files import read_json
from vlvm_jax.data.images.image_rules import REQUIRED, Settings
from vlvm_jax.errors import InputError, brief
from vlvm_jax.families import _llava_layout as llava_layout
from vlvm_jax.families import base
from vlvm_jax.families._decoder import decoder_families
from vlvm_jax.families._llava import POOLING_HEAD
from vlvm_jax.families._tower import tower
from vlvm_jax.families.base import Access, HFModel, Layout, Preparation, own_data

_DECODERS = {"Llama": "llama", "Qwen": "qwen2", "Mistral": "mistral"}
_TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
_SELECTED = -2
# The LLaVA repositories save it even where `mm_patch_merge_type` has no use for it.
_UNUSED_NEWLINE = re.compile(r"^model\.image_newline$")
# As LLaVA-1.5 is published, the tower stays in its own repository. A connector of one layer has no number.
_PARTS: dict[Any, str] = {"decoder": "model.", "head": "", "connector": "model.mm_projector.", "newline": "model."}
_WITH_TOWER = {**_PARTS, "tower": _TOWER_PREFIX}
_TWO_LAYERS = {"mm_projector.0.": "mm_projector.linear_1.", "mm_projector.2.": "mm_projector.linear_2."}
_ONE_LAYER = {"mm_projector.": "mm_projector.linear_1."}


class Family(base.Family):
    name = "original"
    precedence = 1  # its config.json may have the model_type of transformers' class
    layouts = (
        Layout("original-without-tower", _PARTS, _TWO_LAYERS),
        Layout("original", _WITH_TOWER, _TWO_LAYERS),
        Layout("original-linear-without-tower", _PARTS, _ONE_LAYER),
        Layout("original-linear", _WITH_TOWER, _ONE_LAYER),
    )
    carried = POOLING_HEAD
    auto_tokenizer = False  # which would warn about the types of these checkpoints

    def claims(self, raw: Mapping[str, Any]) -> bool:
        return llava_layout.language(dict(raw)) is not None

    def class_of(self, raw: dict[str, Any]) -> str:
        return llava_layout.hf_family(raw)

    def read(self, directory: Path, raw: dict[str, Any], access: Access) -> HFModel:
        from transformers import AutoConfig

        where = str(directory / "config.json")
        llava_layout.check(raw, where)
        language = decoder_families()[_DECODERS[str(llava_layout.language(raw))]]
        text = {key: value for key, value in raw.items() if key not in ("model_type", "architectures")}
        try:
            config = AutoConfig.for_model(language.name, **text)
        except Exception as error:  # transformers raises anything from KeyError to StrictDataclassError here
            raise InputError(f"{where}: transformers cannot read the decoder's settings ({brief(error)})") from None
        prefix = f"{_TOWER_PREFIX}encoder.layers."
        layers = {tensor.split(".")[6] for tensor in access.tensors() if tensor.startswith(prefix)}
        tuned = llava_layout.tuned_tower(raw)
        if tuned is not None and not layers:
            raise InputError(
                f"{where}: {tuned} {raw[tuned]!r} says that the tower was trained too, but its tensors are not among "
                "the checkpoint's; the tower of mm_vision_tower has other weights"
            )
        sizes = _tower_sizes(directory, raw, None if layers else access)
        siglip = sizes["model_type"].startswith("siglip")
        select = raw.get("mm_vision_select_layer", _SELECTED)
        if siglip:  # their class of SigLIP reads the penultimate layer whatever the key says
            select = _SELECTED
        used = sizes["num_hidden_layers"] + select + 1
        stored = len(layers) or sizes["num_hidden_layers"]  # LLaVA-NeXT drops SigLIP's last layer, which it never runs
        tower_config = AutoConfig.for_model(**{**sizes, "num_hidden_layers": stored})
        processor = llava_layout.tower_processor(directory, raw, sizes)
        statistics = processor.get("image_mean"), processor.get("image_std")
        vision = tower(
            tower_config, where, feature_layer=used - stored - 1, statistics=statistics if all(statistics) else None
        )
        if raw.get("mm_hidden_size") not in (None, vision.hidden_size):
            raise InputError(
                f"{where}: mm_hidden_size {raw['mm_hidden_size']!r}, but features of the tower have "
                f"{vision.hidden_size} values"
            )
        stock = families.stock(self.class_of(raw))
        return HFModel(
            directory=directory,
            family=self.name,
            hf_family=stock.name,
            vision=vision,
            decoder=language.decoder_config(config, where, config.tie_word_embeddings),
            connector=ConnectorConfig(kind=raw.get("mm_projector_type") or "linear"),
            frame_tokens=self.own_clips(raw) or stock.frame_tokens,
            has_newline=stock.has_newline,
            tower_source=None if layers else _tower_source(directory, raw),
            raw=raw,
        )

    def dropped(self, model: HFModel) -> re.Pattern | None:
        return None if model.has_newline else _UNUSED_NEWLINE

    def own_clips(self, raw: dict[str, Any]) -> FrameTokens | None:
        options = llava_layout.clip_options(raw)
        return None if options is None else FrameTokens(**options)

    def named_tower(self, directory: Path, raw: dict[str, Any]) -> Path | None:
        return llava_layout.tower_directory(directory, raw["mm_vision_tower"])

    def settings(self, directory: Path, raw: dict[str, Any]) -> Settings:
        """In terms of the transformers class that the checkpoint corresponds to."""
        try:
            from transformers import AutoConfig
        except ImportError as error:
            raise InputError(f"config.data.processor needs {REQUIRED} ({brief(error)})") from None
        llava_layout.check(raw, f"{directory}/config.json")
        sizes = llava_layout.tower_sizes(directory, raw)
        size, stock = sizes["image_size"], families.stock(self.class_of(raw))
        tiling = self.tiling(raw, size)
        config = AutoConfig.for_model(stock.name, vision_config=dict(sizes), **tiling)
        tower = llava_layout.tower_processor(directory, raw, sizes)
        padded = raw.get("image_aspect_ratio") == "pad"
        image = stock.image_processor(tower, size, tiling.get("image_grid_pinpoints"), padded)
        clips = llava_layout.clip_options(raw)
        return Settings(
            directory,
            config,
            image,
            "config.json",
            {"size": {"height": size, "width": size}, "resample": image.get("resample")},
            {},
            frames=None if clips is None else tower,
            clip_tokens=None if clips is None else llava_layout.clip_tokens(clips, size // sizes["patch_size"]),
            around=("<im_start>", "<im_end>") if raw.get("mm_use_im_start_end") else None,
            says_times=bool(raw.get("add_time_instruction")),
        )

    def preparation(self, directory: Path, raw: dict[str, Any]) -> Preparation | None:
        """lmms-lab's script takes frames in its own way; nothing else is said beyond the processors' files."""
        if not raw.get("force_sample"):
            return None
        return Preparation(own_data(directory, frame_sampling="ends"))

    def tiling(self, raw: dict[str, Any], size: int) -> dict[str, Any]:
        return llava_layout.tiling(raw, size)

    def processor_files(
        self, directory: Path, stock: base.StockFamily | None, config: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        raw = read_json(directory / "config.json")
        sizes = llava_layout.tower_sizes(directory, raw)
        tower = llava_layout.tower_processor(directory, raw, sizes)
        if stock is None:
            return {"preprocessor_config.json": tower}
        padded = raw.get("image_aspect_ratio") == "pad"
        image = stock.image_processor(
            tower, config["vision_config"]["image_size"], config.get("image_grid_pinpoints"), padded
        )
        files = {"preprocessor_config.json": image}
        if stock.video_processor is not None:
            kept = {key: value for key, value in tower.items() if not key.endswith("_type")}
            files["video_preprocessor_config.json"] = {"video_processor_type": stock.video_processor, **kept}
        return files


def _tower_source(directory: Path, raw: dict[str, Any]) -> str:
    """The tower's directory, possibly relative to the checkpoint, if there is one; else its hub id."""
    name = raw["mm_vision_tower"]
    return str(directory / name) if (directory / name / "config.json").is_file() else name


def _tower_sizes(directory: Path, raw: dict[str, Any], access: Access | None) -> dict[str, Any]:
    """The tower's settings; with an `access`, its checkpoint is downloaded if they are not at hand."""
    try:
        return llava_layout.tower_sizes(directory, raw)
    except InputError:
        if access is None:
            raise
    access.fetch(raw["mm_vision_tower"], f"{directory / 'config.json'}: mm_vision_tower")  # its weights are needed too
    return llava_layout.tower_sizes(directory, raw)
