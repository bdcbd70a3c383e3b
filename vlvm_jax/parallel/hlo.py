"""Reads a compiled program's text: which collectives it runs, how often, and over how many bytes."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4,
    "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
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
    """

    count: Mapping[str, int]
    bytes: Mapping[str, int]


@dataclasses.dataclass
class _Computation:
    lines: list[str] = dataclasses.field(default_factory=list)
    calls: list[tuple[str, int]] = dataclasses.field(default_factory=list)


def collectives(text: str) -> Collectives:
    """Counts the collectives of a program as `compiled.as_text()` gives it."""
    computations, entry = _parse(text)
    times: dict[str, int] = defaultdict(int)
    _walk(computations, entry, 1, times)
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
    return Collectives(dict(count), dict(size))


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


def _calls(line: str, computations: Mapping[str, _Computation]) -> list[tuple[str, int]]:
    """Computations that an instruction runs, and how often each time."""
    if " while(" in line:
        found = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", line))
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)  # the CPU's compiler says it, the TPU's does not
        return [(found["body"], int(known[1]) if known else trip_count(computations[found["condition"]].lines))]
    names = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return [(name, 1) for name in names if name in computations]


def trip_count(condition: list[str]) -> int:
    """Of a loop that counts from 0 while it is less than a constant, as scans are; anything else counts as one."""
    constants = {
        match[1]: int(match[2])
        for line in condition
        if (match := re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", line))
    }
    for line in condition:
        if " compare(" in line and "direction=LT" in line:
            operands = re.findall(r"%([\w.\-]+)", line.split(" compare(")[1].split(")")[0])
            for name in operands:
                if name in constants:
                    return constants[name]
    return 1


def _walk(computations: Mapping[str, _Computation], name: str, runs: int, times: dict[str, int]) -> None:
    times[name] += runs
    for called, often in computations[name].calls:
        _walk(computations, called, runs * often, times)


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
