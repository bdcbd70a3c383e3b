"""Searches of the embedded data set: clips of which a question asks a moment, or a corner, that little else looks at.

`rare`: a long clip of an empty background on which three things show, one after the other, for few frames each.
`small`: three things stand in corners all the time, each no larger than a cell of a fine grid. One of the three is
asked for its colour, by its shape, or for its shape, by its colour; the other two are there so that whoever does not
know the question cannot know the answer, and have the very same traits, so that nothing but the words tells which thing
is meant: given another clip's question, an answer is right by chance only.

`single` images show one thing, large or small, anywhere, or nothing, and have words that name it: for the model that
is to answer, and for a tower that is to compare images with words. `sheet`s are several of them, of which one is asked.

Nothing here touches files (`vlvm_jax/data/embedded/shapes.py` does). All words are those of `words`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlvm_jax.data.embedded import scenes
from vlvm_jax.data.embedded.files import in_held_out_share
from vlvm_jax.data.embedded.scenes import COLORS, SHAPES, Question

Kind = Literal["rare", "small", "single"]
Trait = Literal["color", "shape"]

KINDS: tuple[Kind, ...] = ("rare", "small")
TRAITS: tuple[Trait, ...] = ("color", "shape")
ANSWERS: dict[Trait, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES}
TYPES = tuple(f"{kind}_{trait}" for kind in KINDS for trait in TRAITS)
THINGS = 3  # of a clip
LARGE = 3  # cells along a side of which a large thing fills one
EMPTY = "empty"
_LARGE_RADIUS, _SMALL_RADIUS = 0.45, 0.4  # of a cell: a small thing stays inside its own
EMPTY_SHARE = 1 / 8  # of singles


@dataclasses.dataclass(frozen=True)
class Item:
    """A shape in a cell of a square grid, shown from frame `start` to before frame `stop`.

    Attributes:
      cells: of the grid, along a side.
      jitter: how far off its cell's middle it stands, in cells, down and right.
    """

    shape: str
    color: str
    cell: tuple[int, int]
    cells: int
    jitter: tuple[float, float]
    start: int
    stop: int

    @property
    def words(self) -> str:
        return f"{self.color} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Search:
    """A clip or an image. The first item is asked for; without items there is nothing to see."""

    kind: Kind
    trait: Trait
    items: tuple[Item, ...]
    frames: int
    background: int

    @property
    def question(self) -> Question:
        """What is asked: the colour by the shape, or the shape by the colour."""
        if not self.items:
            return Question(EMPTY, scenes.CAPTION_PROMPTS["image"], EMPTY)
        asked, kind = self.items[0], f"{self.kind}_{self.trait}"
        if self.trait == "color":
            return Question(kind, f"{asked.shape} color ?", asked.color)
        return Question(kind, f"{asked.color} shape ?", asked.shape)

    @property
    def caption(self) -> str:
        """The things by their names, in the order in which they come, or are read."""
        shown = sorted(self.items, key=lambda item: (item.start, item.cell))
        return " ".join(item.words for item in shown) or EMPTY

    @property
    def combination(self) -> tuple[str, ...]:
        """What a split may not share with another: the asked thing with its place and its moment, and what else shows.

        All of that, so that leaving some combinations out of training leaves no answer likelier than another there.
        """
        if not self.items:
            return self.kind, EMPTY, str(self.background)
        asked, *others = self.items
        place = f"{asked.cells}-{asked.cell[0]}-{asked.cell[1]}-{asked.start}"
        return self.kind, self.trait, asked.shape, asked.color, place, *sorted(item.words for item in others)


def is_held_out(search: Search) -> bool:
    """Whether the combination belongs to the held-out splits; the same for every seed."""
    return in_held_out_share("/".join(search.combination))


def draw_clip(
    rng: np.random.Generator,
    kind: Kind,
    trait: Trait,
    answer: str,
    *,
    frames: int,
    shown: int,
    cells: int,
    held_out: bool,
) -> Search:
    """A random clip from the asked side of the split, with this answer.

    Args:
      frames: of the clip.
      shown: frames in which each thing of a `rare` one shows.
      cells: along a side, of the grid of which a thing of a `small` one fills a cell.
    """
    while True:
        search = _draw_clip(rng, kind, trait, answer, frames, shown, cells)
        if is_held_out(search) == held_out:
            return search


def _draw_clip(
    rng: np.random.Generator, kind: Kind, trait: Trait, answer: str, frames: int, shown: int, cells: int
) -> Search:
    # What a thing is known by is its own; what is asked is drawn for each alone, so that none gives another's away.
    known: Trait = "shape" if trait == "color" else "color"
    own = rng.permutation(ANSWERS[known])[:THINGS]
    asked = [answer, *rng.choice(ANSWERS[trait], THINGS - 1)]
    if kind == "rare":
        grid = LARGE
        places = [divmod(int(cell), grid) for cell in rng.integers(grid**2, size=THINGS)]
        # Apart by a frame at least: sorted draws, each moved by what those before it take.
        first = np.sort(rng.permutation(frames - THINGS * shown + 1)[:THINGS]) + shown * np.arange(THINGS)
        spans = [(int(start), int(start) + shown) for start in rng.permutation(first)]
    else:
        grid, block = cells, cells // 3
        corners = [divmod(int(corner), 2) for corner in rng.permutation(4)[:THINGS]]
        inside = rng.integers(block, size=(THINGS, 2))
        places = [
            (int(row) + down * (cells - block), int(column) + right * (cells - block))
            for (down, right), (row, column) in zip(corners, inside, strict=True)
        ]
        spans = [(0, frames)] * THINGS
    items = []
    for mark, wanted, place, span in zip(own, asked, places, spans, strict=True):
        shape, color = (mark, wanted) if trait == "color" else (wanted, mark)
        items.append(Item(str(shape), str(color), place, grid, (_jitter(rng), _jitter(rng)), *span))
    return Search(kind, trait, tuple(items), frames, int(rng.integers(2**31)))


def draw_single(rng: np.random.Generator, trait: Trait, answer: str, *, cells: int, held_out: bool) -> Search:
    """A random image of one thing with this answer, as large as in `rare` clips or as small as in `small` ones; some
    show nothing."""
    if rng.random() < EMPTY_SHARE:
        return Search("single", trait, (), 1, int(rng.integers(2**31)))
    while True:
        grid = LARGE if rng.integers(2) else cells
        place = divmod(int(rng.integers(grid**2)), grid)
        other = str(rng.choice(ANSWERS["shape" if trait == "color" else "color"]))
        shape, color = (other, answer) if trait == "color" else (answer, other)
        item = Item(shape, color, place, grid, (_jitter(rng), _jitter(rng)), 0, 1)
        search = Search("single", trait, (item,), 1, int(rng.integers(2**31)))
        if is_held_out(search) == held_out:
            return search


def draw_sheet(rng: np.random.Generator, singles: Sequence[Search], most: int) -> list[int]:
    """Which of the singles make a sheet of 2 to `most` images: the first one is asked for, and no other has the mark
    it is asked by. Their order in the sheet is the caller's to draw."""
    count = int(rng.integers(2, most + 1))
    while not singles[asked := int(rng.integers(len(singles)))].items:
        pass
    mark, chosen = _mark(singles[asked], singles[asked].trait), [asked]
    while len(chosen) < count:
        other = int(rng.integers(len(singles)))
        if other not in chosen and _mark(singles[other], singles[asked].trait) != mark:
            chosen.append(other)
    return chosen


