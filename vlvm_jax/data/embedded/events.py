"""Clips of the embedded data set: two to five things, one of which moves, blinks or changes colour, or three that come
one after another, and what is asked of them.

One question asks what an event happens to; it comes first, for the others name that thing. Nothing that a single frame
shows gives an answer about time away: things that come show for equally long, a moving thing has every place as often
before as after, and one that blinks is there most of the time however often it does. Whatever happens shows in every
second frame. All words are those of `words`. Nothing here touches files.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from vlvm_jax.data.embedded import scenes
from vlvm_jax.data.embedded.arrangements import NUMBERS, SIZES, Thing
from vlvm_jax.data.embedded.files import in_held_out_share
from vlvm_jax.data.embedded.scenes import COLORS, COLUMNS, ROWS, SHAPES, Question

KINDS = ("move", "appear", "change", "blink")
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
STATIC_TYPES = ("color", "shape", "count", "position")
TEMPORAL_TYPES = ("direction", "speed", "before_after", "order", "repetition", "which")
FRAMES = 16
COME = 3  # things that come one after another
MOST_BLINKS = 3
MOST_QUESTIONS = 6  # about a clip, held out
MOST_STILL = 3  # questions about what is still, in training
_PLACES = ("first", "second", "last")


@dataclasses.dataclass(frozen=True)
class Motion:
    """The first thing goes `cells` cells in `direction`, speeding up or slowing down all the way."""

    direction: str
    cells: int
    faster: bool

    def shift(self, time: float) -> tuple[float, float]:
        """How far it has gone at `time`, from 0 to 1: down and right, as shares of the frame."""
        progress = time**2.5 if self.faster else 1 - (1 - time) ** 2.5
        row_step, column_step = DIRECTIONS[self.direction]
        return row_step * progress * self.cells / 3, column_step * progress * self.cells / 3


@dataclasses.dataclass(frozen=True)
class Clip:
    """Things, the event, and a seed for the background. What happens, happens to the first thing, or the first three.

    Attributes:
      spans: first frame in which each of the coming things shows, and the first in which it does not.
      hidden: frames in which the blinking thing does not show.
      new_color, change: the colour that the first thing takes, and the frame in which it does.
    """

    kind: str
    things: tuple[Thing, ...]
    background: int
    motion: Motion | None = None
    spans: tuple[tuple[int, int], ...] = ()
    hidden: tuple[int, ...] = ()
    blinks: int = 0
    new_color: str = ""
    change: int = 0

    @property
    def combination(self) -> tuple[str, ...]:
        """What a split may not share with another: the event with its attributes, and all things with their places.

        All of it: of a thing in a place training would otherwise show some events only, and never those held out.
        """
        event: tuple[str, ...] = (self.new_color, str(self.blinks))
        if self.motion is not None:
            event = (self.motion.direction, str(self.motion.cells), "faster" if self.motion.faster else "slower")
        things = (f"{thing.description} {ROWS[thing.cell[0]]} {COLUMNS[thing.cell[1]]}" for thing in self.things)
        return (self.kind, *event, *things)

    @property
    def held_out(self) -> bool:
        """Whether the combination belongs to the held-out splits; the same for every seed."""
        return in_held_out_share("/".join(self.combination))


def draw_clip(rng: np.random.Generator, kind: str, *, held_out: bool) -> Clip:
    """A random clip of one of `KINDS` from the asked side of the split."""
    while True:
        clip = _draw(rng, kind)
        if clip.held_out == held_out:
            return clip


def _draw(rng: np.random.Generator, kind: str) -> Clip:
    count = int(rng.integers(COME, COME + 2) if kind == "appear" else rng.integers(2, 6))
    names = [(color, shape) for color in COLORS for shape in SHAPES]
    names = [names[i] for i in rng.permutation(len(names))[:count]]
    if kind == "change":  # it is asked by its shape, which no other has
        names = [names[0], *(name for name in names[1:] if name[1] != names[0][1])]
    cells = [divmod(int(cell), 3) for cell in rng.permutation(9)]
    motion, made = None, {}
    if kind == "move":
        motion, cells = _draw_motion(rng, cells)
    elif kind == "appear":
        made["spans"] = _draw_spans(rng)
    elif kind == "blink":
        made["blinks"] = int(rng.integers(1, MOST_BLINKS + 1))
        made["hidden"] = _draw_hidden(rng, made["blinks"])
    else:
        made["new_color"] = str(rng.choice([color for color in COLORS if color != names[0][0]]))
        made["change"] = int(rng.integers(FRAMES // 3, FRAMES - FRAMES // 3))
    things = tuple(
        Thing(str(rng.choice(list(SIZES))), color, shape, cell, (_jitter(rng), _jitter(rng)))
        for (color, shape), cell in zip(names, cells, strict=False)
    )
    return Clip(kind, things, int(rng.integers(2**31)), motion, **made)


def _draw_motion(rng: np.random.Generator, cells: list[tuple[int, int]]) -> tuple[Motion, list[tuple[int, int]]]:
    """A motion, and the cells with its first one before those that it does not touch."""
    direction = str(rng.choice(list(DIRECTIONS)))
    row_step, column_step = DIRECTIONS[direction]
    length = int(rng.choice((1, 1, 2)))  # so that every row and column starts and ends as often
    along = int(rng.integers(0, 3 - length))
    along = along if row_step + column_step > 0 else 2 - along
    across = int(rng.integers(0, 3))
    start = (across, along) if row_step == 0 else (along, across)
    path = {(start[0] + row_step * i, start[1] + column_step * i) for i in range(length + 1)}
    return Motion(direction, length, bool(rng.integers(2))), [start, *(cell for cell in cells if cell not in path)]


def _draw_spans(rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """When three things come and go: none before the other has gone, all for equally long."""
    length = int(rng.integers(3, 5))
    spare = FRAMES - COME * length
    starts = np.sort(rng.integers(0, spare + 1, COME)) + length * np.arange(COME)
    return tuple((int(start), int(start) + length) for start in starts)


def _draw_hidden(rng: np.random.Generator, blinks: int) -> tuple[int, ...]:
    """Pairs of frames, apart by two at least, and neither the first nor the last one."""
    taken = 4 * blinks - 2
    spare = FRAMES - 2 - taken
    starts = np.sort(rng.integers(0, spare + 1, blinks)) + 4 * np.arange(blinks) + 1
    return tuple(int(start) + frame for start in starts for frame in range(2))


def _jitter(rng: np.random.Generator) -> float:
    return round(float(rng.uniform(-0.1, 0.1)), 3)


# --- rendering ---------------------------------------------------------------------------------------------------


def render(clip: Clip, size: int) -> np.ndarray:
    """uint8 [FRAMES, size, size, 3]."""
    background = scenes.textured(np.random.default_rng(clip.background), size)
    frames = np.repeat(background[None], FRAMES, axis=0)
    for index in range(FRAMES):
        for number, thing in enumerate(clip.things):
            if shows(clip, number, index):
                row, column = position(clip, number, index)
                color = clip.new_color if clip.new_color and not number and index >= clip.change else thing.color
                radius = SIZES[thing.size] * size
                scenes.paint(frames[index], thing.shape, COLORS[color], row * size, column * size, radius)
    return frames.round().astype(np.uint8)


def shows(clip: Clip, number: int, frame: int) -> bool:
    """Whether a thing is there in a frame."""
    if number < len(clip.spans):
        start, stop = clip.spans[number]
        return start <= frame < stop
    return not (number == 0 and frame in clip.hidden)


def position(clip: Clip, number: int, frame: int) -> tuple[float, float]:
    """Row and column of a thing's centre in a frame, as shares of its height and width."""
    thing = clip.things[number]
    row, column = ((cell + 0.5 + off) / 3 for cell, off in zip(thing.cell, thing.jitter, strict=True))
    if number == 0 and clip.motion is not None:
        down, right = clip.motion.shift(frame / (FRAMES - 1))
        row, column = row + down, column + right
    return row, column


