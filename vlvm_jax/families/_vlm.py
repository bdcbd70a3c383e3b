"""Whole VLMs: what those with a transformers class of their own have alike."""

import abc
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlvm_jax.config import ConnectorConfig, FrameTokens, VisionConfig
from vlvm_jax.data import files
from vlvm_jax.families import base
from vlvm_jax.families._decoder import decoder_config, decoder_fields
from vlvm_jax.families._tower import tower_fields
from vlvm_jax.families.base import Access, Exported, HFModel

Media = Literal["all", "image", "video"]


class VLM(base.StockFamily):
    """A whole VLM with a transformers class of its own.

    Attributes:
    rung: where the class stands on the ladder of exports, the lowest number first; None for a class that only a model
      that came from it goes out as.
    connector: the kind of its connector.
    """

    rung: ClassVar[int | None] = None
    connector: ClassVar[str] = "mlp2x_gelu"

    def read(self, directory: Path, raw: dict[str, Any], access: Access) -> HFModel:
        del access
        config, where = files.transformers_config(directory, self.class_of(raw)), str(directory / "config.json")
        language = decoder_config(config.text_config, where, config.tie_word_embeddings)
        vision = self.read_tower(config, directory, where)
        connector = self.read_connector(config, vision, where)
        tokens = self.read_frame_tokens(config, where)
        return HFModel(
            directory, self.name, self.class_of(raw), vision, language, connector, tokens, self.has_newline, raw=raw
        )

    @abc.abstractmethod
    def read_tower(self, config: Any, directory: Path, where: str) -> VisionConfig:
        """Settings of the tower."""

    @abc.abstractmethod
    def read_connector(self, config: Any, vision: VisionConfig, where: str) -> ConnectorConfig:
        """Settings of the connector."""

    def read_frame_tokens(self, config: Any, where: str) -> FrameTokens:
        """What the checkpoint does with frames."""
        del config, where
        return self.frame_tokens

    def default_token_id(self, raw: Any, kind: str) -> int | None:
        from transformers import AutoConfig

        return getattr(AutoConfig.for_model(self.class_of(raw)), f"{kind}_token_id", None)

    # --- exporting ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def inexact(
        self, vision: VisionConfig, connector: ConnectorConfig, frames: FrameTokens, media: Media
    ) -> str | None:
        """Why the class would not compute the same as a model here, or None if it would.

        Args:
          frames: what the model does with frames.
          media: what the class will be given.
        """

    def fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        decoder, vision = exported.decoder, exported.vision
        assert decoder is not None and vision is not None
        return {
            "model_type": self.name,
            "text_config": decoder_fields(decoder, base),
            "tie_word_embeddings": decoder.tie_word_embeddings,
            "vision_config": self.tower_fields(vision, exported.has_head),
            **self.own_fields(exported, base),
        }

    def tower_fields(self, vision: VisionConfig, has_head: bool) -> dict[str, Any]:
        """The `vision_config`."""
        return tower_fields(vision, has_head)

    @abc.abstractmethod
    def own_fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        """What only this class's config has."""
