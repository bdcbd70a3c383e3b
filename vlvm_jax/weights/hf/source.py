"""Parameters of a Hugging Face directory, read slice by slice into the shardings they are wanted in."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from vlvm_jax import families
from vlvm_jax.config import AdapterConfig, ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families.base import Access, HFModel, Layout, Rule
from vlvm_jax.models import adapters
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model, Params
from vlvm_jax.weights import tables
from vlvm_jax.weights.hf import hub
from vlvm_jax.weights.hf.safetensors_files import SafetensorsReader
from vlvm_jax.weights.torch_model import names as own_names

Index = tuple[slice, ...]
Tell = Callable[[int], None]  # takes the bytes read since the last call, counted in the wanted dtype
_LOOKED_AT = 1 << 24  # values at a time


def silent(read: int) -> None:
    """Reports nothing."""
    del read


def check_finite(name: str, value: np.ndarray, file: Path) -> None:
    """Raises `InputError` if a tensor holds NaN or infinity. Looks at a part of it at a time.

    Args:
      file: where it was read, for messages.
    """
    bits = np.atleast_1d(value).view(f"u{value.dtype.itemsize}")
    infinity = np.array(np.inf, value.dtype).view(bits.dtype)  # without their signs, NaNs have larger bits, others less
    rows = max(1, _LOOKED_AT * len(bits) // max(bits.size, 1))
    for start in range(0, len(bits), rows):
        if ((bits[start : start + rows] << 1) >= infinity << 1).any():
            raise InputError(
                f"{file}: tensor {name} holds NaN or infinity: the training that wrote it diverged, or the file is "
                "damaged; use another checkpoint"
            )


class TensorFiles:
    """Parameters that lie in safetensors files as their rules say.

    Attributes:
      shapes: our parameter paths with shapes and the dtypes on disk.
    """

    reader: SafetensorsReader
    rules: Mapping[str, Rule]
    shapes: Mapping[str, jax.ShapeDtypeStruct]

    def read(self, path: str, index: Index | None = None, tell: Tell = silent) -> np.ndarray:
        """A parameter, or the part that `index` selects, in the dtype on disk. Reads no more than it needs."""
        rule, shape = self.rules[path], self.shapes[path].shape
        index = index or (slice(None),) * len(shape)
        bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
        if rule.layers is None:
            value = self._read(rule, rule.tensor, [slice(*b) for b in bounds])
            tell(value.nbytes)
            return value
        (first, last), *inner = bounds
        out = np.empty((last - first, *(stop - start for start, stop in inner)), self.shapes[path].dtype)
        for layer in range(first, last):
            out[layer - first] = self._read(rule, rule.tensor.format(i=layer), [slice(*b) for b in inner])
            tell(out[layer - first].nbytes)
        return out

    def check_finite(self, path: str, value: np.ndarray) -> None:
        """Raises `InputError` if a whole parameter, as `read` gives it, holds NaN or infinity."""
        names = self.rules[path].tensors()
        for name, part in zip(names, [value] if self.rules[path].layers is None else value, strict=True):
            check_finite(name, part, self.reader.tensors[name].file)

    def load(self, abstract: Mapping[str, jax.ShapeDtypeStruct], tell: Tell = silent) -> Params:
        """The named parameters in the dtypes and shardings asked for, one after the other."""
        return {path: self._load(path, wanted, tell) for path, wanted in abstract.items()}

    def _load(self, path: str, wanted: jax.ShapeDtypeStruct, tell: Tell) -> jax.Array:
        here, there = wanted.dtype.itemsize, self.shapes[path].dtype.itemsize

        def part(index: Index | None) -> np.ndarray:
            value = self.read(path, index, lambda read: tell(read * here // there))
            return value.astype(wanted.dtype, copy=False)

        return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)

    def _read(self, rule: Rule, tensor: str, index: list[slice]) -> np.ndarray:
        if rule.transform == "patches":
            value = self.reader.read(tensor)
            return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])[tuple(index)]
        if rule.transform == "transpose":
            return self.reader.read(tensor, tuple(reversed(index))).T
        value = self.reader.read(tensor, (slice(None),) * rule.outer + tuple(index))
        return value.reshape(value.shape[rule.outer :])

    def checked(self, rule: Rule, wanted: tuple[int, ...], vision: VisionConfig | None) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a parameter; every tensor of it must have the shape that the config asks for.

        Args:
          vision: of the tower whose patch embedding the rule may be.
        """
        inner = wanted if rule.layers is None else wanted[1:]
        dtypes = set()
        for name in rule.tensors():
            info = self.reader.tensors[name]
            expected = tuple(reversed(inner)) if rule.transform == "transpose" else inner
            if rule.transform == "patches":
                patch = vision.patch_size if vision else 0
                expected = (inner[1], 3, patch, patch)
            expected = (1,) * rule.outer + expected
            if info.shape != expected:
                raise InputError(
                    f"{info.file}: tensor {name} has shape {list(info.shape)}, but config.json asks for "
                    f"{list(expected)}; the two are not of the same model"
                )
            dtypes.add(info.dtype)
        return jax.ShapeDtypeStruct(wanted, np.result_type(*dtypes))


