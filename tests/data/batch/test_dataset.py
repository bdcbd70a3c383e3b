"""Rows and batches: what a row holds, which records come when, resuming, skipping, and evaluation's controls."""

import ctypes
import dataclasses
import itertools
import json
import multiprocessing
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image
from support.specs import changed, make_spec

from vlvm_jax.data.batch.dataset import make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.batch.stream import Batches, Part
from vlvm_jax.data.batch.tuning import Loading
from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sample.loader import SampleLoader, check_lengths
from vlvm_jax.errors import InputError

NUM = 13
KINDS = ("image", "video", "text", "pair", "video")
STEP = 9  # brightness between media of neighbouring records


@pytest.fixture(autouse=True)
def parsed_flags():
    """Grain's worker processes read absl flags, which a command has parsed by then."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def level(index, medium=0):
    return STEP * (2 * index + medium + 1)


def clip_frames(index):
    return 2 + index % 4  # two to five: shorter than, as long as and longer than what is taken


def make_record(folder, index):
    """A record whose media are flat in a brightness of its own, so that a frame tells where it comes from."""
    kind = KINDS[index % len(KINDS)]
    media = []
    for medium in range({"text": 0, "pair": 2}.get(kind, 1)):
        path = folder / f"{index}-{medium}.{'mp4' if kind == 'video' else 'png'}"
        count = clip_frames(index) if kind == "video" else 1
        pixels = np.full((count, 16, 16, 3), level(index, medium), np.uint8)
        if kind == "video":
            shapes.write_mp4(path, pixels, 8)
        else:
            Image.fromarray(pixels[0]).save(path)
        media.append(("video" if kind == "video" else "image", str(path)))
    question = "<image>\n" * len(media) + "how many ?"
    turns = [Turn(question, "two", "count"), Turn("circle color ?", "red", "color")][: 1 + index % 2]
    return Record(str(index), f"notes.json: record {index}", tuple(media), tuple(turns))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    embedded_words.tokenizer().save(str(folder / "tokenizer.json"))
    spec = make_spec(
        length=40,
        frames=9,
        frames_per_video=4,
        image_size=8,
        image_tokens=3,
        video_tokens=(0, 2, 5, 7, 11),
        tokenizer=str(folder),
        chat_template="bare",
    )
    return [make_record(folder, i) for i in range(NUM)], spec


def dataset(world, *, rows=2, pack=True, seed=None, workers=0, log=None, **options):
    records, spec = world
    log = log or SkipLog(records, 0.0)
    return make_dataset(records, spec, rows=rows, pack=pack, skip_log=log, seed=seed, workers=workers, **options)


def seen(batches):
    """Records in the order in which their segments stand in the rows."""
    found = []
    for batch in batches:
        for row, segments in zip(batch["record"], batch["segment_ids"], strict=True):
            found += [int(row[segments == s][0]) for s in range(1, segments.max() + 1)]
    return found


def assert_equal_batches(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def check_row(row, records, spec):
    """Everything a row must be, worked out from its records alone. Returns how many samples it holds."""
    loader = SampleLoader(records, spec)
    segments = row["segment_ids"]
    count = int(segments.max())
    assert (np.diff(segments[segments > 0]) >= 0).all() and not segments[np.count_nonzero(segments) :].any()
    frames, media_ids, is_video = [], [], []
    for segment in range(1, count + 1):
        here = segments == segment
        index = int(row["record"][here][0])
        record = records[index]
        lengths = [min(clip_frames(index), spec.frames_per_video) if k == "video" else 1 for k, _ in record.media]
        visual = [
            spec.video_tokens[n] if k == "video" else spec.image_tokens
            for (k, _), n in zip(record.media, lengths, strict=True)
        ]
        tokens = loader.encode(record, visual)
        assert (row["record"][here] == index).all()
        np.testing.assert_array_equal(row["positions"][here], np.arange(len(tokens.ids)))
        np.testing.assert_array_equal(row["token_ids"][here], tokens.ids)
        np.testing.assert_array_equal(row["loss_mask"][here], tokens.loss_mask)
        np.testing.assert_array_equal(row["media_mask"][here], tokens.media_mask)
        assert row["media_mask"][here].sum() == sum(visual)
        for medium, (kind, _) in enumerate(record.media):
            media_ids += [media_ids[-1] + 1 if media_ids else 1] * lengths[medium]
            frames += [level(index, medium)] * lengths[medium]
            is_video += [kind == "video"] * lengths[medium]
    rest = spec.frames - len(frames)
    assert row["media"].tolist() == media_ids + [0] * rest
    assert row["is_video"].tolist() == is_video + [False] * rest
    np.testing.assert_allclose(row["frames"].mean(axis=(1, 2, 3)), frames + [0] * rest, atol=3)
    padding = segments == 0
    for key in ("token_ids", "positions", "loss_mask", "media_mask"):
        assert not row[key][padding].any()
    return count


# --- rows --------------------------------------------------------------------------------------------------------


def test_batches_have_one_fixed_shape(world):
    for batch in [*dataset(world, rows=3), *take(iter(dataset(world, rows=3, seed=0)), 4)]:
        described = {key: (value.shape, value.dtype) for key, value in batch.items()}
        assert described == {
            "frames": ((3, 9, 8, 8, 3), np.uint8),
            "media": ((3, 9), np.int32),
            "is_video": ((3, 9), np.bool_),
            "token_ids": ((3, 40), np.int32),
            "media_mask": ((3, 40), np.bool_),
            "positions": ((3, 40), np.int32),
            "segment_ids": ((3, 40), np.int32),
            "loss_mask": ((3, 40), np.bool_),
            "record": ((3, 40), np.int32),
            "last": ((3,), np.int64),
        }


@pytest.mark.parametrize("seed", [None, 3])
def test_packed_rows_keep_samples_apart(world, seed):
    batches = take(iter(dataset(world, rows=3, seed=seed)), 12)
    counts = [check_row({key: value[i] for key, value in batch.items()}, *world) for batch in batches for i in range(3)]
    assert max(counts) >= 3, "nothing was packed"


def test_without_packing_a_row_holds_one_sample(world):
    batches = list(dataset(world, rows=3, pack=False))
    counts = [check_row({key: value[i] for key, value in batch.items()}, *world) for batch in batches for i in range(3)]
    assert counts == [1] * NUM + [0] * (-NUM % 3)


def test_packing_takes_fewer_rows(world):
    assert len(list(dataset(world))) < len(list(dataset(world, pack=False)))


def test_the_row_limits_frames_as_well_as_tokens(world):
    records, spec = world
    roomy = changed(spec, length=400)
    for batch in dataset((records, roomy), rows=2):
        assert all(check_row({k: v[i] for k, v in batch.items()}, records, roomy) < 13 for i in range(2))


# --- which records, and when -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 5, 20])
@pytest.mark.parametrize("pack", [True, False])
def test_evaluation_sees_every_record_once(world, rows, pack):
    batches = list(dataset(world, rows=rows, pack=pack))
    assert sorted(seen(batches)) == list(range(NUM))
    assert all(batch["token_ids"].shape[0] == rows for batch in batches)
    if not pack:
        assert seen(batches) == list(range(NUM)) and len(batches) == -(-NUM // rows)


def test_every_epoch_sees_every_record_once_in_a_new_order(world):
    def epochs(seed, count=3):
        order = seen(take(iter(dataset(world, rows=1, pack=False, seed=seed)), count * NUM))
        return [order[i * NUM : (i + 1) * NUM] for i in range(count)]

    first = epochs(5)
    assert all(sorted(epoch) == list(range(NUM)) for epoch in first)
    assert first[0] != first[1] != first[2] != first[0] and list(range(NUM)) not in first
    assert epochs(5) == first
    assert epochs(6)[0] != first[0]


def test_packing_drops_no_record_across_epochs(world):
    order = seen(take(iter(dataset(world, rows=2, seed=5)), 20))
    counts = Counter(order)
    assert len(order) > 3 * NUM and set(counts) == set(range(NUM))
    # Rows may mix the end of one epoch with the start of the next, no more.
    assert max(counts.values()) - min(counts.values()) <= 2


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_are_disjoint_and_complete(world, count):
    shards = [seen(dataset(world, part=Part(reader=i, readers=count))) for i in range(count)]
    assert sorted(itertools.chain(*shards)) == list(range(NUM))
    assert all(max(map(len, shards)) - len(shard) <= 1 for shard in shards)


@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_training_deal_out_one_order(world, count):
    options = {"rows": 1, "pack": False, "seed": 2}
    whole = seen(take(iter(dataset(world, **options)), 8 * count))
    for index in range(count):
        shard = seen(take(iter(dataset(world, **options, part=Part(reader=index, readers=count))), 8))
        assert shard == whole[index::count]


@pytest.mark.parametrize("seed", [None, 1])
def test_the_number_of_workers_changes_nothing(world, seed):
    alone = take(iter(dataset(world, seed=seed, workers=0)), 7)
    for workers in (1, 2, "auto", Loading(1, 4, 3, 1)):
        assert_equal_batches(take(iter(dataset(world, seed=seed, workers=workers)), 7), alone)


@pytest.mark.parametrize("size", [0, 5000, 1 << 20])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing(world, size, workers):
    records, spec = world
    epochs = 3 * NUM
    expected = take(iter(dataset(world, seed=4)), epochs // 4)
    cached = dataset((records, changed(spec, cache_bytes=size)), seed=4, workers=workers)
    assert_equal_batches(take(iter(cached), epochs // 4), expected)


def test_what_is_cached_is_not_read_again(world, tmp_path):
    records, spec = world
    copies = []
    for number, record in enumerate(records):
        media = [(kind, str(shutil.copy(path, tmp_path / f"{number}-{i}{Path(path).suffix}")))
                 for i, (kind, path) in enumerate(record.media)]  # fmt: skip
        copies.append(dataclasses.replace(record, media=tuple(media)))
    loader = SampleLoader(copies, changed(spec, cache_bytes=1 << 20))
    before = [loader(index) for index in range(len(copies))]
    for file in tmp_path.iterdir():
        file.unlink()
    again = [loader(index) for index in range(len(copies))]
    assert_equal_batches(again, before)
    assert all(len(sample["bad"]) == 0 for sample in again)
    small = SampleLoader(copies, changed(spec, cache_bytes=10))
    assert any(len(small(index)["bad"]) for index in range(len(copies)))  # the files are gone indeed


# --- resuming ----------------------------------------------------------------------------------------------------


def batches_of(world, reader=0, readers=1, **options):
    return Batches(lambda part: dataset(world, seed=9, part=part, **options), reader, readers)


def state_of(batches):
    return json.loads(json.dumps(batches.state()))


def test_resuming_at_any_step_with_any_number_of_workers(world):
    whole = take(batches_of(world), 12)
    running, states = batches_of(world), []
    for _ in range(8):
        states.append(state_of(running))
        next(running)
    running.close()
    for step, workers in [*((step, 0) for step in range(8)), (0, 1), (3, 1), (5, 2)]:
        fresh = batches_of(world, workers=workers)
        fresh.restore([states[step]])
        assert_equal_batches(take(fresh, 4), whole[step : step + 4])
        fresh.close()


def test_going_back_within_one_iterator(world):
    batches = batches_of(world)
    take(batches, 2)
    state = state_of(batches)
    ahead = take(batches, 4)
    batches.restore([state])
    assert_equal_batches(take(batches, 4), ahead)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("counts", [(2, 1), (2, 4), (3, 2, 2, 1)])
def test_another_number_of_readers_sees_what_nobody_has_seen(damaged, counts, pack):
    """Epochs of 11 usable records: positions are counted by what was seen, the two unusable ones among them."""
    records, _ = damaged
    log = SkipLog(records, 0.2)
    found, states = Counter(), None
    for count in counts:
        group = [batches_of(damaged, reader, count, pack=pack, log=log, rows=1) for reader in range(count)]
        for batches in group:
            if states is not None:
                batches.restore(states)
            found.update(seen(take(batches, 3)))
        states = [state_of(batches) for batches in group]
        for batches in group:
            batches.close()
    last = batches_of(damaged, pack=pack, log=log, rows=1)
    last.restore(states)
    while not (last.part.taken and last.part.remaining.position(last.part.taken) >= 6 * NUM):
        found.update(seen(take(last, 1)))
    whole = batches_of(damaged, pack=False, log=log, rows=1)
    expected = Counter()
    while whole.part.taken < last.part.remaining.position(last.part.taken):
        expected.update(seen(take(whole, 1)))
    assert found == expected
    assert log.summary() == {"corrupt": 1, "missing": 1}


def test_a_loader_travels_without_its_tokenizer(world):
    loader = SampleLoader(*world)
    expected = loader(1)
    assert loader.processor is not None
    arrived = pickle.loads(pickle.dumps(loader))
    assert arrived._processor is None
    assert_equal_batches([arrived(1)], [expected])


# --- samples that cannot be used ---------------------------------------------------------------------------------


@pytest.fixture
def damaged(world, tmp_path):
    """The world with a corrupt clip (record 1) and a missing image (record 5)."""
    records, spec = world
    (tmp_path / "corrupt.mp4").write_bytes(b"not a clip")
    broken = list(records)
    broken[1] = dataclasses.replace(records[1], media=(("video", str(tmp_path / "corrupt.mp4")),))
    broken[5] = dataclasses.replace(records[5], media=(("image", str(tmp_path / "absent.png")),))
    return broken, spec


def test_bad_samples_are_skipped_counted_and_listed_once(damaged, tmp_path):
    records, _ = damaged
    file = tmp_path / "skipped.jsonl"
    log = SkipLog(records, 0.2, file, "align")
    order = seen(take(iter(dataset(damaged, rows=1, pack=False, seed=0, log=log)), 3 * (NUM - 2)))
    assert Counter(order) == {i: 3 for i in range(NUM) if i not in (1, 5)}
    assert log.summary() == {"corrupt": 1, "missing": 1}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["cause"] for line in lines) == ["corrupt", "missing"]
    assert all(line["stage"] == "align" for line in lines)
    assert {line["cause"]: line["detail"] for line in lines}["missing"] == str(tmp_path / "absent.png")


def test_a_list_on_disk_already_counts(damaged, tmp_path):
    records, _ = damaged
    file = tmp_path / "skipped.jsonl"
    list(dataset(damaged, log=SkipLog(records, 0.2, file, "align")))
    written = file.read_text()
    again = SkipLog(records, 0.2, file, "align")
    assert again.summary() == {"corrupt": 1, "missing": 1}
    list(dataset(damaged, log=again))
    assert file.read_text() == written
    assert SkipLog(records, 0.2, file, "another stage").summary() == {}


def test_bad_samples_from_a_worker(damaged):
    log = SkipLog(damaged[0], 0.2)
    found = seen(dataset(damaged, log=log, workers=1))
    assert sorted(found) == [i for i in range(NUM) if i not in (1, 5)]
    assert log.summary() == {"corrupt": 1, "missing": 1}


class Crashing(list):
    """Records of which one crashes the worker that reads it, as a decoder does that reads where nothing is."""

    def __init__(self, records, at):
        super().__init__(records)
        self.at = at

    def __reduce__(self):
        return Crashing, (list(self), self.at)

    def __getitem__(self, index):
        if index == self.at and multiprocessing.parent_process() is not None:
            ctypes.string_at(0)
        return super().__getitem__(index)


def test_a_record_that_crashes_every_worker_is_named(world):
    """Of a shuffled order, where a sample's number is not its record's."""
    records, spec = world
    batches = iter(dataset((Crashing(records, 5), spec), seed=1, workers=Loading(1, 2, 4, 1)))
    with pytest.raises(InputError) as raised:
        take(batches, NUM)
    batches.close()
    (path,) = [path for _, path in records[5].media]
    assert str(raised.value).startswith(f"notes.json: record 5 ({path}): 3 worker processes in a row died (SIGSEGV)")
    assert "remove the record, re-encode its media" in str(raised.value) and "\n" not in str(raised.value)


def test_too_many_bad_samples_end_the_run(damaged):
    with pytest.raises(InputError) as caught:
        list(dataset(damaged, log=SkipLog(damaged[0], 0.1, stage="align")))
    assert str(caught.value).startswith(
        f"2 of {NUM} samples of stage 'align' cannot be used, more than config.data.max_bad_share = 0.1 allows; "
        "the last: missing: "
    )


def test_a_share_of_zero_allows_none_and_the_exact_share_is_allowed(damaged):
    with pytest.raises(InputError, match="1 of 13 samples"):
        list(dataset(damaged, log=SkipLog(damaged[0], 0.0)))
    assert len(seen(dataset(damaged, log=SkipLog(damaged[0], 2 / NUM)))) == NUM - 2


def test_processes_count_each_others_bad_samples(damaged, tmp_path):
    records, _ = damaged
    corrupt, missing = (SampleLoader(*damaged)(index) for index in (1, 5))

    def log(name):
        return SkipLog(records, 1.5 / NUM, tmp_path / name, "align", processes=2)

    first, second = log("skipped.jsonl"), log("skipped.1.jsonl")
    assert not first.usable(corrupt)
    assert not second.usable(corrupt)  # the same record, of another epoch
    with pytest.raises(InputError, match="2 of 13 samples of stage 'align'"):
        second.usable(missing)
    assert first.summary() == log("skipped.2.jsonl").summary() == {"corrupt": 1, "missing": 1}


def one_clip(world):
    return [world[0][11]]  # five frames, four taken: 11 visual tokens; two turns of 7 text tokens


def test_too_long_gives_the_arithmetic(world):
    records, spec = one_clip(world), dataclasses.replace(world[1], length=24)
    note = json.loads(SampleLoader(records, spec)(0)["bad"].tobytes())
    assert note == {
        "record": 0,
        "source": "notes.json: record 11",
        "cause": "too_long",
        "detail": "notes.json: record 11: 11 visual + 14 text tokens > length 24",
    }
    fits = SampleLoader(records, changed(spec, length=25))(0)
    assert not len(fits["bad"]) and len(fits["token_ids"]) == 25


def test_too_many_frames_gives_the_arithmetic(world):
    spec = dataclasses.replace(world[1], frames=3)
    note = json.loads(SampleLoader(one_clip(world), spec)(0)["bad"].tobytes())
    assert (note["cause"], note["detail"]) == ("too_many_frames", "notes.json: record 11: 4 frames for a row of 3")


def test_more_clips_than_the_adapter_takes_are_refused_before_any_is_decoded(world):
    clip = one_clip(world)[0]
    two = dataclasses.replace(clip, media=(("video", "/nowhere/a.mp4"), ("video", "/nowhere/b.mp4")))
    spec = dataclasses.replace(world[1], max_clips=1)
    note = json.loads(SampleLoader([two], spec)(0)["bad"].tobytes())
    assert (note["cause"], note["detail"]) == ("too_many_clips", "notes.json: record 11: 2 clips; the model takes 1")
    assert not len(SampleLoader([clip], spec)(0)["bad"])


def test_check_lengths_fails_before_anything_is_decoded(world):
    clip = dataclasses.replace(one_clip(world)[0], media=(("video", "/nowhere/clip.mp4"),))
    text = Record("t", "notes.json: record 10", (), (Turn("how many ?", "two"),))
    spec = dataclasses.replace(world[1], length=24)
    with pytest.raises(InputError) as caught:
        check_lengths(SampleLoader([text, clip, text, text], spec), "config.stages.0", 0.2)
    assert str(caught.value) == (
        "config.stages.0.length: 1 of 4 records probed do not fit; "
        "notes.json: record 11: 11 visual + 14 text tokens > length 24"
    )
    check_lengths(SampleLoader([text, clip, text, text], spec), "config.stages.0", 0.25)
    check_lengths(SampleLoader([text, clip], changed(spec, length=25)), "config.stages.0", 0.0)


def test_check_lengths_probes_the_first_and_the_last(world):
    text = Record("t", "s", (), (Turn("how many ?", "two"),))
    long = Record("l", "s", (), (Turn("how " * 50, "two"),))
    for records in ([long, *[text] * 1000], [*[text] * 1000, long]):
        with pytest.raises(InputError, match="1 of 16 records probed"):
            check_lengths(SampleLoader(records, world[1]), "x", 0.05, probe=16)


def test_spec_check_gives_the_arithmetic(world):
    spec = dataclasses.replace(world[1], length=11)
    with pytest.raises(InputError) as caught:
        spec.check("config.stages.1", has_video=True)
    assert str(caught.value) == (
        "config.stages.1.length: a clip of 4 frames takes 11 visual tokens (2.75 a frame), which leaves no room for "
        "text in a length of 11; raise length, or take fewer frames or tokens per frame"
    )
    spec.check("config.stages.1", has_video=False)
    changed(spec, length=12).check("config.stages.1", has_video=True)
