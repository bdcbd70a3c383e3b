"""Exports of this library with PyTorch code of their own (rung 4): any adapter between a tower and a decoder.

The code is for PyTorch; nothing of it is run here. `config.json` also has how the model was trained to be asked
(`preparation`) and the settings of the checkpoint whose processors' files lie beside it (`processed_as`).
"""

import re
from pathlib import Path
from typing import Any, get_args

from vlvm_jax import families
from vlvm_jax.config import AdapterConfig, AnswerConfig, Config, DataConfig, DType, VisionConfig, build, to_json
from vlvm_jax.data.images.image_rules import Settings, read_processors
from vlvm_jax.errors import InputError, brief
from vlvm_jax.families import base
from vlvm_jax.families._decoder import decoder_config
from vlvm_jax.families._tower import squared, tower
from vlvm_jax.families.base import CLIP_FOLDER, Access, HFModel, Layout, Preparation

_PREFIXES: dict[Any, str] = {
    "decoder": "model.language_model.",
    "head": "",
    "connector": "model.adapter.connector.",
    "newline": "model.adapter.",
}
# CLIP's and SigLIP's towers have the inner prefix that transformers 5.0 wants.
NESTED = Layout("nested-tower", {"tower": "model.vision_tower.vision_model.", **_PREFIXES})
FLAT = Layout("flat-tower", {"tower": "model.vision_tower.", **_PREFIXES})
# Settings of a machine or of training, and files whose place is known.
_NOT_KEPT = ("tokenizer", "processor", "prompt_tokenizer", "embedded", "workers", "cache_mb", "max_bad_share")


class Family(base.Family):
    name = "vlvm"
    model_types = ("vlvm",)
    layouts = (NESTED, FLAT)
    carried = re.compile(r"^model\.vision_tower\.(vision_model\.)?head\..*$")  # SigLIP's pooling head
    auto_tokenizer = False  # it would ask to run the code

    def read(self, directory: Path, raw: dict[str, Any], access: Access) -> HFModel:
        del access
        where = str(directory / "config.json")
        text, vision = _part(raw, "text_config", where), _part(raw, "vision_config", where)
        adapter = build(AdapterConfig, raw.get("adapter"), f"{where}: adapter")
        statistics = _statistics(raw, "image_mean", where), _statistics(raw, "image_std", where)
        squared(vision, f"{where}: vision_config")
        sizes = tower(
            vision,
            where,
            feature_layer=raw.get("vision_feature_layer"),
            post_norm=bool(raw.get("vision_post_norm")),
            statistics=statistics if all(statistics) else None,
        )
        return HFModel(
            directory,
            self.name,
            self.name,
            build(VisionConfig, {**to_json(sizes), "attention_layer": raw.get("attention_layer")}, where),
            decoder_config(text, where, bool(raw.get("tie_word_embeddings"))),
            adapter.connector,
            adapter=adapter,
            raw=raw,
        )

    def preparation(self, directory: Path, raw: dict[str, Any]) -> Preparation | None:
        given = raw.get("preparation")
        if given is None:
            return None
        where = f"{directory / 'config.json'}: preparation"
        try:
            data, answers, frames, dtype = dict(given["data"]), given["answers"], given["frames"], given["dtype"]
            processor = str(directory) if given["processor"] else None
            guide = str(directory / CLIP_FOLDER) if given.get("guided") else None
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{where}: expected data, answers, frames, dtype and processor ({brief(error)})") from None
        if known := [key for key in _NOT_KEPT if key in data]:
            raise InputError(f"{where}.data: {known[0]} has no place in an export")
        if frames is not None and (not isinstance(frames, int) or frames < 1):
            raise InputError(f"{where}.frames: {frames!r} is no number of frames")
        if dtype not in get_args(DType):
            raise InputError(f"{where}.dtype: {dtype!r}; expected one of {', '.join(get_args(DType))}")
        asked = build(AnswerConfig, answers, f"{where}.answers")
        if asked.prompt_template.endswith(".txt"):
            raise InputError(f"{where}.answers.prompt_template: {asked.prompt_template!r}: a file has no place here")
        files = {"tokenizer": str(directory), "processor": processor, "prompt_tokenizer": guide}
        return Preparation(build(DataConfig, {**data, **files}, f"{where}.data"), asked, frames, dtype)

    def settings(self, directory: Path, raw: dict[str, Any]) -> Settings:
        from transformers import AutoConfig

        where, given = directory / "config.json", raw.get("processed_as")
        if not isinstance(given, dict):
            raise InputError(
                f"{where}: it does not say what its processors' files are of (processed_as), so pictures cannot be "
                "prepared; use the run or the checkpoint that it was exported from"
            )
        try:
            config = AutoConfig.for_model(**given)
        except Exception as error:  # transformers raises anything from KeyError to StrictDataclassError here
            raise InputError(f"{where}: transformers cannot read processed_as ({brief(error)})") from None
        if (vision := getattr(config, "vision_config", None)) is not None and hasattr(vision, "patch_size"):
            squared(vision, f"{where}: processed_as")
        return read_processors(directory, config)


def _part(raw: dict[str, Any], key: str, where: str) -> Any:
    """transformers' config object of the tower or the decoder."""
    from transformers import AutoConfig

    values = raw.get(key)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise InputError(f"{where}: {key} has no model_type")
    try:
        config = AutoConfig.for_model(**values)
    except Exception as error:  # as above
        raise InputError(f"{where}: {key}: transformers cannot read it ({brief(error)})") from None
    if not hasattr(config, "hidden_size"):
        raise InputError(f"{where}: {key}.model_type {values['model_type']!r} is of a whole model, not of this part")
    return config


def _statistics(raw: dict[str, Any], key: str, where: str) -> list[Any] | None:
    values = raw.get(key)
    if values is not None and not isinstance(values, list):
        raise InputError(f"{where}: {key} {values!r} is no list of numbers")
    return values


def preparation_fields(config: Config, stage: str | None) -> dict[str, Any]:
    """What an export keeps of how a run's model is asked.

    Args:
      config: of the run; its prompt template is no file.
      stage: the last one it has been through, if any.
    """
    data = {key: value for key, value in to_json(config.data).items() if key not in _NOT_KEPT}
    return {
        "data": data,
        "answers": to_json(config.answers),
        "frames": config.asked_frames(stage),
        "dtype": config.model.dtype,
        "processor": config.data.processor is not None,
        "guided": config.data.prompt_tokenizer is not None,
    }


def processed_as(raw: dict[str, Any]) -> dict[str, Any] | None:
    """What an export keeps of the checkpoint whose processors' files it has; None if it cannot be said so.

    Args:
      raw: the checkpoint's `config.json`.
    """
    family = families.of_config(raw)
    if isinstance(family, Family):
        return raw.get("processed_as")
    if not isinstance(family, base.StockFamily) or not family.sees:
        return None
    return {key: value for key, value in raw.items() if key != "text_config"}