class HFSource(TensorFiles):
    """A checkpoint of one of the `families`, checked in full before anything is read.

    Attributes:
      hf: what `config.json` says.
      carried: tensors that have no place in the model but belong to the HF class.

    Raises:
      InputError: tensors missing, unknown or misshapen, files cut off, a config that cannot be run.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        reader = functools.cache(lambda: SafetensorsReader(directory))  # after the config, whose faults come first
        self.hf: HFModel = families.read(directory, Access(lambda: reader().tensors, hub.resolve))
        self.reader = reader()
        family = families.get(self.hf.family)
        parts = {
            "vision": None if self.hf.tower_source else self.hf.vision,
            "decoder": self.hf.decoder,
            "connector": self.hf.connector,
            "newline": self.hf.has_newline,
        }
        self.layout: Layout
        self.layout, rules = tables.best_layout(family.layouts, self.reader.tensors, **parts)
        wanted = model_shapes(self.hf)
        if self.hf.adapter is not None:
            known = {rule.path for rule in rules}
            held = Model(model_of(self.hf)).adapter.clip_config
            rules += own_names.adapter_rules((path for path in wanted if path not in known), held)
        self.carried = tables.match(
            set(self.reader.tensors) - self._tied_heads(),
            rules,
            carried=family.carried,
            dropped=family.dropped(self.hf),
            where=str(directory),
        )
        self.rules = {rule.path: rule for rule in rules}
        self.shapes = {rule.path: self.checked(rule, wanted[rule.path].shape, self.hf.vision) for rule in rules}
        self._check_tied_head(rules)

    def check_carried_finite(self) -> None:
        """Raises `InputError` if a carried tensor holds NaN or infinity."""
        for name in self.carried:
            check_finite(name, self.reader.read(name), self.reader.tensors[name].file)

    def _tied_heads(self) -> set[str]:
        """Names under which a checkpoint may repeat its embeddings as a head that the config ties to them."""
        decoder = self.hf.decoder
        if decoder is None or not decoder.tie_word_embeddings:
            return set()
        return {f"{self.layout.prefixes['head']}lm_head.weight"} & set(self.reader.tensors)

    def _check_tied_head(self, rules: list[Rule]) -> None:
        embedding = next((rule.tensor for rule in rules if rule.path.endswith("embed_tokens/embedding")), None)
        for head in self._tied_heads():
            if not embedding or not self._same(head, embedding):
                raise InputError(
                    f"{self.directory}: tensor {head} holds other values than {embedding}, to which config.json "
                    "ties it; set tie_word_embeddings to false there if the head is its own"
                )

    def _same(self, first: str, second: str) -> bool:
        """Whether two tensors are equal; a part of them at a time."""
        shape = self.reader.tensors[first].shape
        if shape != self.reader.tensors[second].shape:
            return False
        parts = [(slice(start, min(start + 16384, shape[0])), slice(None)) for start in range(0, shape[0], 16384)]
        return all(np.array_equal(self.reader.read(first, part), self.reader.read(second, part)) for part in parts)


def adapter_of(hf: HFModel) -> AdapterConfig | None:
    """The adapter that computes what the checkpoint's class does; None for a bare tower or decoder.

    Raises:
      InputError: the config names one that is not there, or an option that it does not have.
    """
    if hf.connector is None:
        return None
    if hf.adapter is None:
        return adapters.stock(hf.connector, hf.frame_tokens)
    adapters.options_of(hf.adapter.name, hf.adapter.options, f"{hf.directory}/config.json: adapter")
    return hf.adapter


def model_shapes(hf: HFModel) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of our parameters for a checkpoint's config; parts it does not have are there in some size."""
    return jax.eval_shape(params_lib.join, Model(model_of(hf)).abstract())


def model_of(hf: HFModel) -> ModelConfig:
    """A checkpoint's config as a model's; parts it does not have are there in some size."""
    return ModelConfig(
        vision=hf.vision or _ANY_TOWER,
        decoder=hf.decoder or _ANY_DECODER,
        adapter=adapter_of(hf) or adapters.stock(ConnectorConfig(), hf.frame_tokens),
    )


_ANY_TOWER = VisionConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, image_size=8, patch_size=4
)
_ANY_DECODER = DecoderConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
)
