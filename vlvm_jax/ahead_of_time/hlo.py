"""Reads a compiled program's text: which collectives it runs, how often, and over how many bytes."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")
_CHAIN = re.compile(r"channel_id=(\d+).*chain_id=\"(\d+)\"")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass
class Collectives:
    """Per step and device.

    Attributes:
      count: how often each kind runs, loops unrolled.
      bytes: bytes of each kind's result (of a reduce-scatter: of what goes in), times that.
      at_least: there are loops with collectives of which the text does not say how often they turn; they count once.
    """

    count: Mapping[str, int]
    bytes: Mapping[str, int]
    at_least: bool = False


@dataclasses.dataclass
class _Computation:
    lines: list[str] = dataclasses.field(default_factory=list)
    calls: list[tuple[str, int | None]] = dataclasses.field(default_factory=list)


def collectives(text: str) -> Collectives:
    """Counts the collectives of a program as `compiled.as_text()` gives it."""
    computations, entry = _parse(text)
    times: dict[str, int] = defaultdict(int)
    unsure: set[str] = set()
    _walk(computations, entry, 1, times, unsure)
    count: dict[str, int] = defaultdict(int)
    size: dict[str, int] = defaultdict(int)
    chains: set[tuple[str, ...]] = set()
    for name, runs in times.items():
        for line in computations[name].lines:
            kind, part = _kind(line), _CHAIN.search(line)
            if kind is None or (part and part.groups() in chains):
                continue
            if part:  # one collective that runs piecewise beside several computations is written in each of them
                chains.add(part.groups())
            moved = _moved(kind, line)
            if name.startswith("all-reduce-scatter"):  # on TPUs, a sum and the cut after it
                kind = "reduce-scatter"
            count[kind] += runs
            size[kind] += runs * moved
    at_least = any(_kind(line) for name in unsure for line in computations[name].lines)
    return Collectives(dict(count), dict(size), at_least)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], _Computation())
            entry = head[2] if head[1] else entry
        elif current is not None and _INSTRUCTION.match(line):
            current.lines.append(line)
    for computation in computations.values():
        for line in computation.lines:
            computation.calls += _calls(line, computations)
    return computations, entry


def _calls(line: str, computations: Mapping[str, _Computation]) -> list[tuple[str, int | None]]:
    """Computations that an instruction runs, and how often each time; None where that cannot be read."""
    if " while(" in line:
        called = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", line))
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)  # the CPU's compiler says it, the TPU's does not
        turns = int(known[1]) if known else trip_count(*(computations[called[part]].lines for part in _LOOP))
        return [(called["body"], turns)]
    names = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return [(name, 1) for name in names if name in computations]


_LOOP = ("condition", "body")
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"= [su]32\[\]\S* get-tuple-element\(.*index=(\d+)")


def trip_count(condition: list[str], body: list[str]) -> int | None:
    """Of a loop that counts from 0 in equal steps while it is less than a constant.

    Scans do by ones; products that rotate shards around a ring, as on v5p, by twos where they go both ways.
    """
    tested = _named(condition)
    for line in condition:
        operands = [tested.get(name, "") for name in _operands(line, "compare")]
        if len(operands) != 2 or "direction=LT" not in line:
            continue
        counter, limit = operands
        element, constant = _ELEMENT.search(counter), _CONSTANT.search(limit)
        step = _step(body, int(element[1])) if element else None
        if constant and step:
            return -(-int(constant[1]) // step)
    return None


def _step(body: list[str], index: int) -> int | None:
    """What one turn adds to that element of what the loop carries."""
    lines = _named(body)
    root = next(line for line in body if line.lstrip().startswith("ROOT "))
    results = _operands(root, "tuple")
    added = lines.get(results[index], "") if index < len(results) else ""
    while copied := _operands(added, "copy"):
        added = lines.get(copied[0], "")
    steps = [match for name in _operands(added, "add") if (match := _CONSTANT.search(lines.get(name, "")))]
    return int(steps[0][1]) if len(steps) == 1 else None


def _named(lines: list[str]) -> dict[str, str]:
    return {match[1]: line for line in lines if (match := _INSTRUCTION.match(line))}


def _operands(line: str, operation: str) -> list[str]:
    """Names of an instruction's operands; none of another operation's."""
    _, separator, rest = line.partition(f" {operation}(")
    return re.findall(r"%([\w.\-]+)", rest.split(")")[0]) if separator else []


def _walk(
    computations: Mapping[str, _Computation], name: str, runs: int, times: dict[str, int], unsure: set[str]
) -> None:
    """Adds up how often each computation runs, and which of them run in a loop whose turns are not known."""
    times[name] += runs
    for called, often in computations[name].calls:
        if often is None or name in unsure:
            unsure.add(called)
        _walk(computations, called, runs * (often or 1), times, unsure)


def _kind(line: str) -> str | None:
    for kind in KINDS:
        if f" {kind}(" in line or f" {kind}-start(" in line:
            return kind
    return None


def _moved(kind: str, line: str) -> int:
    """Bytes of an instruction's result; an asynchronous start's result holds its operand too, which is taken off."""
    result = line.split(" = ", 1)[1].split(f" {kind}", 1)[0]
    sizes = [_size(dtype, dims) for dtype, dims in _SHAPE.findall(result) if dtype in _BYTES]
    if f" {kind}-start(" in line and kind != "all-reduce":
        sizes = [max(sizes)]
    total = sum(sizes)
    if kind == "reduce-scatter":
        groups = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
        members = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
        width = int(groups[2]) if groups else len(members[1].split(",")) if members else 1
        total *= width
    return total


def _size(dtype: str, dims: str) -> int:
    size = _BYTES[dtype]
    for dim in filter(None, dims.split(",")):
        size *= int(dim)
    return size
