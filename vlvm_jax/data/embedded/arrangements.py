"""Images of the embedded data set: up to six things on a grid, in one image or in several together, and questions.

Things share shapes and colours, so a question has to bind a trait to the right thing: the left circle, the thing at the
top right, whatever is larger. Several images together are compared, and their order never matters: nothing of time can
be learned from them. All words are those of `words`. Nothing here touches files.

What an image shows, all of it, belongs to one side of the split: no held-out image has been seen with the same things
in the same cells. The share is drawn by a hash, so no answer is likelier than another on either side.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

import numpy as np

from vlvm_jax.data.embedded import scenes
from vlvm_jax.data.embedded.files import in_held_out_share
from vlvm_jax.data.embedded.scenes import COLORS, COLUMNS, ROWS, SHAPES, Question

NUMBERS = ("none", *scenes.NUMBERS)
SIZES = {"large": 0.15, "small": 0.085}  # radius, a share of the image
CHANGES = ("color", "shape", "size", "place", "count", "nothing")  # from one image to another
DIFFERENCES = ("color", "shape", "size", "count", "nothing")  # at one place
TRAITS = ("color", "shape", "size")
TYPES = ("color", "shape", "count", "count_of", "position", "relation", "size", "place")
OF_ALL_IMAGES = ("images_with", "in_all")
SET_TYPES = ("differs", "which_differs", *OF_ALL_IMAGES)
MOST = 6  # things of an image
MOST_IMAGES = 3  # of a set
_SOME = 3  # things of an image of a set whose images have nothing to do with each other, at most
_ALIKE = {"least": 2, "most": 5}  # things of an image of a set of which all are alike but for one change
_PLACES = 2  # of such a set that further questions ask about, at most
_FILLED_SHARE = 0.75  # of places where nothing differs, at least: something is there, in all images
_CELLS = [(row, column) for row in range(3) for column in range(3)]
_EMPTY_SHARE = 1 / (len(SHAPES) + 1)  # of questions about a place: no answer is likelier than another


_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Thing:
    size: str
    color: str
    shape: str
    cell: tuple[int, int]
    jitter: tuple[float, float]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def description(self) -> str:
        return f"{self.size} {self.name}"


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """What an image shows, and a seed for its background."""

    things: tuple[Thing, ...]
    background: int

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the held-out splits; the same for every seed."""
        return in_held_out_share(self.caption)

    @property
    def caption(self) -> str:
        """What is in each of the nine cells, in reading order and the same number of words."""
        in_cell = {thing.cell: thing.description for thing in self.things}
        return " ".join(in_cell.get(cell, "empty empty empty") for cell in _CELLS)


def draw_arrangement(rng: np.random.Generator, *, held_out: bool, least: int = 1, most: int = MOST) -> Arrangement:
    """`least` to `most` things, from the asked side of the split."""
    count = int(rng.integers(least, most + 1))
    while True:
        cells = [_CELLS[i] for i in rng.permutation(len(_CELLS))[:count]]
        drawn = Arrangement(tuple(_draw_thing(rng, cell) for cell in cells), int(rng.integers(2**31)))
        if drawn.held_out == held_out:
            return drawn


def _draw_thing(rng: np.random.Generator, cell: tuple[int, int]) -> Thing:
    jitter = (round(float(rng.uniform(-0.1, 0.1)), 3), round(float(rng.uniform(-0.1, 0.1)), 3))
    return Thing(_one(rng, SIZES), _one(rng, COLORS), _one(rng, SHAPES), cell, jitter)


def _one(rng: np.random.Generator, items: Collection[_Item]) -> _Item:
    return list(items)[int(rng.integers(len(items)))]


