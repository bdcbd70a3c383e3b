"""Where training stands in its endless stream of samples, whatever the number of readers that share it.

Positions of the stream are 0, 1, 2, ...; which record stands at one follows from the seed alone. The readers take
turns: of what remained when they began, reader i of n gets every n-th sample from the i-th on, each at its own pace,
as a row holds more or fewer samples. When another number of readers continues, what then remains is dealt out anew.
"""

import asyncio
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from etils import epath


@dataclasses.dataclass(frozen=True)
class Remaining:
    """Positions that nobody has got yet: those from `start` on that are not in `ahead`, sorted."""

    start: int = 0
    ahead: tuple[int, ...] = ()

    @functools.cached_property
    def _remain_before(self) -> np.ndarray:
        """For each position in `ahead`, how many remain before it."""
        return np.asarray(self.ahead, np.int64) - self.start - np.arange(len(self.ahead))

    def position(self, number: int) -> int:
        """The remaining position that has `number` others before it."""
        if not self.ahead:
            return self.start + number
        return self.start + number + int(np.searchsorted(self._remain_before, number, side="right"))

    def after(self, taken: Sequence[int]) -> "Remaining":
        """What is left when reader i of `len(taken)` has got its first `taken[i]` samples."""
        readers = len(taken)
        first = min(reader + readers * count for reader, count in enumerate(taken))  # the lowest number nobody has got
        beyond = (
            self.position(reader + readers * number)
            for reader, count in enumerate(taken)
            for number in range(max(0, (first - reader) // readers + 1), count)
        )
        start = self.position(first)
        return Remaining(start, tuple(sorted({*beyond, *(position for position in self.ahead if position > start)})))


@dataclasses.dataclass(frozen=True)
class Part:
    """What one reader has still to get: of what remained, its every `readers`-th sample but the first `taken`."""

    remaining: Remaining = Remaining()
    reader: int = 0
    readers: int = 1
    taken: int = 0


WHOLE = Part()


@dataclasses.dataclass(frozen=True)
class PartOf:
    """A part of an order of records; a source of Grain."""

    order: grain.MapDataset
    part: Part

    def __len__(self) -> int:
        part = self.part
        return len(range(part.reader + part.readers * part.taken, len(self.order), part.readers))

    def __getitem__(self, index: int) -> Any:
        part = self.part
        return self.order[part.remaining.position(part.reader + part.readers * (part.taken + int(index)))]


class Batches(Iterator[Mapping[str, np.ndarray]]):
    """Endless batches of one reader, which Orbax saves and loads: a small JSON file for each reader.

    A checkpoint of the same number of readers continues with the same batches, one of another number with the samples
    that nobody had got.

    Args:
      make: opens the batches of a part; they have a field `last` as `dataset.make_dataset` gives it.
    """

    def __init__(self, make: Callable[[Part], Iterable[Mapping[str, np.ndarray]]], reader: int = 0, readers: int = 1):
        self.part = Part(reader=reader, readers=readers)
        self._make = make
        self._batches: Any = None
        self._loaded: Mapping[str, np.ndarray] | None = None

    def load_next(self) -> None:
        """Waits until the next batch is there. It stays the next one, also for what is saved."""
        if self._batches is None:
            self._batches = iter(self._make(self.part))
        if self._loaded is None:
            self._loaded = next(self._batches)

    def __next__(self) -> Mapping[str, np.ndarray]:
        self.load_next()
        assert self._loaded is not None
        batch, self._loaded = self._loaded, None
        self.part = dataclasses.replace(self.part, taken=int(batch["last"].max()) + 1)
        return batch

    def close(self) -> None:
        """Ends workers and threads; the next batch opens new ones."""
        self._loaded = None
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def state(self) -> dict[str, Any]:
        """Where this reader stands, as plain data."""
        return dataclasses.asdict(self.part)

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continues from the states of all readers, in any order, also of another number of them."""
        self.close()
        parts = sorted(map(_part, states), key=lambda part: part.reader)
        if len(parts) == self.part.readers:
            self.part = parts[self.part.reader]
        else:
            remaining = parts[0].remaining.after([part.taken for part in parts])
            self.part = dataclasses.replace(self.part, remaining=remaining, taken=0)

    async def save(self, directory: Any):
        """For Orbax: takes the state now and returns what writes it."""
        text = json.dumps(self.state())
        name = f"reader_{self.part.reader}-of-{self.part.readers}.json"

        async def write() -> None:
            folder = await directory.await_creation()
            await asyncio.to_thread((folder / name).write_text, text)

        return write()

    async def load(self, directory: epath.Path):
        """For Orbax: returns what reads all readers' states and continues from them."""

        async def read() -> None:
            files = await asyncio.to_thread(lambda: sorted(directory.glob("reader_*-of-*.json")))
            self.restore([json.loads(await asyncio.to_thread(file.read_text)) for file in files])

        return read()


def _part(state: Mapping[str, Any]) -> Part:
    remaining = Remaining(state["remaining"]["start"], tuple(state["remaining"]["ahead"]))
    return dataclasses.replace(Part(**state), remaining=remaining)
