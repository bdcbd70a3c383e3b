"""The CLIP that an adapter holds, exported alone: a `CLIPModel` that other adapters and transformers read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlvm_jax.config import ClipConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families._tower import square_processor, tower_fields
from vlvm_jax.families.base import Rule
from vlvm_jax.families.clip import Family
from vlvm_jax.weights import tables
from vlvm_jax.weights.export import media_tokens
from vlvm_jax.weights.export.export import Export, Options
from vlvm_jax.weights.export.ladder import Rung
from vlvm_jax.weights.hf import side_files
from vlvm_jax.weights.hf.clip_source import PLACE, held_clip
from vlvm_jax.weights.sources import HFDirectory, Stored

FORMAT = Family.name  # of `--format`


class ClipExport(Export):
    """A whole CLIP.

    Attributes:
      clip: its sizes.
    """

    vision: VisionConfig

    def __init__(self, source: HFDirectory | Stored, options: Options):
        super().__init__(source, options, None, Rung(0, FORMAT, "asked for: the CLIP that the adapter holds"))
        if options.lora == "peft":
            raise InputError(f"--lora=peft: a LoRA is the model's, and --format={FORMAT} exports its CLIP alone")
        self.clip = _clip_of(source)
        assert self.clip.vision is not None
        self.vision, self.decoder, self.carried = self.clip.vision, None, {}

    def config(self) -> dict[str, Any]:
        ids = {"bos_token_id": None, "pad_token_id": None}  # which nothing in the model needs
        text = {"model_type": "clip_text_model", **ids, **self.clip.text.model_dump()}
        return {
            "model_type": FORMAT,
            "text_config": text,
            "vision_config": tower_fields(self.vision, has_head=False),
            "projection_dim": self.clip.projection_dim,
            "architectures": ["CLIPModel"],
            "dtype": self.dtype,
        }

    def rules(self) -> list[Rule]:
        return tables.clip_rules(self.clip)

    def tensors(self, rule: Rule) -> Iterator[tuple[str, np.ndarray]]:
        placed = Rule(rule.tensor, f"{PLACE}/{rule.path}", rule.transform, rule.layers)
        return super().tensors(placed)

    def write_files(self, folder: Path) -> None:
        """The tokenizer of its text tower and the processor's settings: its checkpoint's, or those of the run."""
        files = self.source.hf_files
        if files is not None and side_files.of_clip(files).exists():
            side_files.copy_into(side_files.of_clip(files), folder)
            return
        if files is not None and (files / side_files.SCORING_FILE).exists():
            media_tokens.write_tokenizer(files / side_files.SCORING_FILE, folder, {})
        assert self.run is not None
        vision, fit = self.vision, self.run.data.frame_fit
        values = square_processor(vision.image_size, vision.image_mean, vision.image_std, fit)
        (folder / "preprocessor_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _clip_of(source: HFDirectory | Stored) -> ClipConfig:
    """The sizes of the CLIP that a run's adapter holds.

    Raises:
      InputError: it holds none, or one without a tower of its own.
    """
    config = source.config if isinstance(source, Stored) else None
    clip = None if config is None else held_clip(config.model)
    if clip is None:
        raise InputError(f"--format={FORMAT}: {source.name} holds no CLIP beside its tower")
    if clip.vision is None:
        raise InputError(f"--format={FORMAT}: the CLIP of {source.name} has no image tower of its own")
    return clip
