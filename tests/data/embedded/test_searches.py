"""Searches: answers that are true of the pixels, of which a few frames or a corner must be seen, and the words read."""

import collections
import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest
from scipy import ndimage
from tokenizers import Tokenizer

from vlvm_jax.config import MixtureEntry, build
from vlvm_jax.data.embedded import scenes, searches, shapes
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.embedded.files import HELD_OUT_SHARE
from vlvm_jax.data.embedded.shapes import ShapesOptions
from vlvm_jax.data.media.frame_rules import uniform_indices
from vlvm_jax.data.media.frames import open_image, read_clip
from vlvm_jax.data.prompt.guidance import ScoringTokenizer
from vlvm_jax.data.sources import mixture
from vlvm_jax.data.sources.annotations import read_annotations
from vlvm_jax.errors import InputError

SIZE, FRAMES, SHOWN, CELLS = 96, 32, 2, 6
OPTIONS = ShapesOptions(
    train_arrangements=1, train_clips=1, heldout_arrangements=1, heldout_clips=1, size=32, num_frames=4,
    train_searches=18, heldout_searches=16, train_singles=80, heldout_singles=16, train_sheets=40, search_size=48,
    search_frames=12, sheet_images=4,
)  # fmt: skip


def drawn(kind, count, *, held_out=False, seed=0):
    rng = np.random.default_rng([seed, held_out])
    for number in range(count):
        trait, answer = shapes._turn(number)
        yield searches.draw_clip(
            rng, kind, trait, answer, frames=FRAMES, shown=SHOWN, cells=CELLS, held_out=held_out
        )  # fmt: skip


def seen(frame):
    """(shape, colour) of the things in a frame, with the boxes of their pixels; knows only pixels."""
    found = {}
    for color, value in scenes.COLORS.items():
        mask = np.abs(frame.astype(int) - value).max(axis=-1) <= 4
        for box in parts(mask):
            top, bottom, left, right = box
            inside = mask[top:bottom, left:right]
            found[named(inside), color] = box
    return found


def parts(mask):
    """Boxes of the things of one colour, which stand in cells of their own, apart from each other."""
    labels, _ = ndimage.label(mask)
    boxes = [box for number, box in enumerate(ndimage.find_objects(labels), 1) if (labels[box] == number).sum() > 20]
    return [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in boxes]


def named(box):
    if box.mean() > 0.95:
        return "square"
    if box.mean() > 0.66:
        return "circle"
    low = np.argwhere(box).mean(axis=0)[0] / len(box)
    return "triangle" if low > 0.57 else "cross"


def answer(question, things):
    """What the things seen say; None where the words fit none, or several."""
    mark, trait, _ = question.split()
    fit = {(color if trait == "color" else shape) for shape, color in things if mark in (shape, color)}
    return fit.pop() if len(fit) == 1 else None


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", searches.KINDS)
def test_every_answer_is_true_of_the_pixels(kind, held_out):
    for search in drawn(kind, 24, held_out=held_out):
        frames = searches.render(search, SIZE)
        assert frames.shape == (FRAMES, SIZE, SIZE, 3) and frames.dtype == np.uint8
        things = [thing for frame in {frame.tobytes(): frame for frame in frames}.values() for thing in seen(frame)]
        assert set(things) == {(item.shape, item.color) for item in search.items}
        assert answer(search.question.question, things) == search.question.answer
        assert search.question.type == f"{kind}_{search.trait}"


def test_a_rare_thing_shows_alone_in_a_few_frames_in_a_row():
    for search in drawn("rare", 24):
        frames = searches.render(search, SIZE)
        shown = [list(seen(frame)) for frame in frames]
        assert all(len(things) <= 1 for things in shown)
        assert sum(map(bool, shown)) == searches.THINGS * SHOWN
        for item in search.items:
            where = [i for i, things in enumerate(shown) if things == [(item.shape, item.color)]]
            assert set(range(item.start, item.stop)) <= set(where) and item.stop - item.start == SHOWN
        starts = sorted(item.start for item in search.items)
        assert all(later - start > SHOWN for start, later in itertools.pairwise(starts))
        empty = [frame for frame, things in zip(frames, shown, strict=True) if not things]
        assert all((frame == empty[0]).all() for frame in empty)


