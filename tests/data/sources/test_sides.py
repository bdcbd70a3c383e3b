"""Clips that are set aside: by a hash of their names, the same ones whatever else there is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.sources import sides
from vlvm_jax.data.sources.mixture import NothingLeft, read_mixture

NAMES = st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), max_size=120)


def aside(share: float, least: int = 0, **settings) -> MixtureEntry:
    return MixtureEntry(path="clips.json", held_out=share, held_out_clips=least, **settings)


@given(NAMES, NAMES, st.floats(0.01, 0.5))
def test_a_clip_stays_on_its_side(there, added, share):
    entry = aside(share)
    before, after = sides.set_aside(there, entry), sides.set_aside(there | added, entry)
    assert before == after & there


@given(NAMES, st.floats(0.01, 0.5), st.integers(1, 8))
def test_never_fewer_than_asked_for_and_never_most_of_them(there, share, least):
    taken = sides.set_aside(there, aside(share, least))
    by_share = {name for name in there if sides.place(name) < share}
    if len(by_share) >= least:
        assert taken == by_share
    elif len(there) < 5 * least:
        assert not taken
    else:
        assert len(taken) == least and by_share <= taken


def test_the_share_is_about_what_was_asked_for():
    names = {f"{number}.mp4" for number in range(20000)}
    assert abs(len(sides.set_aside(names, aside(0.05))) / 20000 - 0.05) < 0.005


@pytest.fixture
def listed(tmp_path):
    """Two questions about each of 60 clips, in two folders, one about a list of frames, one of text, one bad record."""

    def record(video, question):
        return {"video": video, "question": question, "answer": "yes"}

    records = [record(f"{'ab'[n % 2]}/{n}.mp4", f"{q}?") for n in range(60) for q in ("one", "two")]
    records += [
        record([f"frames/{n}.png" for n in range(3)], "three?"),
        {"question": "four?", "answer": "no"},
        {"x": 1},
    ]
    file = tmp_path / "clips.json"
    file.write_text(json.dumps(records))
    return str(file)


def clips(mixture) -> list[str]:
    found = []
    for number in range(len(mixture)):
        try:
            record = mixture[number]
        except Exception:  # the bad one
            found.append("bad")
            continue
        found.append(record.media[0][1] if record.media else "text")
    return found


def test_both_sides_are_all_records_and_share_no_clip(listed):
    settings = {"path": listed, "held_out": 0.2, "held_out_clips": 4}
    training = clips(read_mixture([MixtureEntry(**settings)], 0))
    held_out = clips(read_mixture([MixtureEntry(**settings, side="held_out")], 0))
    assert len(training) + len(held_out) == 123 and not set(training) & set(held_out)
    assert len(set(held_out)) >= 4 and "bad" in training


def test_a_moved_folder_changes_nothing(listed, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "clips.json"
    moved.write_bytes((tmp_path / "clips.json").read_bytes())
    names = [
        [
            path.rpartition("/")[2]
            for path in clips(read_mixture([MixtureEntry(path=file, held_out=0.2, side="held_out")], 0))
        ]
        for file in (listed, str(moved))
    ]
    assert names[0] == names[1]


def test_too_few_clips_are_all_for_training(tmp_path):
    file = tmp_path / "few.json"
    file.write_text(json.dumps([{"video": f"{n}.mp4", "question": "?", "answer": "a"} for n in range(19)]))
    settings = {"path": str(file), "held_out": 0.05, "held_out_clips": 4}
    assert len(read_mixture([MixtureEntry(**settings)], 0)) == 19
    with pytest.raises(NothingLeft):
        read_mixture([MixtureEntry(**settings, side="held_out")], 0)


def test_a_side_without_a_share_is_refused():
    with pytest.raises(ValueError, match="held_out: give the share"):
        MixtureEntry(path="x", side="held_out")
