"""Language models: their settings in a `config.json`, and checkpoints that hold one alone."""

from pathlib import Path
from typing import Any, ClassVar

from vlvm_jax import families
from vlvm_jax.config import DecoderConfig, RopeScaling
from vlvm_jax.data import files
from vlvm_jax.errors import InputError
from vlvm_jax.families import base
from vlvm_jax.families.base import Access, Exported, HFModel, Layout, settings_of

_SAME = (  # settings that have one name in transformers' configs and here
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
)


class DecoderFamily(base.StockFamily):
    """A bare decoder; `decoder_config` and `decoder_fields` serve the VLMs that hold one too.

    Attributes:
      qk_norm: whether queries and keys are normalised.
      slides: whether its class has a window that all layers share.
    """

    sees = False
    qk_norm: ClassVar[bool] = False
    slides: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = (Layout("legacy", {"decoder": "model.", "head": ""}),)

    def read(self, directory: Path, raw: dict[str, Any], access: Access) -> HFModel:
        del access
        config = files.transformers_config(directory)
        language = self.decoder_config(config, f"{directory / 'config.json'}", config.tie_word_embeddings)
        return HFModel(directory, self.name, self.name, None, language, raw=raw)

    def fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        del base
        assert exported.decoder is not None
        return self.decoder_fields(exported.decoder)

    def kept(self, base: dict[str, Any]) -> dict[str, Any]:
        return base

    def suits(self, decoder: DecoderConfig) -> bool:
        """Whether a decoder that was trained from scratch, with norms as here, goes out as this class."""
        del decoder
        return False

    def biases(self, config: Any) -> tuple[bool, bool]:
        """Whether the attention has biases at its inputs, and at its output."""
        given = bool(getattr(config, "attention_bias", False))
        return given, given

    def window(self, config: Any) -> int | None:
        """How many positions a token sees, where that is not all."""
        del config
        return None

    def positions(self, config: Any, where: str) -> int:
        """How many positions can be run exactly."""
        if "sliding_attention" in (getattr(config, "layer_types", None) or []):
            raise InputError(f"{where}: use_sliding_window true: sliding attention in some layers is not supported")
        return config.max_position_embeddings

    def decoder_config(self, config: Any, where: str, tied: bool) -> DecoderConfig:
        """Settings of a transformers config object.

        Raises:
          InputError: a setting that cannot be run exactly.
        """
        if getattr(config, "mlp_bias", False):
            raise InputError(f"{where}: mlp_bias true: this library has no biases in the decoder's MLP")
        positions = self.positions(config, where)
        attention_bias, attention_out_bias = self.biases(config)
        return settings_of(
            DecoderConfig,
            where,
            **{name: getattr(config, name) for name in _SAME},
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            rope_theta=config.rope_parameters["rope_theta"],
            rope_scaling=_rope_scaling(config.rope_parameters, where),
            attention_bias=attention_bias,
            attention_out_bias=attention_out_bias,
            qk_norm=self.qk_norm,
            tie_word_embeddings=tied,
            max_position_embeddings=positions,
            sliding_window=self.window(config),
        )

    def decoder_fields(self, decoder: DecoderConfig) -> dict[str, Any]:
        """Settings of the language model, bare or as a VLM's `text_config`.

        Raises:
          InputError: no class has such biases.
        """
        _check(decoder)
        fields: dict[str, Any] = {
            "model_type": self.name,
            **{name: getattr(decoder, name) for name in _SAME},
            "rope_theta": decoder.rope_theta,
            "max_position_embeddings": decoder.max_position_embeddings,
            "tie_word_embeddings": decoder.tie_word_embeddings,
            **self.own_fields(decoder),
        }
        if decoder.rope_scaling is not None:
            keys = {"rope_type", "factor"} if decoder.rope_scaling.rope_type == "linear" else None
            fields["rope_scaling"] = decoder.rope_scaling.model_dump(include=keys)
        return fields

    def own_fields(self, decoder: DecoderConfig) -> dict[str, Any]:
        """What only this class's config has."""
        return {"head_dim": decoder.head_dim}


def decoder_families() -> dict[str, DecoderFamily]:
    """All decoders that can be run, by model_type."""
    return {name: family for name, family in families.every().items() if isinstance(family, DecoderFamily)}


def decoder_config(config: Any, where: str, tied: bool) -> DecoderConfig:
    """Settings of a VLM's `text_config` object.

    Raises:
      InputError: a decoder or a setting that cannot be run exactly.
    """
    known = decoder_families()
    if config.model_type not in known:
        raise InputError(
            f"{where}: text_config.model_type {config.model_type!r}: this library runs {', '.join(known)} decoders"
        )
    return known[config.model_type].decoder_config(config, f"{where}: text_config", tied)


def decoder_fields(decoder: DecoderConfig, base: dict[str, Any] | None) -> dict[str, Any]:
    """The `text_config` of a decoder.

    Args:
      base: `config.json` of the checkpoint that the model came from, whose decoder's class is kept; without one, the
        class that has these biases and norms is taken.
    """
    _check(decoder)
    known = decoder_families()
    model_type = ((base or {}).get("text_config") or {}).get("model_type")
    if model_type is None:
        alike = [
            family
            for family in known.values()
            if family.qk_norm == decoder.qk_norm and (family.slides or decoder.sliding_window is None)
        ]
        return next(family for family in alike if family.suits(decoder)).decoder_fields(decoder)
    return known[model_type].decoder_fields(decoder)


def _check(decoder: DecoderConfig) -> None:
    """Raises `InputError` for a decoder that no class of transformers is."""
    if decoder.qk_norm and decoder.attention_bias != decoder.attention_out_bias:
        raise InputError(
            "config.model.decoder.qk_norm: no class of transformers has norms of queries and keys and a bias at the "
            "attention's input alone, so this model cannot be exported"
        )
    if decoder.sliding_window is not None and (decoder.qk_norm or decoder.attention_bias):
        raise InputError(
            "config.model.decoder.sliding_window: no class of transformers has one window for all layers beside biases "
            "or norms of queries and keys, so this model cannot be exported"
        )
    if decoder.attention_out_bias and not decoder.attention_bias:
        raise InputError(
            "config.model.decoder.attention_out_bias: no class of transformers has a bias at the attention's output "
            "alone, so this model cannot be exported"
        )


def _rope_scaling(parameters: dict[str, Any], where: str) -> RopeScaling | None:
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise InputError(
            f"{where}: rope scaling of type {kind!r} is not one this library can run exactly (linear, llama3)"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{where}: partial_rotary_factor is not 1: this library rotates whole heads")
    known = {key: parameters[key] for key in RopeScaling.model_fields if key in parameters}
    return settings_of(RopeScaling, f"{where}: rope scaling", **known)