# --- questions ---------------------------------------------------------------------------------------------------


def questions(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """A conversation about a clip, in random order. Within a type, answers are balanced over clips.

    No answer gives a later one away: what the event happens to is asked first, its direction or a place of it, never
    both, and of a still thing either its colour or its shape.
    """
    event = _some_about_event(clip, rng)
    if clip.kind != "appear" and rng.integers(2):
        event.append(_count(clip))
    asked = _about_still(clip, rng)
    keep = rng.permutation(len(asked))[: MOST_QUESTIONS - len(event)]
    return _shuffled([*event, *(asked[i] for i in keep)], rng)


def questions_to_learn(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """What is asked of the event and of what is still in training: all of it, but for what it would give away.

    What the event happens to is asked of half of the clips. It comes first there, and every question has to come first
    for some clips: held-out ones are asked alone. Direction and places give each other away, and so do places in an
    order and pairs: one of the two is asked, so that every answer is learned from frames, not from words before it.
    """
    asked = [question for questions in _about_event(clip, rng) for question in questions]
    if rng.integers(2):
        asked = [question for question in asked if question.type != "which"]
    if clip.motion is not None:
        left_out = ("direction", "before_after")[int(rng.integers(2))]
        asked = [question for question in asked if question.type != left_out]
    elif clip.kind == "appear":
        asked = asked[:COME] if rng.integers(2) else asked[COME:]
    if clip.kind != "appear":
        asked.append(_count(clip))
    still = _about_still(clip, rng)
    keep = rng.permutation(len(still))[:MOST_STILL]
    return _shuffled([*asked, *(still[i] for i in keep)], rng)


def _shuffled(asked: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    """In random order, but for what the others would give away."""
    order = [asked[i] for i in rng.permutation(len(asked))]
    return sorted(order, key=lambda question: question.type != "which")


def _count(clip: Clip) -> Question:
    return Question("count", "how many ?", NUMBERS[len(clip.things)])


def _about_still(clip: Clip, rng: np.random.Generator) -> list[Question]:
    asked = []
    still = clip.things[COME if clip.kind == "appear" else 1 :]
    for name, thing in _known_by(still, clip.things, "shape" if rng.integers(2) else "color"):
        trait = "color" if name == thing.shape else "shape"
        asked.append(Question(trait, f"{name} {trait} ?", getattr(thing, trait)))
        axis = int(rng.integers(2))
        place = (ROWS, COLUMNS)[axis][thing.cell[axis]]
        asked.append(Question("position", f"{name} {('row', 'column')[axis]} ?", place))
    return asked


def _known_by(still: Sequence[Thing], things: Sequence[Thing], trait: str) -> list[tuple[str, Thing]]:
    """Still things that their shape, or their colour, tells from all others."""
    traits = [getattr(thing, trait) for thing in things]
    return [(getattr(t, trait), t) for t in still if traits.count(getattr(t, trait)) == 1]


def _about_event(clip: Clip, rng: np.random.Generator) -> list[list[Question]]:
    """What can be asked of the event: by groups, of which one answer gives others away."""
    first = clip.things[0]
    if clip.motion is not None:
        axis = int(DIRECTIONS[clip.motion.direction][0] == 0)
        trait, places = ("row", "column")[axis], (ROWS, COLUMNS)[axis]
        start = first.cell[axis]
        end = start + sum(DIRECTIONS[clip.motion.direction]) * clip.motion.cells
        return [
            [Question("which", "what moves ?", first.name)],
            [Question("speed", f"{first.name} speed ?", "faster" if clip.motion.faster else "slower")],
            [
                Question("direction", f"{first.name} direction ?", clip.motion.direction),
                Question("before_after", f"{first.name} {trait} before ?", places[start]),
                Question("before_after", f"{first.name} {trait} after ?", places[end]),
            ],
        ]
    if clip.kind == "blink":
        times = Question("repetition", f"{first.name} how many times ?", NUMBERS[clip.blinks])
        return [[Question("which", "what blinks ?", first.name)], [times]]
    if clip.kind == "change":
        before, after = (f"{first.shape} color {when} ?" for when in ("before", "after"))
        return [
            [Question("before_after", before, first.color)],
            [Question("before_after", after, clip.new_color)],
        ]
    come = [thing.name for thing in clip.things[:COME]]
    asked = [Question("order", f"what {place} ?", name) for place, name in zip(_PLACES, come, strict=True)]
    for pair in itertools.combinations(come, 2):
        one, two = pair if rng.integers(2) else pair[::-1]
        asked.append(Question("order", f"{one} or {two} first ?", pair[0]))
    return [asked]


def _some_about_event(clip: Clip, rng: np.random.Generator) -> list[Question]:
    groups = _about_event(clip, rng)
    if clip.motion is not None:
        which, speed, (direction, *places) = groups
        where = direction if rng.random() < 0.6 else places[int(rng.integers(2))]
        return [*which, *speed, where]
    if clip.kind in ("blink", "change"):
        return [question for group in groups for question in group]
    (asked,) = groups
    of_place, of_pair = asked[:COME], asked[COME:]
    chosen = of_place if rng.integers(2) else of_pair
    return [chosen[int(rng.integers(len(chosen)))]]


def caption(clip: Clip) -> str:
    """What the event happens to, where that is one thing, and what it is in each eighth of the clip, in two words:
    where the moving thing is, whether the blinking one is there all the time, which thing has come, what colour the
    changing one has."""
    name = [] if clip.kind == "appear" else [clip.things[0].name]
    return " ".join([*name, *(_moment(clip, eighth) for eighth in range(8))])


def _moment(clip: Clip, eighth: int) -> str:
    frames = range(eighth * FRAMES // 8, (eighth + 1) * FRAMES // 8)
    first = clip.things[0]
    if clip.motion is not None:
        row, column = position(clip, 0, frames[0])
        return f"{ROWS[int(row * 3)]} {COLUMNS[int(column * 3)]}"
    if clip.kind == "blink":
        return f"{first.shape} {'blinks' if set(frames) & set(clip.hidden) else 'nothing'}"
    if clip.kind == "change":
        return f"{clip.new_color if frames[0] >= clip.change else first.color} {first.shape}"
    here = [thing.name for number, thing in enumerate(clip.things[:COME]) if shows(clip, number, frames[0])]
    return here[0] if here else "empty empty"
