"""Frozen settings."""

import pickle

import pytest

from vlvm_jax.config import Config, FrozenDict, build
from vlvm_jax.recipes import ftfv


def test_settings_travel_to_other_processes():
    config = build(Config, ftfv.get_config("tiny"))
    arrived = pickle.loads(pickle.dumps(config))
    assert arrived == config and hash(arrived) == hash(config)
    assert isinstance(arrived.data.embedded, FrozenDict)
    with pytest.raises(TypeError, match="immutable"):
        arrived.data.embedded["seed"] = 1
