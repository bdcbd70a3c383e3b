"""Sample specs out of keywords, whichever part of a spec each belongs to."""

import dataclasses
from typing import Any

from vlvm_jax.config import DataConfig
from vlvm_jax.data.sample.spec import SampleSpec


def make_spec(**settings: Any) -> SampleSpec:
    """A spec of settings of the data and of the rest, mixed."""
    data = {key: value for key, value in settings.items() if key in DataConfig.model_fields}
    rest = {key: value for key, value in settings.items() if key not in data}
    return SampleSpec(data=DataConfig(**data), **rest)


def changed(spec: SampleSpec, **settings: Any) -> SampleSpec:
    """The spec with other settings."""
    data = {key: value for key, value in settings.items() if key in DataConfig.model_fields}
    rest = {key: value for key, value in settings.items() if key not in data}
    return dataclasses.replace(spec, data=spec.data.model_copy(update=data), **rest)