def test_a_rare_thing_may_come_at_any_time_and_is_missed_by_few_frames():
    starts = np.array([search.items[0].start for search in drawn("rare", 600)])
    assert starts.min() == 0 and starts.max() == FRAMES - SHOWN
    assert np.abs(np.histogram(starts, 3, (0, FRAMES))[0] / 600 - 1 / 3).max() < 0.08
    hit = [any(start <= i < start + SHOWN for i in uniform_indices(FRAMES, 4)) for start in starts]
    assert 0.2 < np.mean(hit) < 0.32  # four frames of 32 see a pair of frames one time in four


def test_a_small_thing_fills_no_more_than_its_cell_in_a_corner():
    cell = SIZE // CELLS
    for search in drawn("small", 24):
        frames = searches.render(search, SIZE)
        assert (frames == frames[0]).all()
        bare = searches.render(dataclasses.replace(search, items=()), SIZE)[0]
        changed = (frames[0] != bare).any(axis=-1).reshape(CELLS, cell, CELLS, cell).any(axis=(1, 3))
        assert {tuple(map(int, place)) for place in np.argwhere(changed)} == {item.cell for item in search.items}
        corners = {(row // (CELLS // 2), column // (CELLS // 2)) for row, column in (i.cell for i in search.items)}
        assert len(corners) == searches.THINGS
        assert all(edge in (0, 1, 4, 5) for item in search.items for edge in item.cell)


@pytest.mark.parametrize("kind", searches.KINDS)
def test_nothing_but_the_question_tells_which_thing_is_meant(kind):
    """The answer to another clip's question, of the same kind, is right by chance; so is always saying one word."""
    many = list(drawn(kind, 1600))
    by_words = collections.defaultdict(collections.Counter)
    for search in many:
        by_words[search.question.question][search.question.answer] += 1
    assert len(by_words) == 8
    best = sum(counts.most_common(1)[0][1] for counts in by_words.values()) / len(many)
    assert best < 0.33
    rng = np.random.default_rng(0)
    right, possible = 0, 0
    for trait in searches.TRAITS:
        same = [search for search in many if search.trait == trait]
        for search, other in zip(same, (same[i] for i in rng.permutation(len(same))), strict=True):
            said = answer(other.question.question, [(item.shape, item.color) for item in search.items])
            said = said or rng.choice(searches.ANSWERS[trait])  # it asks for what does not show
            right += said == search.question.answer
            possible += 1
    assert abs(right / possible - 0.4375) < 0.04  # a quarter ask for the same thing, of the others a quarter agree
    positions = collections.Counter(
        sorted(range(searches.THINGS), key=lambda i, s=search: (s.items[i].start, s.items[i].cell)).index(0)
        for search in many
    )
    assert max(positions.values()) / len(many) < 0.4  # the asked one is not the first, nor the last


@pytest.mark.parametrize("kind", searches.KINDS)
def test_a_share_of_the_combinations_is_held_out(kind):
    train = {search.combination for search in drawn(kind, 400)}
    held = {search.combination for search in drawn(kind, 400, held_out=True)}
    assert not train & held
    rng = np.random.default_rng(0)
    drawn_freely = [
        searches._draw_clip(rng, kind, *shapes._turn(number), FRAMES, SHOWN, CELLS) for number in range(1500)
    ]
    assert abs(np.mean([searches.is_held_out(search) for search in drawn_freely]) - HELD_OUT_SHARE) < 0.04


def test_singles_show_one_thing_of_either_size_anywhere_or_nothing():
    rng = np.random.default_rng(0)
    made = [
        searches.draw_single(rng, *shapes._turn(number), cells=CELLS, held_out=number % 2 == 0)
        for number in range(1000)
    ]
    bare = [single for single in made if not single.items]
    assert 0.08 < len(bare) / len(made) < 0.18
    assert {single.items[0].cells for single in made if single.items} == {searches.LARGE, CELLS}
    small = {single.items[0].cell for single in made if single.items and single.items[0].cells == CELLS}
    assert len(small) == CELLS**2
    for single in made[:60]:
        things = list(seen(searches.render(single, SIZE)[0]))
        assert things == [(item.shape, item.color) for item in single.items]
        words = [f"{color} {shape}" for shape, color in things]
        assert single.caption == (words[0] if words else "empty")
        for text in searches.names(single)[1:]:
            assert answer(text, things) in things[0]


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shapes.ensure(OPTIONS, tmp_path_factory.mktemp("data"))


def annotations(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_clips_read_back(made):
    for name, count in (("train_searches", 18), ("heldout_searches", 16)):
        records = read_annotations(str(made / f"{name}.json"), str(made))
        assert len(records) == count
        types = collections.Counter(record.turns[0].type for record in records)
        assert set(types) == set(searches.TYPES) and max(types.values()) - min(types.values()) <= 1
        for record in records:
            assert len(record.turns) == 1
            ((kind, path),) = record.media
            frames = read_clip(path, 99, 48)
            assert kind == "video" and len(frames) == 12
            things = []
            for frame in frames:  # what coding leaves of the colours is not exact
                nearest = [
                    c for c, v in scenes.COLORS.items() if (np.abs(frame.astype(int) - v).max(-1) < 50).sum() > 8
                ]
                things += nearest
            combination = record.turns[0].answer if record.turns[0].type.endswith("color") else None
            assert combination is None or combination in things
    held = {record["combination"] for record in annotations(made, "heldout_searches")}
    assert not held & {record["combination"] for record in annotations(made, "train_searches")}


def test_answers_are_balanced_in_each_file(made):
    for name in ("heldout_searches", "heldout_singles"):
        said = collections.Counter(
            record["conversations"][1]["value"] for record in annotations(made, name) if record["types"] != ["empty"]
        )
        assert set(said) <= {*scenes.COLORS, *scenes.SHAPES}
        assert max(said.values()) <= 2


def test_types_choose_records(made):
    entry = build(MixtureEntry, {"path": str(made / "heldout_searches.json"), "types": ["rare_color", "rare_shape"]})
    records = mixture.read_mixture((entry,), 0)
    assert {record.turns[0].type for record in records} == {"rare_color", "rare_shape"} and len(records) == 8


def test_sheets_ask_for_one_of_their_images(made):
    singles = {record["image"]: record for record in annotations(made, "train_singles")}
    counts = collections.Counter()
    records = read_annotations(str(made / "train_sheets.json"), str(made))
    for raw, record in zip(annotations(made, "train_sheets"), records, strict=True):
        shown = [singles[name] for name in raw["image"]]
        things = [tuple(single["combination"].split("/")[2:4]) for single in shown if "empty" not in single["types"]]
        question = record.turns[0].question.replace("<image>", "").strip()
        mark = question.split()[0]
        assert sum(mark in thing for thing in things) == 1  # no other could be meant
        assert answer(question, things) == record.turns[0].answer
        assert record.turns[0].type in ("sheet_color", "sheet_shape")
        assert len(set(raw["image"])) == len(raw["image"]) == len(record.media)
        counts[len(record.media)] += 1
    assert set(counts) == {2, 3, 4}
    captions = annotations(made, "train_sheets_captions")
    for record in captions:
        expected = " ".join(
            singles[name]["combination"].split("/")[3] + " " + singles[name]["combination"].split("/")[2]
            if "empty" not in singles[name]["types"]
            else "empty"
            for name in record["image"]
        )
        assert record["conversations"][1]["value"] == expected


def test_pairs_are_an_image_and_a_text_that_fits_it(made):
    texts = collections.Counter()
    for record, single in zip(
        annotations(made, "train_singles_pairs"), annotations(made, "train_singles"), strict=True
    ):
        said = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        assert said[0] == said[1] and record["image"] == single["image"] and record["type"] == "pair"
        if single["types"] == ["empty"]:
            assert said[0] == "empty"
            continue
        _, _, shape, color, _ = single["combination"].split("/")
        assert said[0] in (f"{color} {shape}", f"{shape} color ?", f"{color} shape ?")
        texts[len(said[0].split()), said[0].split()[1] == "color"] += 1
    assert len(texts) == 3 and min(texts.values()) > 10


def test_every_text_is_made_of_known_words(made):
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert tokenizer.to_str() == embedded_words.tokenizer().to_str()
    unknown = tokenizer.token_to_id("<unk>")
    for file in made.glob("*_s*.json"):
        for record in json.loads(file.read_text()):
            for turn in record["conversations"]:
                assert unknown not in tokenizer.encode(turn["value"].replace("<image>\n", "")).ids


def test_the_tokenizer_for_a_text_tower(made):
    ids, cut = ScoringTokenizer(str(made / "prompt_tokenizer.json"), 8)("circle color ?")
    words = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert [words.id_to_token(i) for i in ids] == ["<s>", "circle", "color", "?", "</s>", "<pad>", "<pad>", "<pad>"]
    assert not cut


def test_searches_leave_the_rest_of_the_data_as_it_is(made, tmp_path):
    counts = {
        name: 0 for name in ShapesOptions.model_fields if name.split("_")[-1] in ("searches", "singles", "sheets")
    }
    bare = shapes.ensure(OPTIONS.model_copy(update=counts), tmp_path)
    names = {str(path.relative_to(bare)) for path in bare.rglob("*") if path.is_file()}
    assert names < {str(path.relative_to(made)) for path in made.rglob("*")}
    assert not any("search" in name or "single" in name for name in names)
    for name in names - {"dataset.json"}:
        assert (bare / name).read_bytes() == (made / name).read_bytes()
    assert "search_size" not in json.loads((bare / "dataset.json").read_text())["options"]
    assert ShapesOptions(**json.loads((made / "dataset.json").read_text())["options"]) == OPTIONS


def test_it_is_the_same_again(made, tmp_path):
    again = shapes.ensure(OPTIONS, tmp_path, workers=2)
    for path in made.rglob("*.json"):
        assert (again / path.relative_to(made)).read_bytes() == path.read_bytes()
    for path in sorted(made.rglob("*singles/*.png")):
        assert (open_image(str(path)).tobytes()) == open_image(str(again / path.relative_to(made))).tobytes()


def test_the_hash_follows_searches_where_there_are_some(tmp_path, monkeypatch):
    plain, some = ShapesOptions(), ShapesOptions(train_searches=1)
    assert plain.hash == ShapesOptions(search_size=48, search_frames=40, sheet_images=3).hash != some.hash
    for name in ("search_size", "search_frames", "search_shown", "search_cells", "sheet_images"):
        assert ShapesOptions(train_searches=1, **{name: getattr(some, name) + 2}).hash != some.hash
    edited = tmp_path / "edited.py"
    edited.write_text(pathlib.Path(searches.__file__).read_text() + "\n")
    before = plain.hash, some.hash
    monkeypatch.setattr(searches, "__file__", str(edited))
    assert ShapesOptions().hash == before[0] and ShapesOptions(train_searches=1).hash != before[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search_size": 97}, r"data: search_size 97 is odd; H.264 needs an even one"),
        (
            {"search_frames": 7},
            r"search_frames 7: 3 things, each shown in search_shown 2 frames and apart by one, take 8",
        ),
        ({"train_sheets": 1, "train_singles": 60}, r"there are 60; sheets of up to 8 images need 64"),
        ({"search_cells": 3}, r"data\.search_cells: .*greater than or equal to 4"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        build(ShapesOptions, options, "data")


def test_the_fewest_frames_there_can_be():
    rng = np.random.default_rng(0)
    search = searches.draw_clip(rng, "rare", "color", "red", frames=8, shown=2, cells=6, held_out=False)
    assert sorted(item.start for item in search.items) == [0, 3, 6]