def _mark(single: Search, trait: Trait) -> str:
    """What an image's thing is known by when it is asked for a trait; "" where there is none."""
    if not single.items:
        return ""
    return single.items[0].shape if trait == "color" else single.items[0].color


def names(search: Search) -> tuple[str, ...]:
    """Texts that go with a single image: what it shows, and either question that is about it."""
    if not search.items:
        return (EMPTY,)
    (item,) = search.items
    return item.words, f"{item.shape} color ?", f"{item.color} shape ?"


def _jitter(rng: np.random.Generator) -> float:
    return round(float(rng.uniform(-0.07, 0.07)), 3)


def render(search: Search, size: int) -> np.ndarray:
    """uint8 [frames, size, size, 3]."""
    background = scenes.textured(np.random.default_rng(search.background), size)
    made = np.repeat(background.round().astype(np.uint8)[None], search.frames, axis=0)
    drawn: dict[tuple[Item, ...], np.ndarray] = {}  # what shows is the same for many frames
    for index in range(search.frames):
        here = tuple(item for item in search.items if item.start <= index < item.stop)
        if here and here not in drawn:
            frame = background.copy()
            for item in here:
                row, column = (
                    (cell + 0.5 + off) / item.cells for cell, off in zip(item.cell, item.jitter, strict=True)
                )
                radius = (_LARGE_RADIUS if item.cells == LARGE else _SMALL_RADIUS) * size / item.cells
                scenes.paint(frame, item.shape, COLORS[item.color], row * size, column * size, radius)
            drawn[here] = frame.round().astype(np.uint8)
        if here:
            made[index] = drawn[here]
    return made
