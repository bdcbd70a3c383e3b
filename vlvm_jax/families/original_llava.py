"""Checkpoints in the layout of the original LLaVA repositories (haotian-liu/LLaVA, LLaVA-VL/LLaVA-NeXT by lmms-lab).

The tower's weights may or may not be in the files. What the keys of `config.json` mean: `families.llava_layout`.
"""

from pathlib import Path
from typing import Any

from vlvm_jax.config import ConnectorConfig
from vlvm_jax.errors import InputError, brief
from vlvm_jax.families import llava_layout
from vlvm_jax.families import read as hf_config
from vlvm_jax.families.read import HFModel
from vlvm_jax.weights.hf import hub
from vlvm_jax.weights.hf.safetensors_files import SafetensorsReader

_DECODERS = {"Llama": "llama", "Qwen": "qwen2", "Mistral": "mistral"}
_TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
_SELECTED = -2


def read(directory: Path, raw: dict[str, Any], language: str) -> HFModel:
    """See `hf_config.read`; `language` is the class name's middle: Llama, Qwen or Mistral."""
    from transformers import AutoConfig

    where = str(directory / "config.json")
    llava_layout.check(raw, where)
    text = {key: value for key, value in raw.items() if key not in ("model_type", "architectures")}
    try:
        config = AutoConfig.for_model(_DECODERS[language], **text)
    except Exception as error:  # transformers raises anything from KeyError to StrictDataclassError here
        raise InputError(f"{where}: transformers cannot read the decoder's settings ({brief(error)})") from None
    reader = SafetensorsReader(directory)
    layers = {tensor.split(".")[6] for tensor in reader.tensors if tensor.startswith(f"{_TOWER_PREFIX}encoder.layers.")}
    tuned = llava_layout.tuned_tower(raw)
    if tuned is not None and not layers:
        raise InputError(
            f"{where}: {tuned} {raw[tuned]!r} says that the tower was trained too, but its tensors are not among the "
            "checkpoint's; the tower of mm_vision_tower has other weights"
        )
    sizes = _tower_sizes(directory, raw, bool(layers))
    siglip = sizes["model_type"].startswith("siglip")
    select = raw.get("mm_vision_select_layer", _SELECTED)
    if siglip:  # their class of SigLIP reads the penultimate layer whatever the key says
        select = _SELECTED
    used = sizes["num_hidden_layers"] + select + 1
    stored = len(layers) or sizes["num_hidden_layers"]  # LLaVA-NeXT drops SigLIP's last layer, which it never runs
    tower_config = AutoConfig.for_model(**{**sizes, "num_hidden_layers": stored})
    processor = llava_layout.tower_processor(directory, raw, sizes)
    statistics = processor.get("image_mean"), processor.get("image_std")
    vision = hf_config.tower(
        tower_config, where, feature_layer=used - stored - 1, statistics=statistics if all(statistics) else None
    )
    if raw.get("mm_hidden_size") not in (None, vision.hidden_size):
        raise InputError(
            f"{where}: mm_hidden_size {raw['mm_hidden_size']!r}, but features of the tower have {vision.hidden_size} "
            "values"
        )
    family = llava_layout.hf_family(raw)
    options = llava_layout.clip_options(raw)
    return HFModel(
        directory=directory,
        family="original",
        hf_family=family,
        vision=vision,
        decoder=hf_config.decoder(config, where, config.tie_word_embeddings),
        connector=ConnectorConfig(kind=raw.get("mm_projector_type") or "linear"),
        frames_options=hf_config.frames_options(family) if options is None else options,
        has_newline=family != "llava",
        tower_source=None if layers else _tower_source(directory, raw),
        raw=raw,
    )


def _tower_source(directory: Path, raw: dict[str, Any]) -> str:
    """The tower's directory, possibly relative to the checkpoint, if there is one; else its hub id."""
    name = raw["mm_vision_tower"]
    return str(directory / name) if (directory / name / "config.json").is_file() else name


def _tower_sizes(directory: Path, raw: dict[str, Any], has_weights: bool) -> dict[str, Any]:
    try:
        return llava_layout.tower_sizes(directory, raw)
    except InputError:
        if has_weights:
            raise
    hub.resolve(raw["mm_vision_tower"], f"{directory / 'config.json'}: mm_vision_tower")  # its weights are needed too
    return llava_layout.tower_sizes(directory, raw)
