"""A whole CLIP for the adapters that hold one: `init_from.clip`."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from vlvm_jax.config import AdapterConfig, ClipConfig, ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.data.files import read_json
from vlvm_jax.errors import InputError
from vlvm_jax.families.clip import read_clip
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.clip import Clip
from vlvm_jax.models.params import Model
from vlvm_jax.weights import tables
from vlvm_jax.weights.hf import hub
from vlvm_jax.weights.hf.safetensors_files import SafetensorsReader
from vlvm_jax.weights.hf.source import TensorFiles
from vlvm_jax.weights.sources import Stored, open_source, same_part

PLACE = "adapter/clip"  # where an adapter holds its CLIP


class ClipDirectory(TensorFiles):
    """A `CLIPModel` in Hugging Face format, checked in full before anything is read. A `weights.sources.Source`.

    Attributes:
      clip: what `config.json` says.

    Raises:
      InputError: it is no whole CLIP; tensors missing, unknown or misshapen; files cut off.
    """

    vision: VisionConfig | None = None  # of the model's own parts it has none
    decoder: DecoderConfig | None = None
    connector: ConnectorConfig | None = None
    adapter: AdapterConfig | None = None
    stages: tuple[str, ...] = ()

    def __init__(self, directory: epath.Path, where: str):
        self.name = str(directory)
        self.hf_files: epath.Path | None = directory
        self.clip = read_clip(Path(directory), where)
        self.reader = SafetensorsReader(Path(directory))
        rules = tables.clip_rules(self.clip)
        tables.match(self.reader.tensors, rules, carried=None, dropped=None, where=self.name)
        self.rules = {f"{PLACE}/{rule.path}": rule for rule in rules}
        wanted = clip_shapes(self.clip)
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = {
            path: self.checked(rule, wanted[path].shape, self.clip.vision) for path, rule in self.rules.items()
        }


def clip_shapes(config: ClipConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the parameters of a whole CLIP, by their paths in a model that holds it."""
    assert config.vision is not None
    width = config.vision.hidden_size
    state = nnx.state(nnx.eval_shape(lambda: Clip(config, width, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    flat = {
        f"{PLACE}/{'/'.join(map(str, path))}": jax.ShapeDtypeStruct(variable.get_raw_value().shape, np.float32)
        for path, variable in nnx.to_flat_state(state)
    }
    return jax.eval_shape(params_lib.join, flat)


def open_clip(text: str, where: str) -> "ClipDirectory | Stored":
    """A CLIP from a hub id, a directory in Hugging Face format, or a run of this library whose adapter holds one.

    Raises:
      InputError: there is none.
    """
    directory = hub.resolve(text, where)
    local = "://" not in str(directory) and (directory / "config.json").exists()
    if local and "stages" not in read_json(Path(directory) / "config.json"):
        return ClipDirectory(directory, where)
    source = open_source(str(directory), where)
    if not isinstance(source, Stored) or not any(path.startswith(f"{PLACE}/") for path in source.shapes):
        raise InputError(
            f"{where}: {source.name} holds no CLIP; name a whole one, as openai/clip-vit-large-patch14-336"
        )
    return source


def check_clip(want: ClipConfig, source: "ClipDirectory | Stored", free: tuple[str, ...]) -> None:
    """Raises `InputError` for the first setting in which the model's CLIP differs from the source's.

    Args:
      want: `vision` None where the image tower is the model's own.
      free: settings of the image tower that change no parameter.
    """
    have, part = sizes(source), "adapter.options.clip"
    same_part(want, have, part, source.name, ("text", "vision", "dtype"))
    same_part(want.text, have.text, f"{part}.text", source.name)
    if want.vision is not None:
        same_part(want.vision, have.vision, f"{part}.vision", source.name, free)


def sizes(source: "ClipDirectory | Stored") -> ClipConfig:
    """Those of a CLIP that was opened; `vision` None where its image tower is that of the model it is in."""
    if isinstance(source, ClipDirectory):
        return source.clip
    assert source.config is not None  # an import holds no adapter with a CLIP
    have = held_clip(source.config.model)
    assert have is not None
    return have


def held_clip(model: ModelConfig) -> ClipConfig | None:
    """Sizes of the CLIP that a model's adapter holds."""
    made = Model(model)
    return made.adapter.clip_config
