"""Images of things: every answer is read off the pixels' own description, none is given away, none is likelier."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlvm_jax.data.embedded import arrangements, scenes, shapes
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.embedded.arrangements import NUMBERS, SIZES, Arrangement, Thing
from vlvm_jax.data.embedded.files import in_held_out_share
from vlvm_jax.data.embedded.scenes import COLORS, COLUMNS, ROWS, SHAPES

SIDE = 64
MANY = 3000
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def seen_in(image: np.ndarray) -> dict[tuple[int, int], tuple[str, str]]:
    """Size and colour by cell: of the pixels near one of the colours, those of each cell."""
    found = {}
    for row, column in itertools.product(range(3), repeat=2):
        top, left = round(row * SIDE / 3), round(column * SIDE / 3)
        cell = image[top : top + SIDE // 3, left : left + SIDE // 3].reshape(-1, 3).astype(int)
        counts = {name: int((np.abs(cell - rgb).max(axis=1) < 30).sum()) for name, rgb in COLORS.items()}
        color, pixels = max(counts.items(), key=lambda item: item[1])
        if pixels > 30:  # a large thing reaches into the next cell a little
            found[row, column] = ("large" if pixels > 95 else "small", color)
    return found


@given(rng=rngs, held_out=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_image_shows_what_its_caption_says(rng, held_out):
    drawn = arrangements.draw_arrangement(rng, held_out=held_out)
    words = drawn.caption.split()
    cells = {divmod(number, 3): tuple(words[3 * number : 3 * number + 2]) for number in range(9)}
    said = {cell: what for cell, what in cells.items() if what != ("empty", "empty")}
    seen = seen_in(arrangements.render(drawn, SIDE))
    assert seen.keys() == said.keys() and len(words) == 27
    assert {cell: color for cell, (_, color) in seen.items()} == {cell: color for cell, (_, color) in said.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_large_things_are_larger(shape):
    pixels = {}
    for size in SIZES:
        thing = Thing(size, "yellow", shape, (1, 1), (0.0, 0.0))
        image = arrangements.render(Arrangement((thing,), 3), SIDE).astype(int)
        pixels[size] = (np.abs(image - COLORS["yellow"]).max(axis=-1) < 30).sum()
    assert pixels["large"] > 2.2 * pixels["small"]


def answer(things: tuple[Thing, ...], question: str) -> str:
    """What a question asks, worked out again from the things."""
    words = question.removesuffix(" ?").split()
    if words == ["how", "many"]:
        return NUMBERS[len(things)]
    if words[:2] == ["how", "many"]:
        return NUMBERS[sum(words[2] in (thing.color, thing.shape) for thing in things)]
    if words[0] in ROWS and words[1] in COLUMNS:
        cell = ROWS.index(words[0]), COLUMNS.index(words[1])
        return next((getattr(thing, words[2]) for thing in things if thing.cell == cell), "empty")
    if "above" in words or "of" in words or "than" in words:
        one, two = (named(things, name) for name in (words[:2], words[-2:]))
        true = {
            "above": one.cell[0] < two.cell[0],
            "left": one.cell[1] < two.cell[1],
            "larger": (one.size, two.size) == ("large", "small"),
        }[words[2]]
        return "yes" if true else "no"
    *name, trait = words
    thing = named(things, name)
    return {"row": ROWS[thing.cell[0]], "column": COLUMNS[thing.cell[1]]}.get(trait) or getattr(thing, trait)


def named(things, words: list[str]) -> Thing:
    """The one thing that words name; an error if they name none or several."""
    if words[0] in ("top", "bottom", "left", "right"):
        alike, axis = matching(things, words[1:]), words[0] in ("left", "right")
        places = sorted({thing.cell[axis] for thing in alike})
        place = places[0 if words[0] in ("top", "left") else -1]
        assert len(places) > 1
        alike = [thing for thing in alike if thing.cell[axis] == place]
    else:
        alike = matching(things, words)
    (thing,) = alike
    return thing


def matching(things, words: list[str]) -> list[Thing]:
    return [thing for thing in things if set(words) <= {thing.size, thing.color, thing.shape}]


@given(rng=rngs, held_out=st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_question_names_one_thing_and_has_its_answer(rng, held_out):
    drawn = arrangements.draw_arrangement(rng, held_out=held_out)
    assert drawn.held_out is held_out
    assert len({thing.cell for thing in drawn.things}) == len(drawn.things) <= arrangements.MOST
    asked = arrangements.questions(drawn, rng, 6)
    types = [question.type for question in asked]
    assert 1 <= len(asked) <= 6 and len(set(types)) == len(types) and set(types) <= set(arrangements.TYPES)
    assert not {"count", "count_of"} <= set(types)
    for question in asked:
        assert question.answer == answer(drawn.things, question.question)
        assert set(f"{question.question} {question.answer} {drawn.caption}".split()) <= set(embedded_words.VOCABULARY)


@given(rng=rngs, rounds=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_more_rounds_ask_more_and_nothing_twice(rng, rounds):
    drawn = arrangements.draw_arrangement(rng, held_out=False)
    asked = arrangements.questions(drawn, rng, 6 * rounds, rounds=rounds)
    assert 1 <= len(asked) <= 6 * rounds and len({question.question for question in asked}) == len(asked)
    assert not {"count", "count_of"} <= {question.type for question in asked}
    assert all(question.answer == answer(drawn.things, question.question) for question in asked)


@given(rng=rngs)
@settings(max_examples=60, deadline=None)
def test_a_listing_names_each_thing_and_its_place(rng):
    drawn = arrangements.draw_arrangement(rng, held_out=False)
    words = arrangements.listing(drawn, rng).split()
    assert set(words) <= set(embedded_words.VOCABULARY) and len(words) == 5 * len(drawn.things)
    listed = [words[start : start + 5] for start in range(0, len(words), 5)]
    there = {(t.size, t.color, t.shape, ROWS[t.cell[0]], COLUMNS[t.cell[1]]) for t in drawn.things}
    assert {tuple(item if item[0] in SIZES else item[2:] + item[:2]) for item in listed} == there


@given(rng=rngs, trait=st.sampled_from(["size", "color", "shape"]))
@settings(max_examples=60, deadline=None)
def test_a_grid_tells_what_covers_each_square(rng, trait):
    """At least one square for each thing, and every square that shows much of its disc."""
    drawn = arrangements.draw_arrangement(rng, held_out=False)
    told = np.array(arrangements.grid(drawn, trait, 8).split()).reshape(8, 8)
    assert {str(word) for word in told.flat} - {"empty"} == {getattr(thing, trait) for thing in drawn.things}
    assert (told == "empty").any()
    discs = dataclasses.replace(
        drawn, things=tuple(dataclasses.replace(thing, shape="circle") for thing in drawn.things)
    )
    image = arrangements.render(discs, SIDE).astype(int)
    covered = np.zeros((8, 8), bool)
    for name, rgb in COLORS.items():
        pixels = (np.abs(image - rgb).max(axis=-1) < 30).reshape(8, 8, 8, 8).sum(axis=(1, 3))
        covered |= pixels > 48
        assert trait != "color" or (told[pixels > 48] == name).all()
    assert (told[covered] != "empty").all()


@pytest.mark.parametrize("held_out", [False, True])
def test_no_answer_is_likelier_than_another(held_out):
    """Of each type, and of each of its questions that is often asked."""
    rng = np.random.default_rng(1)
    answers = collections.defaultdict(collections.Counter)
    for _ in range(MANY):
        for q in arrangements.questions(arrangements.draw_arrangement(rng, held_out=held_out), rng, 6):
            words = q.question.split()
            form = " ".join(w for w in words if w not in (*COLORS, *SHAPES, *SIZES, *ROWS, *COLUMNS) or w == words[-2])
            answers[q.type, form][q.answer] += 1
    assert {kind for kind, _ in answers} == set(arrangements.TYPES)
    for form, counted in answers.items():
        if (total := counted.total()) < 200:
            continue
        share = max(counted.values()) / total
        assert share < 1 / len(counted) + 3.5 * np.sqrt(0.25 / total), (form, counted)


def test_about_a_fifth_is_held_out():
    rng = np.random.default_rng(4)
    drawn = [arrangements.draw_arrangement(rng, held_out=False, most=most) for most in (2, 6) for _ in range(20)]
    others = [dataclasses.replace(a, things=(*a.things[1:], dataclasses.replace(a.things[0], size=size)))
              for a in drawn for size in SIZES]  # fmt: skip
    assert 0 < sum(other.held_out for other in others) < len(others) / 4
    # The order of things and the background do not matter: it is the same to see.
    for one in drawn:
        assert not dataclasses.replace(one, things=one.things[::-1], background=0).held_out


# --- several images ----------------------------------------------------------------------------------------------


def set_answer(images: tuple[Arrangement, ...], question: str) -> str:
    words = question.removesuffix(" ?").split()
    if words[-1] == "each":
        cell = (ROWS.index(words[0]), COLUMNS.index(words[1]))
        there = [[thing.description for thing in image.things if thing.cell == cell] for image in images]
        return " ".join(sorted({"".join(things) or "empty" for things in there}))
    if words[:2] == ["what", "differs"]:
        return which_differs(images, words[-1])
    word = words[-1] if words[0] == "how" else words[0]
    having = sum(any(word in (thing.color, thing.shape) for thing in image.things) for image in images)
    if words[0] == "how":
        return NUMBERS[having]
    return "yes" if having == len(images) else "no"


def which_differs(images: tuple[Arrangement, ...], trait: str) -> str:
    """The one name, of what stays the same, whose thing has another trait in some image."""
    kept = {"color": ("shape",), "shape": ("color",)}.get(trait, ("color", "shape"))
    found = collections.defaultdict(set)
    for image in images:
        shown = collections.defaultdict(set)
        for thing in image.things:
            where = () if trait == "place" else thing.cell
            name = " ".join(getattr(thing, key) for key in kept)
            shown[name, where].add(thing.cell if trait == "place" else getattr(thing, trait))
        for name_and_where, values in shown.items():
            found[name_and_where].add(frozenset(values))
    (name,) = {name for (name, _), values in found.items() if len(values) > 1}
    return name


@given(rng=rngs, kind=st.sampled_from(arrangements.SET_TYPES), held_out=st.booleans(), most=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_the_order_of_a_sets_images_does_not_matter(rng, kind, held_out, most):
    drawn = arrangements.draw_set(rng, kind, held_out=held_out, most=most)
    assert 1 <= len(drawn.questions) <= most and kind in {question.type for question in drawn.questions}
    assert 2 <= len(drawn.images) <= 3
    assert {image.held_out for image in drawn.images} == {held_out}
    for images in itertools.permutations(drawn.images):
        for question in drawn.questions:
            assert set_answer(images, question.question) == question.answer
    said = " ".join(f"{question.question} {question.answer}" for question in drawn.questions)
    assert set(said.split()) <= set(embedded_words.VOCABULARY)


def kind_of_answer(question: scenes.Question) -> str:
    """Of a difference, its trait."""
    if question.type != "differs":
        return question.answer
    words = question.answer.split()
    if len(words) in (1, 3):
        return "nothing"
    if "empty" in words:
        return "count"
    (trait,) = [name for name, a, b in zip(("size", "color", "shape"), words[:3], words[3:], strict=True) if a != b]
    return trait


@pytest.mark.parametrize("kind", arrangements.SET_TYPES)
def test_a_sets_answers_are_equally_frequent_for_each_number_of_images(kind):
    rng = np.random.default_rng(2)
    counted = collections.defaultdict(collections.Counter)
    places = collections.Counter()
    for _ in range(MANY):
        drawn = arrangements.draw_set(rng, kind, held_out=False)
        (question,) = drawn.questions
        answer = kind_of_answer(question)
        asked = question.question if kind == "which_differs" else len(drawn.images)
        counted[asked][answer] += 1
        if kind == "differs" and len(drawn.images) == 3 and answer != "nothing":
            alike = [drawn.images.count(image) for image in drawn.images]
            places[alike.index(1)] += 1
    for counts in (*counted.values(), places):
        mean = counts.total() / max(len(counts), 1)
        assert all(abs(count - mean) < 4 * mean**0.5 for count in counts.values()), counts


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    count = dict.fromkeys(
        ["train_arrangements", "train_sets", "train_signs", "heldout_signs", "train_timeless_texts"], 30
    )
    options = shapes.ShapesOptions(size=SIDE, heldout_sets=40, **count)
    return shapes.ensure(options, tmp_path_factory.mktemp("data"))


def records(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_records_have_their_images(made):
    for record in records(made, "train_arrangements") + records(made, "train_signs"):
        assert np.asarray(Image.open(made / record["image"])).shape == (SIDE, SIDE, 3)
    for record in records(made, "train_sets"):
        assert all((made / name).exists() for name in record["image"])
        assert record["conversations"][0]["value"].count("<image>\n") == len(record["image"])
    kinds = [kind for record in records(made, "heldout_sets") for kind in record["types"]]
    assert collections.Counter(kinds) == dict.fromkeys(arrangements.SET_TYPES, 10)
    assert sum(len(record["types"]) for record in records(made, "train_sets")) > 100
    for part in ("captions", "listings"):
        assert len(records(made, f"train_arrangements_{part}")) == 30


def test_patches_have_a_word_for_each_trait(made):
    for record, caption in zip(
        records(made, "train_arrangements_patches"), records(made, "train_arrangements_captions"), strict=True
    ):
        said = np.array(record["conversations"][0]["value"].removeprefix("<image>\n").split()).reshape(5, 64)
        things = caption["conversations"][1]["value"].split()
        # A caption has size, colour and shape of each cell.
        for words, traits in zip(said[:3], (things[1::3], things[2::3], things[0::3]), strict=True):
            assert set(words) == {*traits, "empty"}
        rows, columns = said[3:].reshape(2, 8, 8)
        assert rows[:, 0].tolist() == ["top"] * 3 + ["middle"] * 2 + ["bottom"] * 3 and (rows == rows[:, :1]).all()
        assert columns[0].tolist() == ["left"] * 3 + ["center"] * 2 + ["right"] * 3 and (columns == columns[0]).all()


def test_words_of_a_page_are_where_its_ink_is(made):
    inked, labelled = [], []
    for record, read in zip(records(made, "train_signs_patches"), records(made, "train_signs"), strict=True):
        words = read["conversations"][1]["value"].split()
        if "empty" in words:  # what patches without a word are called too
            continue
        said = np.array(record["conversations"][0]["value"].removeprefix("<image>\n").split()).reshape(5, 8, 8)[:3]
        assert (said == said[0]).all() and set(said.flat) - {"empty"} == set(words)
        page = np.asarray(Image.open(made / record["image"]).convert("L"))
        inked.append((page.reshape(8, 8, 8, 8).min(axis=(1, 3)) < 128).reshape(4, 2, 8).any(axis=1))
        labelled.append(said[0, ::2] != "empty")
    inked, labelled = np.array(inked), np.array(labelled)
    assert labelled[inked].mean() > 0.98 and inked[labelled].mean() > 0.8


def test_signs_of_two_words_or_more_are_split(made):
    for name, held_out in (("train_signs", False), ("heldout_signs", True)):
        texts = [record["conversations"][1]["value"] for record in records(made, name)]
        assert all(len(text.split()) <= 8 and set(text.split()) <= set(embedded_words.VOCABULARY) for text in texts)
        longer = [text for text in texts if " " in text]
        assert longer and all(in_held_out_share(text) is held_out for text in longer)


def test_texts_ask_nothing_about_what_came_when(made):
    for record in records(made, "train_timeless_texts"):
        assert set(record["types"]) <= {"told", "column", "count"} and "image" not in record
        said = " ".join(turn["value"] for turn in record["conversations"])
        assert not set(said.split()) & {"first", "before", "after", "last"}


def test_what_is_asked_of_images_never_speaks_of_time():
    timely = {"first", "second", "third", "last", "before", "after", "moves", "blinks", "times", "direction", "speed"}
    timely |= {"faster", "slower", "happens"}
    rng = np.random.default_rng(3)
    for number in range(500):
        drawn = arrangements.draw_arrangement(rng, held_out=False)
        asked = [q.question for q in arrangements.questions(drawn, rng, 18, rounds=3)]
        drawn_set = arrangements.draw_set(rng, arrangements.SET_TYPES[number % 4], held_out=False, most=8)
        asked += [q.question for q in drawn_set.questions]
        assert not timely & set(" ".join(asked).split())
    assert scenes.CAPTION_PROMPTS["image"] == "what is there ?"