def render(arrangement: Arrangement, size: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    image = scenes.textured(np.random.default_rng(arrangement.background), size)
    for thing in arrangement.things:
        row, column = ((cell + 0.5 + off) / 3 * size for cell, off in zip(thing.cell, thing.jitter, strict=True))
        scenes.paint(image, thing.shape, COLORS[thing.color], row, column, SIZES[thing.size] * size)
    return image.round().astype(np.uint8)


# --- questions about one image -----------------------------------------------------------------------------------


def questions(arrangement: Arrangement, rng: np.random.Generator, most: int, *, rounds: int = 1) -> list[Question]:
    """A conversation of up to `most` questions in random order, of different types within a round.

    Either all things are counted or some, never both: one number would bound the other.

    Args:
      rounds: how often each type has its turn. No question is asked twice.
    """
    types = list(TYPES)
    types.remove("count" if rng.integers(2) else "count_of")
    # Whether a type is asked must not depend on how many others have a question here, which tells how many things.
    turns = [kind for _ in range(rounds) for kind in (types[i] for i in rng.permutation(len(types)))][:most]
    made = {question.question: question for kind in turns if (question := _ASK[kind](arrangement.things, rng))}
    return list(made.values()) or [_count(arrangement.things, rng)]


def grid(arrangement: Arrangement, trait: str, side: int) -> str:
    """What is at each of `side` x `side` squares of the image, in reading order: a thing's size, color or shape.

    A thing is taken for a disc, and is at a square whose centre it covers, or else at the nearest.
    """
    covered = np.full((side, side), "empty", dtype=object)
    centres = (np.arange(side) + 0.5) / side
    for thing in arrangement.things:
        row, column = ((cell + 0.5 + off) / 3 for cell, off in zip(thing.cell, thing.jitter, strict=True))
        distance = np.hypot(*np.meshgrid(centres - row, centres - column, indexing="ij"))
        covered[(distance < SIZES[thing.size]) | (distance == distance.min())] = getattr(thing, trait)
    return " ".join(covered.ravel())


def listing(arrangement: Arrangement, rng: np.random.Generator) -> str:
    """Each thing with its place, in random order."""
    things = [arrangement.things[i] for i in rng.permutation(len(arrangement.things))]
    pairs = [(thing.description, _place_of(thing.cell)) for thing in things]
    if rng.integers(2):
        pairs = [(place, description) for description, place in pairs]
    return " ".join(f"{one} {other}" for one, other in pairs)


def _place_of(cell: tuple[int, int]) -> str:
    return f"{ROWS[cell[0]]} {COLUMNS[cell[1]]}"


def _count(things: Sequence[Thing], rng: np.random.Generator) -> Question:
    return Question("count", "how many ?", NUMBERS[len(things)])


def _count_of(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    answer = _drawn_count(things, rng)
    if answer is None or rng.random() > _kept_counts()[answer[1]]:
        return None
    return Question("count_of", f"how many {answer[0]} ?", NUMBERS[answer[1]])


def _drawn_count(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, int] | None:
    """A colour or shape of which there are as many as was drawn first, and how many; None if none has that many."""
    wanted = int(rng.integers(4))
    counts = Counter(word for thing in things for word in (thing.color, thing.shape))
    words = [word for word in (*COLORS, *SHAPES) if counts[word] == wanted]
    return (_one(rng, words), wanted) if words else None


@functools.cache
def _kept_counts() -> dict[int, float]:
    """By number, the share of questions to keep so that all numbers are answers equally often."""
    rng = np.random.default_rng(0)
    drawn = (_drawn_count(draw_arrangement(rng, held_out=False).things, rng) for _ in range(4000))
    numbers = Counter(found[1] for found in drawn if found)
    return {number: min(numbers.values()) / count for number, count in numbers.items()}


def _color(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    named = _pick(rng, _named(things, "shape"))
    return named and Question("color", f"{named[0]} color ?", named[1].color)


def _shape(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    named = _pick(rng, _named(things, "color"))
    return named and Question("shape", f"{named[0]} shape ?", named[1].shape)


def _named(things: Sequence[Thing], trait: str) -> Iterator[tuple[str, Thing]]:
    """Things that a trait names, alone or with what tells them from others that have it: size, or side."""
    for word in (*COLORS, *SHAPES):
        alike = [thing for thing in things if getattr(thing, trait) == word]
        if len(alike) == 1:
            yield word, alike[0]
            continue
        for size in SIZES:
            sized = [thing for thing in alike if thing.size == size]
            if len(sized) == 1:
                yield f"{size} {word}", sized[0]
        for axis, (low, high) in enumerate((("top", "bottom"), ("left", "right"))):
            along = sorted(alike, key=lambda thing: thing.cell[axis])
            if len(along) > 1 and along[0].cell[axis] < along[1].cell[axis]:
                yield f"{low} {word}", along[0]
            if len(along) > 1 and along[-1].cell[axis] > along[-2].cell[axis]:
                yield f"{high} {word}", along[-1]


def _pick(rng: np.random.Generator, named: Iterator[tuple[str, Thing]]) -> tuple[str, Thing] | None:
    names = list(named)
    return _one(rng, names) if names else None


def _unique(things: Sequence[Thing]) -> list[Thing]:
    """Things that colour and shape name."""
    names = Counter(thing.name for thing in things)
    return [thing for thing in things if names[thing.name] == 1]


def _position(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    if not (unique := _unique(things)):
        return None
    thing = _one(rng, unique)
    if rng.integers(2):
        return Question("position", f"{thing.name} row ?", ROWS[thing.cell[0]])
    return Question("position", f"{thing.name} column ?", COLUMNS[thing.cell[1]])


def _pair(
    things: Sequence[Thing], rng: np.random.Generator, differ: Callable[[Thing], object]
) -> tuple[Thing, Thing] | None:
    """Two things that differ in something, in random order."""
    unique = _unique(things)
    pairs = [(one, two) for one, two in itertools.combinations(unique, 2) if differ(one) != differ(two)]
    if not pairs:
        return None
    pair = _one(rng, pairs)
    return pair if rng.integers(2) else (pair[1], pair[0])


def _relation(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    axis = int(rng.integers(2))
    if not (pair := _pair(things, rng, lambda thing: thing.cell[axis])):
        return None
    one, two = pair
    words = ("above", "left of")[axis]
    return Question("relation", f"{one.name} {words} {two.name} ?", _yes(one.cell[axis] < two.cell[axis]))


def _size(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    pair = _pair(things, rng, lambda thing: thing.size)
    if pair and rng.integers(2):
        return Question("size", f"{pair[0].name} larger than {pair[1].name} ?", _yes(pair[0].size == "large"))
    if not (unique := _unique(things)):
        return None
    thing = _one(rng, unique)
    return Question("size", f"{thing.name} size ?", thing.size)


def _place(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    trait = "color" if rng.integers(2) else "shape"
    if rng.random() < _EMPTY_SHARE:
        taken = {thing.cell for thing in things}
        cells = [cell for cell in _CELLS if cell not in taken]
        cell, answer = _one(rng, cells), "empty"
    else:
        thing = _one(rng, things)
        cell, answer = thing.cell, getattr(thing, trait)
    return Question("place", f"{_place_of(cell)} {trait} ?", answer)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


_ASK: dict[str, Callable[[Sequence[Thing], np.random.Generator], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "count_of": _count_of,
    "position": _position,
    "relation": _relation,
    "size": _size,
    "place": _place,
}


# --- several images together -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images in an order that does not matter, and questions about all of them."""

    images: tuple[Arrangement, ...]
    questions: tuple[Question, ...]


def draw_set(rng: np.random.Generator, kind: str, *, held_out: bool, most: int = 1) -> ImageSet:
    """Two or three images and a question of a type of `SET_TYPES`; answers are drawn first, each equally often.

    Args:
      most: questions, at most. The answers of further ones are not balanced over sets.
    """
    count = int(rng.integers(2, MOST_IMAGES + 1))
    if kind not in OF_ALL_IMAGES:
        first, other, question = (_pair_at_place if kind == "differs" else _pair_with_change)(rng, held_out)
        first, other = (first, other) if rng.integers(2) else (other, first)
        images = [first] * (count - 1) + [other]
        asked = [question, *_differences(first, other, rng)][:most]
    else:
        word = _one(rng, (*COLORS, *SHAPES))
        having = int(rng.integers(count + 1)) if kind == "images_with" else count - int(rng.integers(2))
        images = [_having(rng, word, number < having, held_out) for number in range(count)]
        asked = [_about_images(kind, word, having, count)]
    for _ in range(most - len(asked)):
        wanted, kind = int(rng.integers(count + 1)), _one(rng, OF_ALL_IMAGES)
        words = [word for word in (*COLORS, *SHAPES) if sum(word in _traits(image) for image in images) == wanted]
        if words:
            asked.append(_about_images(kind, _one(rng, words), wanted, count))
    asked = list({question.question: question for question in asked}.values())
    shown = tuple(images[i] for i in rng.permutation(count))
    return ImageSet(shown, tuple(asked[i] for i in rng.permutation(len(asked))))


def _about_images(kind: str, word: str, having: int, count: int) -> Question:
    if kind == "images_with":
        return Question(kind, f"how many with {word} ?", NUMBERS[having])
    return Question(kind, f"{word} in all ?", _yes(having == count))


def _traits(arrangement: Arrangement) -> set[str]:
    return {word for thing in arrangement.things for word in (thing.color, thing.shape)}


def _differences(first: Arrangement, other: Arrangement, rng: np.random.Generator) -> list[Question]:
    """Further questions about two images: what is in some cells, first those that differ, and which thing does."""
    cells = [_CELLS[i] for i in rng.permutation(len(_CELLS))]
    seen = {cell: _about_cell((first, other), cell) for cell in cells}
    cells.sort(key=lambda cell: (_difference(first, other, cell) == "nothing", seen[cell].answer == "empty"))
    which = _which_differs(first, other)
    return [*(seen[cell] for cell in cells[:_PLACES]), *([which] if which else [])]


def _about_cell(images: Sequence[Arrangement], cell: tuple[int, int]) -> Question:
    """What is in a cell of one image at least, in the order of the alphabet."""
    in_cell = {next((t.description for t in image.things if t.cell == cell), "empty") for image in images}
    return Question("differs", f"{_place_of(cell)} in each ?", " ".join(sorted(in_cell)))


def _which_differs(first: Arrangement, other: Arrangement) -> Question | None:
    """Which thing has another place, colour, shape or size, by what it keeps; None if none has, or that names two."""
    if len(first.things) != len(other.things) or first == other:
        return None
    one, two = first.things[-1], other.things[-1]
    trait = next((trait for trait in TRAITS if getattr(one, trait) != getattr(two, trait)), "place")
    kept = {"color": "shape", "shape": "color"}.get(trait, "name")
    name = getattr(one, kept)
    if any(sum(getattr(thing, kept) == name for thing in image.things) > 1 for image in (first, other)):
        return None
    return Question("which_differs", f"what differs in {trait} ?", name)


def _difference(first: Arrangement, other: Arrangement, cell: tuple[int, int]) -> str:
    """What is not the same in a cell of two images with at most one change between them."""
    one, two = (next((t for t in image.things if t.cell == cell), None) for image in (first, other))
    if one is None or two is None:
        return "nothing" if one is two else "count"
    return next((trait for trait in TRAITS if getattr(one, trait) != getattr(two, trait)), "nothing")


def _having(rng: np.random.Generator, word: str, having: bool, held_out: bool) -> Arrangement:
    while True:
        drawn = draw_arrangement(rng, held_out=held_out, most=_SOME)
        if (word in _traits(drawn)) == having:
            return drawn


def _pair_with_change(rng: np.random.Generator, held_out: bool) -> tuple[Arrangement, Arrangement, Question]:
    """Images with one change, and which thing it is."""
    change = _one(rng, (*TRAITS, "place"))
    while True:
        first = draw_arrangement(rng, held_out=held_out, **_ALIKE)
        other = _changed(first, change, rng)
        question = _which_differs(first, other)
        if other.held_out == held_out and question:
            return first, other, question


def _pair_at_place(rng: np.random.Generator, held_out: bool) -> tuple[Arrangement, Arrangement, Question]:
    """Images with one change at most, and what is in a cell; in what they differ there is drawn first.

    Where nothing differs there is mostly something in the cell, and mostly a change elsewhere.
    """
    difference = _one(rng, DIFFERENCES)
    while True:
        change = _one(rng, {"count": ("count", "place"), "nothing": CHANGES}.get(difference, (difference,)))
        first = draw_arrangement(rng, held_out=held_out, **_ALIKE)
        other = _changed(first, change, rng)
        if other.held_out != held_out or (other.caption == first.caption) != (change == "nothing"):
            continue
        cells = [cell for cell in _CELLS if _difference(first, other, cell) == difference]
        filled = [cell for cell in cells if any(thing.cell == cell for thing in first.things)]
        if difference == "nothing" and rng.random() < _FILLED_SHARE:
            cells = filled
        if cells:
            return first, other, _about_cell((first, other), _one(rng, cells))


def _changed(first: Arrangement, change: str, rng: np.random.Generator) -> Arrangement:
    """The image with another value of a trait, which may be the same by chance."""
    if change == "nothing":
        return first
    *rest, last = first.things
    free = [cell for cell in _CELLS if cell not in [thing.cell for thing in first.things]]
    drawn = _draw_thing(rng, _one(rng, free))
    if change == "count":
        return dataclasses.replace(first, things=(*first.things, drawn))
    trait = "cell" if change == "place" else change
    new = dataclasses.replace(last, **{trait: getattr(drawn, trait)})
    return dataclasses.replace(first, things=(*rest, new))
