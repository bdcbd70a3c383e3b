"""Over one epoch each sample is seen exactly once, whatever the readers and workers, also when both change in between.

Readers stand for the processes of a run: each opens its part of one stream, as `training.stages` does. They take some
batches and save their states, other readers go on from those, and at last a single one takes sample after sample up to
the epoch's end. Then every usable sample must have come once, and no other at all.
"""

import json
from collections import Counter

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from support.specs import make_spec

from vlvm_jax.data.batch.dataset import make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.batch.stream import Batches, Part
from vlvm_jax.data.batch.tuning import Loading
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.record import Record, Turn

pytestmark = pytest.mark.slow

NUM, MOST_IN_A_ROW = 240, 6
BAD = {0: "too_long", 7: "missing", 8: "missing", 50: "too_long", 51: "missing", 239: "missing"}
USABLE = sorted(set(range(NUM)) - set(BAD))


@pytest.fixture(autouse=True)
def parsed_flags():
    """Grain's worker processes read absl flags, which a command has parsed by then."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Records of text alone, of several lengths; some are too long for a row, some name an image that is not there."""
    folder = tmp_path_factory.mktemp("world")
    embedded_words.tokenizer().save(str(folder / "tokenizer.json"))

    def record(index):
        cause = BAD.get(index)
        media = (("image", str(folder / f"{index}.png")),) if cause == "missing" else ()
        question = "<image>\n" * len(media) + "how many ? " * (60 if cause == "too_long" else 1 + index % 4)
        return Record(str(index), f"n: record {index}", media, (Turn(question.strip(), "two"),))

    return [record(i) for i in range(NUM)], make_spec(
        length=48, frames=1, frames_per_video=1, image_size=8, image_tokens=3, video_tokens=(0, 1),
        tokenizer=str(folder), chat_template="bare",
    )  # fmt: skip


def open_readers(world, log, *, readers, workers, pack, rows, seed, states):
    records, spec = world
    # Few of the samples that wait are used before the readers change; what waits is lost, which must not matter.
    loading = Loading(workers, 1, samples=2, batches=1) if workers else workers

    def make(part):
        return make_dataset(records, spec, rows=rows, pack=pack, skip_log=log, seed=seed, workers=loading, part=part)

    group = [Batches(make, reader, readers) for reader in range(readers)]
    for one in group:
        if states is not None:
            one.restore(states)
    return group


def records_of(batch):
    """Records in a batch, one for each segment of each row."""
    found = []
    for record, segments in zip(batch["record"], batch["segment_ids"], strict=True):
        found += [int(record[segments == segment][0]) for segment in range(1, segments.max() + 1)]
    return found


def run(world, phases, *, seed, pack):
    """What one epoch shows. A phase is (readers, workers, rows of a batch, batches that each reader takes)."""
    log = SkipLog(world[0], 1.0)
    # No reader may come to the next epoch before the last phase, also one that meets all the bad samples.
    most = MOST_IN_A_ROW if pack else 1
    assert sum(readers * (rows * steps * most + len(BAD)) for readers, _, rows, steps in phases) <= NUM
    found, states = [], None
    for readers, workers, rows, steps in phases:
        group = open_readers(
            world, log, readers=readers, workers=workers, pack=pack, rows=rows, seed=seed, states=states
        )
        try:
            for _ in range(steps):
                for one in group:
                    found += records_of(next(one))
            states = json.loads(json.dumps([one.state() for one in group]))
        finally:
            for one in group:
                one.close()
    (last,) = open_readers(world, log, readers=1, workers=0, pack=False, rows=1, seed=seed, states=states)
    while len(found) < len(USABLE):
        found += records_of(next(last))
    last.close()
    assert Counter(found) == Counter(USABLE)
    assert log.causes.items() <= BAD.items()
    return found


phase = st.tuples(st.sampled_from([1, 2, 4]), st.just(0), st.integers(1, 2), st.integers(0, 2))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), phases=st.lists(phase, max_size=3), pack=st.booleans())
def test_any_seed_and_any_changes_of_readers(world, seed, phases, pack):
    most = MOST_IN_A_ROW if pack else 1
    while sum(readers * (rows * steps * most + len(BAD)) for readers, _, rows, steps in phases) > NUM:
        phases = phases[:-1]
    run(world, phases, seed=seed, pack=pack)


@pytest.mark.parametrize(
    ("pack", "grid"),
    [
        (True, [(1, 4), (4, 1), (2, 0)]),
        (True, [(2, 1), (4, 4), (1, 0)]),
        (False, [(4, 0), (2, 4), (1, 1)]),
    ],
    ids=["packed", "packed, most processes", "not packed"],
)
def test_one_two_and_four_readers_of_no_one_and_four_workers(world, pack, grid):
    """All nine, each the beginning or the continuation of another. A worker takes seconds to start, so each once."""
    with_workers = run(world, [(readers, workers, 2, 2) for readers, workers in grid], seed=5, pack=pack)
    assert with_workers == run(world, [(readers, 0, 2, 2) for readers, _ in grid], seed=5, pack=pack)


# --- evaluation: each record once, in order ----------------------------------------------------------------------


@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.parametrize("pack", [True, False])
def test_readers_of_a_single_epoch(world, readers, pack):
    records, spec = world
    log, found = SkipLog(records, 1.0), []
    for reader in range(readers):
        part = Part(reader=reader, readers=readers)
        dataset = make_dataset(records, spec, rows=3, pack=pack, skip_log=log, seed=None, workers=0, part=part)
        for batch in dataset:
            found += records_of(batch)
    assert Counter(found) == Counter(USABLE)
    assert log.causes == BAD


# --- packing across the border of epochs -------------------------------------------------------------------------


def test_a_batch_may_hold_the_end_of_one_epoch_and_the_start_of_the_next(world):
    """Nothing is lost or padded away at the border: of three epochs' samples each comes three times before any comes
    a fifth time, and the positions counted by the reader are those of the stream."""
    log, found = SkipLog(world[0], 1.0), []
    (one,) = open_readers(world, log, readers=1, workers=0, pack=True, rows=3, seed=2, states=None)
    crossed = False
    while one.part.taken < 3 * NUM:
        epoch = one.part.taken // NUM
        found += records_of(next(one))
        crossed |= one.part.taken // NUM != epoch and one.part.taken % NUM > 0
    one.close()
    counts = Counter(found)
    assert crossed and set(counts) == set(USABLE)
    assert min(counts.values()) == 3 and max(counts.values()) <= 4
