"""Parameters as a flat dict from path to array, the form everything outside the model works with.

On disk, in configs and in messages a layer stack is whole: `decoder/layers/mlp/up_proj/kernel`, [layers, ...]. Inside
a model it is cut into segments (`decoder/layers/segments/0/mlp/...`, see `models.stack`); `split` and `join` convert.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vlvm_jax.config import ModelConfig
from vlvm_jax.models.adapters.base import VideoAdapter
from vlvm_jax.models.stack import segment_bounds
from vlvm_jax.models.video_llm import VideoLLM
from vlvm_jax.parallel import rules

Params = dict[str, jax.Array]
ModuleT = TypeVar("ModuleT", bound=nnx.Module)
Splits = Mapping[str, tuple[int, ...]]

_SEGMENT = re.compile(r"^(?P<stack>.+?)/layers/segments/(?P<index>\d+)/(?P<rest>.+)$")
_WHOLE = re.compile(r"^(?P<stack>.+?)/layers/(?P<rest>.+)$")
_PROJECTION = re.compile(r"(encoder|decoder)/.*/(q_proj|k_proj|v_proj|o_proj|out_proj)/")


class Model:
    """A VideoLLM without its parameters: bind it to a flat dict of them to run it.

    Args:
      splits: where each stack is cut, by the name of the part that holds it: `{"encoder": (20,)}`.
    """

    def __init__(self, config: ModelConfig, splits: Splits | None = None):
        self.config = config
        self.splits = dict(splits or {})
        self.graphdef, self._variables = _structure(config.model_dump_json(), tuple(sorted(self.splits.items())))

    def bind(self, params: Mapping[str, Any]) -> VideoLLM:
        """The model with these (segmented) parameters, or their shapes. Cheap; meant for jitted functions."""
        if params.keys() != self._variables.keys():
            missing, extra = self._variables.keys() - params.keys(), params.keys() - self._variables.keys()
            raise ValueError(f"parameters missing: {sorted(missing)[:3]}, unknown: {sorted(extra)[:3]}")
        flat = [(path, variable.replace(params[name])) for name, (path, variable) in self._variables.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))

    @functools.cached_property
    def adapter(self) -> VideoAdapter:
        """The adapter without its parameters, to ask how many tokens it gives and what it needs."""
        return self.bind(self.abstract()).adapter

    def on_mesh(self, abstract: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of parameters, whole or segmented, with their shardings."""
        own = self.adapter.parameter_axes

        def place(path: str, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
            return rules.parameter_sharding(path, shape, mesh, own, self._heads(path))

        return {
            path: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(whole_path(path), a.shape))
            for path, a in abstract.items()
        }

    def _heads(self, path: str) -> int | None:
        """Heads along a side of a projection of the decoder's or the tower's attention; None of other parameters."""
        found = _PROJECTION.match(path)
        if found is None:
            return None
        part, projection = found.groups()
        if part == "encoder":
            return self.config.vision.num_attention_heads
        decoder = self.config.decoder
        return decoder.num_key_value_heads if projection in ("k_proj", "v_proj") else decoder.num_attention_heads

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the segmented parameters, fp32."""
        return {
            name: jax.ShapeDtypeStruct(variable.get_raw_value().shape, jnp.float32)
            for name, (_, variable) in self._variables.items()
        }

    def init(self, seed: int) -> Params:
        """Fresh parameters, segmented; jit it to have them created in their shardings."""
        model = VideoLLM(self.config, splits=self.splits, rngs=nnx.Rngs(seed))
        flat = nnx.to_flat_state(nnx.state(model))
        return {"/".join(map(str, path)): variable[...] for path, variable in flat}


@functools.lru_cache(maxsize=64)  # tracing a model takes a second, and everything that is prepared asks
def _structure(settings: str, splits: tuple[tuple[str, tuple[int, ...]], ...]):
    config = ModelConfig.model_validate_json(settings)
    abstract = nnx.eval_shape(lambda: VideoLLM(config, splits=dict(splits), rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    return graphdef, {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}


def build(make: Callable[[], ModuleT], params: Mapping[str, Any]) -> ModuleT:
    """A part on its own, a tower or a decoder, with (segmented) parameters by their paths in it."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    flat = [(path, variable.replace(params["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def of_part(params: Mapping[str, Any], part: str) -> dict[str, Any]:
    """`{"encoder/a": x, "decoder/b": y}`, `encoder` -> `{"a": x}`."""
    return {path.removeprefix(f"{part}/"): value for path, value in params.items() if path.startswith(f"{part}/")}


def whole_path(path: str) -> str:
    """`encoder/layers/segments/1/mlp/fc1/kernel` -> `encoder/layers/mlp/fc1/kernel`; other paths are unchanged."""
    match = _SEGMENT.match(path)
    return f"{match['stack']}/layers/{match['rest']}" if match else path


def segment_of(path: str) -> tuple[str, int] | None:
    """`encoder/layers/segments/1/...` -> `("encoder", 1)`; None for a parameter outside the stacks.

    A stack within an adapter goes by its path: `adapter/clip/text_model`.
    """
    match = _SEGMENT.match(path)
    return (match["stack"], int(match["index"])) if match else None


def join(params: Mapping[str, jax.Array]) -> Params:
    """Segmented to whole; where a stack mixes dtypes the widest wins."""
    pieces: dict[str, list[tuple[int, jax.Array]]] = {}
    for path, value in params.items():
        segment = segment_of(path)
        pieces.setdefault(whole_path(path), []).append((segment[1] if segment else 0, value))
    whole = {}
    for path, parts in pieces.items():
        values = [value for _, value in sorted(parts, key=lambda part: part[0])]
        whole[path] = values[0] if len(values) == 1 else jnp.concatenate(values)
    return whole


def split(params: Mapping[str, jax.Array], splits: Splits) -> Params:
    """Whole to segmented."""
    cut = {}
    for path, value in params.items():
        match = _WHOLE.match(path)
        if match is None:
            cut[path] = value
            continue
        stack, rest = match["stack"], match["rest"]
        bounds = segment_bounds(value.shape[0], splits.get(stack, ()))
        for index, (start, stop) in enumerate(bounds):
            cut[f"{stack}/layers/segments/{index}/{rest}"] = value[start:stop] if len(bounds) > 1 else value
    return cut
