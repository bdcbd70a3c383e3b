"""A recipe's model before any training, each part from the checkpoint that the recipe names: what an export of one
that trains nothing is made of."""

from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from vlvm_jax.config import AdapterConfig, Config, ConnectorConfig, DecoderConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model, Params
from vlvm_jax.weights.hf import side_files
from vlvm_jax.weights.hf.source import Tell, silent
from vlvm_jax.weights.initial import Initial


class RecipeSource:
    """A `weights.sources.Source`.

    Raises:
      InputError: the recipe names no checkpoints, or they lack a parameter of its model.
    """

    stages: tuple[str, ...] = ()

    def __init__(self, config: Config):
        self.name, self.config = config.name, config
        if config.model.init_from is None:
            raise InputError(f"--config: {config.name} starts from random parameters; train it, then export the run")
        self._initial = Initial(config.model)
        wanted = jax.eval_shape(params_lib.join, Model(config.model).abstract())
        if fresh := self._initial.missing(wanted):
            raise InputError(
                f"--config: no checkpoint of {config.name} has {fresh[0]}, which training makes; train it, then export "
                "the run"
            )
        if config.stages:
            raise InputError(f"--config: {config.name} trains {config.stages[0].name}; train it, then export the run")
        self._sources = self._initial.taken(wanted)
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = {
            path: source.shapes[path] for path, source in self._sources.items()
        }
        model = config.model
        self.vision: VisionConfig | None = model.vision
        self.decoder: DecoderConfig | None = model.decoder
        self.adapter: AdapterConfig | None = model.adapter
        self.connector: ConnectorConfig | None = model.adapter.connector
        folder = side_files.temporary_folder("recipe") / "hf"
        self._initial.copy_side_files(folder, config.data.tokenizer)
        self.hf_files: epath.Path | None = folder

    def load(self, abstract: Mapping[str, jax.ShapeDtypeStruct], tell: Tell = silent) -> Params:
        loaded: Params = {}
        for source in {id(source): source for source in self._sources.values()}.values():
            loaded |= source.load({p: a for p, a in abstract.items() if self._sources[p] is source}, tell)
        return loaded

    def read(self, path: str) -> np.ndarray:
        return self._sources[path].read(path)
