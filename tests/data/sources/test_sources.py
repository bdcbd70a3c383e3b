"""Which records a stage takes: whole files, parts drawn by seed, filters, weights, mixture files, patterns."""

import json
import pickle
import re
from collections import Counter

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.config import MixtureEntry, StageConfig, build
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import usable
from vlvm_jax.data.sources.mixture import Mixture, open_source, read_mixture, sample
from vlvm_jax.errors import InputError

MEDIA = [{"image": "i.png"}, {"video": "v.mp4"}, {}, {}]
TYPES = ["direction", "color", "", "caption", "speed"]


def raw(number):
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    return {"id": number, **MEDIA[number % 4], "conversations": said, "type": TYPES[number % 5]}


@pytest.fixture
def write(tmp_path):
    def write(name, start, stop):
        (tmp_path / name).write_text(json.dumps([raw(number) for number in range(start, stop)]))
        return str(tmp_path / name)

    return write


@pytest.fixture
def hundred(write):
    return write("hundred.json", 0, 100)


def ids(entries, seed=0):
    return [int(r.id) for r in read_mixture([MixtureEntry(**e) for e in entries], seed)]


def refusal(*entries):
    with pytest.raises(InputError) as caught:
        read_mixture([MixtureEntry(**entry) for entry in entries], 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is taken of one file -----------------------------------------------------------------------------------


def test_whole_file_in_order(hundred):
    assert ids([{"path": hundred}]) == list(range(100))


def test_fraction_is_drawn_by_seed_without_replacement(hundred):
    entry = {"path": hundred, "fraction": 0.3}
    drawn = ids([entry], seed=1)
    assert len(drawn) == len(set(drawn)) == 30 and drawn == sorted(drawn)
    assert drawn == ids([entry], seed=1)
    assert drawn != ids([entry], seed=2)
    assert drawn != list(range(30))


def test_fraction_of_two_entries_differs_by_their_place(hundred):
    entry = {"path": hundred, "fraction": 0.3}
    both = ids([entry, entry], seed=1)
    assert both[:30] == ids([entry], seed=1) and both[:30] != both[30:]


def test_a_count_is_drawn_without_repeats_and_written_down(hundred, write):
    """T2Vid's mix: exactly so many of each source, the same ones for the same seed."""
    entries = [{"path": hundred, "count": 20, "types": ["color", "speed"]}, {"path": write("b.json", 100, 110)}]
    drawn = ids(entries, seed=3)
    assert len(drawn) == len(set(drawn)) == 30
    assert drawn == ids(entries, seed=3) != ids(entries, seed=4)
    assert all(i % 5 in (1, 4) for i in drawn[:20])
    (written,) = read_mixture([MixtureEntry(**e) for e in entries], 3).drawn()
    assert written == {"source": hundred, "of": 100, "records": drawn[:20]}


def test_a_count_that_is_not_there_is_refused(hundred):
    assert refusal({"path": hundred, "count": 60, "media": ["text"]}) == (
        f"{hundred}: count 60, but 50 records are there to be drawn"
    )
    with pytest.raises(InputError, match=r"entry: give one of fraction and count"):
        build(MixtureEntry, {"path": hundred, "count": 5, "fraction": 0.5}, "entry")


def test_a_tiny_fraction_keeps_one(hundred):
    assert len(ids([{"path": hundred, "fraction": 0.001}])) == 1


def test_repeat_repeats_what_was_drawn(hundred):
    once = ids([{"path": hundred, "fraction": 0.1}])
    assert ids([{"path": hundred, "fraction": 0.1, "repeat": 3}]) == once * 3


@pytest.mark.parametrize(
    ("media", "rests"), [(["image"], {0}), (["video"], {1}), (["text"], {2, 3}), (["image", "video"], {0, 1})]
)
def test_media_filter(hundred, media, rests):
    assert ids([{"path": hundred, "media": media}]) == [i for i in range(100) if i % 4 in rests]


def test_types_filter(hundred):
    temporal = ids([{"path": hundred, "types": ["direction", "speed"]}])
    assert temporal == [i for i in range(100) if i % 5 in (0, 4)]
    assert ids([{"path": hundred, "types": ["caption"], "media": ["video"]}]) == [13, 33, 53, 73, 93]


def test_a_record_is_kept_for_one_question_of_the_type(tmp_path):
    several = raw(1) | {"conversations": raw(1)["conversations"] * 2, "types": ["color", "speed"]}
    (tmp_path / "n.json").write_text(json.dumps([raw(1), several]))
    mixture = read_mixture([MixtureEntry(path=str(tmp_path / "n.json"), types=("speed",))], 0)
    assert [[turn.type for turn in record.turns] for record in mixture] == [["color", "speed"]]
    assert mixture.types == [("color", "speed")]


def test_fraction_is_of_what_the_filter_left(hundred):
    drawn = ids([{"path": hundred, "media": ["text"], "fraction": 0.5}])
    assert len(drawn) == 25 and all(i % 4 >= 2 for i in drawn)


def test_nothing_left_is_refused(hundred, tmp_path):
    assert refusal({"path": hundred, "types": ["none"], "repeat": 2}).endswith(
        "left after filtering by media and types"
    )
    (tmp_path / "n.json").write_text(json.dumps([raw(0)]))
    path = str(tmp_path / "n.json")
    assert refusal({"path": path, "media": ["text"]}) == f"{path}: no record is left after filtering by media"


def test_records_that_cannot_be_told_apart_pass_every_filter(tmp_path):
    lines = [json.dumps(raw(1)), "oops", json.dumps(raw(2))]
    (tmp_path / "n.jsonl").write_text("\n".join(lines))
    mixture = read_mixture([MixtureEntry(path=str(tmp_path / "n.jsonl"), media=("video",), types=("color",))], 0)
    assert list(mixture.kinds) == ["video", "bad"]
    with pytest.raises(BadSampleError, match="record 1: not JSON"):
        mixture[1]
    assert [record.id for record in usable(mixture)] == ["1"]


# --- mixtures ----------------------------------------------------------------------------------------------------


def test_kinds_and_their_counts_are_those_of_the_records(hundred):
    entries = [
        MixtureEntry(path=hundred, fraction=0.37, repeat=2),
        MixtureEntry(path=hundred, media=("video",)),
        MixtureEntry(path=hundred, media=("text",), types=("color",)),
    ]
    mixture = read_mixture(entries, 3)
    found = [record.kind for record in mixture]
    assert list(mixture.kinds) == found
    assert {kind: count for kind, count in mixture.kind_counts.items() if count} == Counter(found)
    assert mixture.types == [tuple(t.type for t in record.turns if t.type) for record in mixture]


def test_a_mixture_pickles_and_counts_from_both_ends(hundred):
    mixture = read_mixture([MixtureEntry(path=hundred, repeat=3), MixtureEntry(path=hundred)], 0)
    again = pickle.loads(pickle.dumps(mixture))
    assert len(again) == 400 and list(again) == list(mixture)
    assert again[-1] == mixture[399] and again[299].id == again[99].id == "99"
    for index in (400, -401):
        with pytest.raises(IndexError):
            again[index]


def test_usable_takes_some_from_all_over(hundred):
    mixture = read_mixture([MixtureEntry(path=hundred)], 0)
    assert [int(record.id) for record in usable(mixture, 4)] == [0, 33, 66, 99]
    assert [int(record.id) for record in usable(mixture, 1000)] == list(range(100))


def test_the_digest_is_of_content_and_choice_not_of_the_place(hundred, tmp_path):
    def digest(path, seed=0, **options):
        return read_mixture([MixtureEntry(path=str(path), **options)], seed).digest()

    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "copy.json"
    copy.write_text((tmp_path / "hundred.json").read_text())
    assert digest(hundred) == digest(copy) == digest(copy, media_root="/media")
    copy.write_text(copy.read_text().replace('"q"', '"r"', 1))
    found = {digest(hundred), digest(copy), digest(hundred, repeat=2), digest(hundred, fraction=0.5),
             digest(hundred, 1, fraction=0.5), digest(hundred, media=["text"])}  # fmt: skip
    assert len(found) == 6


# --- weights -----------------------------------------------------------------------------------------------------


def test_weights_are_the_ratio_in_which_entries_come(write):
    entries = [
        {"path": write("few.json", 0, 10), "weight": 3},
        {"path": write("many.json", 10, 110), "weight": 1},
        {"path": write("some.json", 110, 130), "weight": 0.5},
    ]
    found = ids(entries)
    few, many, some = (Counter(i for i in found if i in part) for part in (range(10), range(10, 110), range(110, 130)))
    assert few == dict.fromkeys(range(10), 30)
    assert many == dict.fromkeys(range(10, 110), 1)
    assert some.total() == 50 and len(some) == 20 and set(some.values()) == {2, 3}
    assert found == ids(entries)
    again = Counter(ids(entries, seed=1))
    assert {i for i in some if again[i] == 3} != {i for i in some if some[i] == 3}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 20), min_size=4, max_size=4),
    seed=st.integers(0, 5),
)
def test_with_weights_every_record_comes_and_none_comes_much_more_often(tmp_path_factory, sizes, weights, seed):
    folder = tmp_path_factory.mktemp("weights")
    entries = []
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=False)):
        (folder / f"{number}.json").write_text(json.dumps([raw(1000 * number + i) for i in range(size)]))
        entries.append({"path": str(folder / f"{number}.json"), "weight": weight})
    found = Counter(ids(entries, seed))
    counts = [[found[1000 * number + i] for i in range(size)] for number, size in enumerate(sizes)]
    assert all(min(one) >= 1 and max(one) - min(one) <= 1 for one in counts)
    once = max(size / weight for size, weight in zip(sizes, weights, strict=False))
    for one, weight in zip(counts, weights, strict=False):
        assert abs(sum(one) - once * weight) <= 0.5 + 1e-6
    assert any(set(one) == {1} for one in counts)


