"""The one place where the systems differ in the network: one file a method, named by `config.model.adapter.name`."""

import importlib
import pkgutil

from flax import nnx

from vlvm_jax.config import ModelConfig, build
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters.base import VideoAdapter


def available() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def build_adapter(config: ModelConfig, *, dtype, rngs: nnx.Rngs) -> VideoAdapter:
    """The adapter that `config.adapter.name` names, with its options checked.

    Raises:
      InputError: no such adapter, or an option that it does not have.
    """
    name = config.adapter.name
    if name not in available():
        raise InputError(f"config.model.adapter.name: no adapter {name!r}; there are {', '.join(available())}")
    cls = importlib.import_module(f"{__name__}.{name}").Adapter
    options = build(cls.Options, dict(config.adapter.options), "config.model.adapter.options")
    return cls(options, config, dtype=dtype, rngs=rngs)
