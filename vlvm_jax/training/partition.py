"""Which parameters a stage trains, and at what rate: patterns over paths, resolved to leaves.

A pattern that addresses some layers of a stack (`encoder/layers/[-3:]/**`) cuts the stack there, so that what is
frozen has no gradient, no optimizer state and no saved activation.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlvm_jax.config import ModelConfig, StageConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.params import Model, segment_of, whole_path
from vlvm_jax.models.stack import segment_bounds

_SLICE = re.compile(r"^(?P<stack>\w+)/layers/\[(?P<start>-?\d*):(?P<stop>-?\d*)\](?P<rest>/.*)?$")


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which parameters a stage trains, and where its stacks are cut for that.

    Attributes:
    splits: where each stack is cut.
    rates: learning rate of every trainable (segmented) parameter; what is absent is frozen.
    """

    splits: Mapping[str, tuple[int, ...]]
    rates: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Pattern:
    text: str
    rate: float
    regex: re.Pattern
    stack: str | None = None
    layers: range = range(0)


def resolve(config: ModelConfig, stage: StageConfig, where: str = "config.stages") -> Partition:
    """Applies a stage's patterns to the model's parameters; the last match wins.

    Raises:
      InputError: a pattern matches nothing, or slices what is not there.
    """
    depths = {
        "encoder": (config.vision.num_hidden_layers, config.vision.num_used_layers),
        "decoder": (config.decoder.num_hidden_layers, config.decoder.num_hidden_layers),
    }
    patterns = [_parse(text, rate, depths, f"{where}.{stage.name}.trainable") for text, rate in stage.trainable]
    cuts: dict[str, set[int]] = {stack: set() for stack in depths}
    for pattern in patterns:
        if pattern.stack is not None:
            cuts[pattern.stack] |= {pattern.layers.start, pattern.layers.stop}
    splits = {stack: tuple(sorted(cuts[stack] - {0, depths[stack][0]})) for stack in depths}
    for stack, (total, used) in depths.items():
        if used < total and cuts[stack]:  # the layers that never run are a segment of their own
            splits[stack] = tuple(sorted({*splits[stack], used}))
    rates: dict[str, float] = {}
    matched = set()
    for path in Model(config, splits).abstract():
        for pattern in patterns:
            if _matches(pattern, path, splits, depths):
                matched.add(pattern.text)
                rates[path] = pattern.rate
    for pattern in patterns:
        if pattern.text not in matched:
            some = sorted({whole_path(p) for p in Model(config).abstract()})
            raise InputError(
                f"{where}.{stage.name}.trainable: {pattern.text!r} matches no parameter; paths look like "
                f"{some[0]}, {some[len(some) // 2]}"
            )
    return Partition(splits, rates)


def matching(patterns: Sequence[str], paths: Iterable[str], where: str) -> set[str]:
    """The whole paths that any of the patterns (without layer slices) matches.

    Raises:
      InputError: a pattern matches nothing.
    """
    paths = list(paths)
    selected: set[str] = set()
    for pattern in patterns:
        matched = {path for path in paths if _glob(pattern).match(path)}
        if not matched:
            raise InputError(f"{where}: {pattern!r} matches no parameter; paths look like {min(paths)}, {max(paths)}")
        selected |= matched
    return selected


def resets(stage: StageConfig, params: Iterable[str]) -> set[str]:
    """Paths of what a stage draws anew.

    Raises:
      InputError: a pattern matches nothing.
    """
    return matching(stage.reset, params, f"config.stages.{stage.name}.reset")


def copies(stage: StageConfig, params: Mapping[str, Any]) -> dict[str, str]:
    """Of what a stage starts as copies, the path of each parameter to that of which it is one.

    Raises:
      InputError: there is no such module, or the two do not have the same parameters.
    """
    sources: dict[str, str] = {}
    for target, source in stage.copied:
        where = f"config.stages.{stage.name}.copied"
        shapes = {}
        for module in (target, source):
            below = [path for path in params if path.startswith(f"{module}/")]
            if not below:
                raise InputError(
                    f"{where}: there is no module {module!r} with parameters; name it like adapter/connector"
                )
            shapes[module] = {path.removeprefix(f"{module}/"): params[path].shape for path in below}
        if shapes[target] != shapes[source]:
            raise InputError(f"{where}: {target!r} cannot be a copy of {source!r}, whose parameters are others")
        sources |= {f"{target}/{name}": f"{source}/{name}" for name in shapes[target]}
    return sources


def _parse(text: str, rate: float, depths: Mapping[str, tuple[int, int]], where: str) -> _Pattern:
    match = _SLICE.match(text)
    if match is None:
        return _Pattern(text, rate, _glob(text))
    stack = match["stack"]
    if stack not in depths:
        raise InputError(f"{where}: {text!r} slices {stack!r}; only {' and '.join(depths)} have layers")
    used = depths[stack][1]
    bounds = slice(*(int(match[key]) if match[key] else None for key in ("start", "stop")))
    layers = range(used)[bounds]
    if not layers:
        raise InputError(f"{where}: {text!r} addresses no layer; {stack} runs {used}")
    return _Pattern(text, rate, _glob(f"{stack}/layers{match['rest'] or '/**'}"), stack, layers)


def _glob(text: str) -> re.Pattern:
    """`**` matches any part of a path, `*` what is between two slashes."""
    parts = [".*" if p == "**" else "[^/]*" if p == "*" else re.escape(p) for p in re.split(r"(\*\*|\*)", text)]
    return re.compile("^" + "".join(parts) + "$")


def _matches(pattern: _Pattern, path: str, splits, depths) -> bool:
    if not pattern.regex.match(whole_path(path)):
        return False
    segment = segment_of(path)
    if segment is None:
        return pattern.stack is None
    stack, index = segment
    if stack not in depths:  # within the adapter: never cut, and all of it runs
        return pattern.stack is None
    total, used = depths[stack]
    start, stop = segment_bounds(total, splits[stack])[index]
    if start >= used:
        return False  # never runs, so it never gets a gradient
    return pattern.stack is None or (start in pattern.layers and stop - 1 in pattern.layers)
