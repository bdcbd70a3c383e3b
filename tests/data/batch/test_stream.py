"""Where readers of one stream stand: whatever they take and however many they become, each sample is seen once."""

import asyncio
import json

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data.batch.stream import Batches, Part, Remaining

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@given(start=st.integers(0, 50), ahead=st.sets(st.integers(1, 60)))
def test_positions_are_those_that_remain(start, ahead):
    remaining = Remaining(start, tuple(sorted(start + offset for offset in ahead)))
    expected = [position for position in range(start, start + 200) if position - start not in ahead]
    assert [remaining.position(number) for number in range(100)] == expected[:100]


@given(rounds=st.lists(sizes, min_size=1, max_size=5))
def test_any_readers_one_after_another_give_out_each_position_once(rounds):
    """Each round is another number of readers; each reader takes some samples, at its own pace."""
    remaining, given_out = Remaining(), []
    for taken in rounds:
        for reader, count in enumerate(taken):
            given_out += [remaining.position(reader + len(taken) * number) for number in range(count)]
        remaining = remaining.after(taken)
    assert len(set(given_out)) == len(given_out)
    assert given_out.count(remaining.start) == 0
    assert set(given_out) == {*range(remaining.start), *remaining.ahead}
    assert list(remaining.ahead) == sorted(remaining.ahead)


def numbers(part: Part):
    """Batches of positions: what a dataset would give that skips every seventh and packs by the position's size."""
    batch: list[int] = []
    number = last = part.taken
    while True:
        position = part.remaining.position(part.reader + part.readers * number)
        if position % 7:
            if len(batch) >= 1 + position % 3:  # this one no longer fits
                yield {"positions": np.array(batch), "last": np.array([0, last])}
                batch = []
            batch.append(position)
            last = number
        number += 1


def positions(batches, count):
    return [int(position) for _ in range(count) for position in next(batches)["positions"]]


def readers(count, states=None):
    made = [Batches(numbers, reader, count) for reader in range(count)]
    for one in made:
        if states is not None:
            one.restore(json.loads(json.dumps(states)))
    return made


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=5), steps=st.lists(st.integers(0, 6), min_size=5))
def test_no_sample_is_lost_or_seen_twice_when_the_readers_change(counts, steps):
    seen, states = [], None
    for count, number in zip(counts, steps, strict=False):
        group = readers(count, states)
        for one in group:
            seen += positions(one, number)
        states = [one.state() for one in group]
    (last,) = readers(1, states)
    seen += positions(last, 60)
    assert len(set(seen)) == len(seen)
    assert set(range(40)) - set(seen) == {0, 7, 14, 21, 28, 35}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_number_of_readers_goes_on_as_if_nothing_had_been(count):
    undisturbed, group = readers(count), readers(count)
    for one in group:
        positions(one, 5 + one.part.reader)
    again = readers(count, [one.state() for one in group])
    for one, other in zip(undisturbed, again, strict=True):
        positions(one, 5 + one.part.reader)
        assert positions(one, 10) == positions(other, 10)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 3), (3, 2)])
def test_what_is_saved_in_files_is_what_is_loaded(tmp_path, before, after):
    class Created:
        async def await_creation(self):
            return epath.Path(tmp_path)

    async def run(calls):
        for call in calls:
            await (await call)

    group = readers(before)
    for one in group:
        positions(one, 4)
    states = [one.state() for one in group]
    saving = [one.save(Created()) for one in group]
    asyncio.run(run(saving))
    assert len(list(tmp_path.iterdir())) == before
    loaded, expected = readers(after), readers(after, states)
    asyncio.run(run(one.load(epath.Path(tmp_path)) for one in loaded))
    assert [one.state() for one in loaded] == [one.state() for one in expected]


def test_what_is_loaded_beforehand_is_still_to_come():
    batches, other = (Batches(numbers) for _ in range(2))
    for one in (batches, other):
        positions(one, 3)
    batches.load_next()
    batches.load_next()
    assert batches.state() == other.state()
    assert positions(batches, 3) == positions(other, 3)
    batches.load_next()
    batches.restore([other.state()])
    assert positions(batches, 3) == positions(other, 3)
