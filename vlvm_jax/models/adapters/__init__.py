"""The one place where the systems differ in the network: one file a method, named by `config.model.adapter.name`."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from flax import nnx

from vlvm_jax.config import AdapterConfig, ConnectorConfig, FrameTokens, ModelConfig, Settings, build
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters.base import VideoAdapter


def available() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


def build_adapter(config: ModelConfig, *, dtype, rngs: nnx.Rngs) -> VideoAdapter:
    """The adapter that `config.adapter.name` names, with its options checked.

    Raises:
      InputError: no such adapter, or an option that it does not have.
    """
    options = options_of(config.adapter.name, config.adapter.options)
    return _class(config.adapter.name)(options, config, dtype=dtype, rngs=rngs)


def options_of(name: str, given: Mapping[str, Any], where: str = "config.model.adapter") -> Settings:
    """An adapter's options, checked, with defaults for those that are not given.

    Args:
      where: what gave them, for messages.

    Raises:
      InputError: as `build_adapter`.
    """
    return build(_class(name, where).Options, dict(given), f"{where}.options")


def frame_tokens(config: AdapterConfig) -> FrameTokens | None:
    """What the adapter does with frames in the terms of stock VLM classes; None if that cannot be said in them."""
    return _class(config.name).frame_tokens(options_of(config.name, config.options))


def stock(connector: ConnectorConfig, tokens: FrameTokens) -> AdapterConfig:
    """Settings of the adapter that does with frames what a stock VLM class does."""
    name = next(name for name in available() if _class(name).stock)
    return AdapterConfig(name=name, connector=connector, options=tokens.model_dump(exclude_unset=True))


def _class(name: str, where: str = "config.model.adapter") -> Any:
    if name not in available():
        raise InputError(f"{where}.name: no adapter {name!r}; there are {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{name}").Adapter