def test_weights_are_given_to_all_or_none(hundred, write):
    stage = {"name": "s", "steps": 1, "batch_size": 1, "frames": 1, "length": 8, "trainable": {"**": 1.0}}
    some = [{"path": "a.json", "weight": 1}, {"path": "b.json"}]
    with pytest.raises(InputError, match=r"config\.data: weight: give all entries one, or none; b\.json has none"):
        build(StageConfig, {**stage, "data": some})
    with pytest.raises(InputError, match="weight already says how often; drop repeat"):
        build(MixtureEntry, {"path": "a.json", "weight": 1, "repeat": 2})
    left = refusal({"path": hundred, "weight": 1}, {"path": hundred, "weight": 1, "types": ["none"]})
    assert left == f"{hundred}: no record is left for its weight"
    huge = refusal({"path": hundred, "weight": 1e-9}, {"path": write("one.json", 0, 1), "weight": 1e3})
    assert "an epoch of 100000000000100 records" in huge


# --- several files -----------------------------------------------------------------------------------------------


def test_braces_and_stars_name_several_files(write, tmp_path):
    for number in range(3):
        write(f"part_{number}.json", 10 * number, 10 * number + 10)
    assert ids([{"path": f"{tmp_path}/part_{{2,0}}.json"}]) == [*range(20, 30), *range(10)]
    assert ids([{"path": f"{tmp_path}/p*_*.json"}]) == list(range(30))
    assert ids([{"path": f"{tmp_path}/{{part_1,p*_0}}.json", "media": ["image"]}]) == [12, 16, 0, 4, 8]
    source = open_source(MixtureEntry(path=f"{tmp_path}/part_*.json"))
    assert isinstance(source, Mixture) and source[15].source == f"{tmp_path}/part_1.json: record 5"
    assert refusal({"path": f"{tmp_path}/q*.json"}) == f"{tmp_path}/q*.json: no file has such a name"
    assert "part_7.json: no such annotation file" in refusal({"path": f"{tmp_path}/part_{{1,7}}.json"})


def test_a_folder_that_holds_nothing_known_is_refused(tmp_path):
    assert "a folder with neither manifest.json (shards) nor dataset_info.json (TFDS)" in refusal(
        {"path": str(tmp_path)}
    )
    (tmp_path / "clips.json").write_text("[]")
    assert "name a file in it: clips.json" in refusal({"path": str(tmp_path)})


@pytest.mark.parametrize(
    "name, said", [("a.csv", "make JSON Lines of it"), ("A.MP4", "a clip or an image, not a list of samples")]
)
def test_what_is_no_list_of_samples_is_refused(tmp_path, name, said):
    assert said in refusal({"path": f"{tmp_path}/{name}"})


# --- mixture files -----------------------------------------------------------------------------------------------


@pytest.fixture
def mixture_file(tmp_path):
    def write(*datasets, name="mixture.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump({"datasets": list(datasets)}))
        return str(tmp_path / name)

    return write


def dataset(path, strategy=None):
    return {"json_path": path, **({"sampling_strategy": strategy} if strategy else {})}


def test_a_mixture_file(hundred, write, mixture_file):
    other = write("other.json", 200, 210)
    path = mixture_file(
        dataset(hundred, "first:3"), dataset("other.json"), dataset(hundred, "end:2%"), dataset(other, "random:4")
    )
    found = ids([{"path": path}])
    assert found[:15] == [0, 1, 2, *range(200, 210), 98, 99] and len(found) == 19
    assert found[15:] == sorted(set(found[15:])) and set(found[15:]) <= set(range(200, 210))
    assert found == ids([{"path": path}]) != ids([{"path": path}], seed=5)
    assert ids([{"path": path, "media": ["video"]}])[:4] == [1, 201, 205, 209]


def test_two_datasets_of_a_mixture_file_are_drawn_apart(hundred, mixture_file):
    path = mixture_file(dataset(hundred, "random:20%"), dataset(hundred, "random:20%"))
    found = ids([{"path": path}])
    assert len(found) == 40 and found[:20] != found[20:]


def test_media_of_a_mixture_file(write, mixture_file, tmp_path):
    (tmp_path / "deep").mkdir()
    path = mixture_file(dataset(write("deep/n.json", 1, 2)))
    (own,) = open_source(MixtureEntry(path=path))
    (given_,) = open_source(MixtureEntry(path=path, media_root="gs://bucket/media"))
    assert own.media == (("video", f"{tmp_path}/deep/v.mp4"),)
    assert given_.media == (("video", "gs://bucket/media/v.mp4"),)


def test_a_mixture_file_of_patterns_and_mixture_files(write, mixture_file):
    for number in (1, 2):
        write(f"a{number}.json", 2 * number, 2 * number + 2)
    inner = mixture_file(dataset("a{1,2}.json"), name="inner.yml")
    assert ids([{"path": mixture_file(dataset("a*.json", "end:3"), dataset(inner, "first:1"))}]) == [3, 4, 5, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datasets: [", "not YAML"),
        ("- json_path: a", "expected a list under 'datasets'"),
        ("datasets: []", "expected a list under 'datasets'"),
        ("datasets: [a.json]", "datasets.0: expected an object with 'json_path', found 'a.json'"),
        ("datasets: [{json_path: 3}]", "datasets.0: expected an object with 'json_path'"),
        ("datasets: [{json_path: a.json, ratio: 2}]", "datasets.0: unknown key 'ratio'"),
        ("datasets: [{json_path: absent.json}]", "absent.json: no such annotation file"),
    ],
)
def test_a_mixture_file_that_is_none_is_refused(tmp_path, text, expected):
    (tmp_path / "m.yaml").write_text(text)
    assert expected in refusal({"path": str(tmp_path / "m.yaml")})


@settings(max_examples=200, deadline=None)
@given(how=st.sampled_from(["first", "end", "random"]), count=st.integers(0, 300), total=st.integers(0, 200),
       seed=st.integers(0, 3), percent=st.booleans(), tenths=st.booleans())  # fmt: skip
def test_sampling_strategies(how, count, total, seed, percent, tenths):
    number = f"{count}{'.5' if tenths and percent else ''}{'%' if percent else ''}"
    chosen = sample(f"{how}:{number}", total, (seed, 1), "m.yaml")
    # Upstream rounds a share up; in tenths of a percent, so that nothing depends on floating point.
    wanted = -(-(10 * count + 5 * tenths) * total // 1000) if percent else count
    assert len(chosen) == min(wanted, total)
    assert np.array_equal(chosen, np.unique(chosen)) and set(chosen) <= set(range(total))
    if how == "first":
        assert list(chosen) == list(range(len(chosen)))
    if how == "end":
        assert list(chosen) == list(range(total - len(chosen), total))
    if how == "random":
        assert np.array_equal(chosen, sample(f"{how}:{number}", total, (seed, 1), "m.yaml"))


@pytest.mark.parametrize("strategy", ["some", "first", "end", "first:", "first:-1", "first:x", "all:3", "end:1.5"])
def test_other_strategies_are_refused(strategy):
    with pytest.raises(InputError, match=re.escape("m.yaml: sampling_strategy must be all, first:N")) as caught:
        sample(strategy, 10, (0,), "m.yaml")
    assert repr(strategy) in str(caught.value)
    assert list(sample("all", 3, (0,), "m")) == list(sample("random", 3, (0,), "m")) == [0, 1, 2]
