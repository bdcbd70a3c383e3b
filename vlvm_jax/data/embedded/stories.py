"""Stories of the embedded data set: one thing after another, shown as a clip, written as a text, and asked about.

An event is a coloured shape in a column, three words; a story is a list of events whose things all differ. As a clip
every event is shown for a few frames; as a text it is its words, which pages can be drawn from
(`vlvm_jax/data/pages/draw.py`). Questions are about the same things either way, so that what is learned of long texts
can serve long clips. All words are those of `words`. Nothing here touches files.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from vlvm_jax.data.embedded import scenes
from vlvm_jax.data.embedded.arrangements import Arrangement, Thing
from vlvm_jax.data.embedded.arrangements import render as render_image
from vlvm_jax.data.embedded.files import in_held_out_share

THINGS = tuple(itertools.product(scenes.COLORS, scenes.SHAPES))
MOST = len(THINGS)  # events of a story
TYPES = ("after", "before", "first", "order", "count", "column")
_MOST_COUNTED = 3
HOLD = (2, 3)  # frames an event is shown for, at least and at most


@dataclasses.dataclass(frozen=True)
class Event:
    color: str
    shape: str
    column: str

    @property
    def thing(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def words(self) -> str:
        return f"{self.thing} {self.column}"


@dataclasses.dataclass(frozen=True)
class Story:
    """Events in order, how many frames each is shown for, and a seed for the background."""

    events: tuple[Event, ...]
    holds: tuple[int, ...]
    background: int

    @property
    def text(self) -> str:
        return " ".join(event.words for event in self.events)


def is_held_out(story: Story) -> bool:
    """Whether the story's text belongs to the held-out splits; the same for every seed."""
    return in_held_out_share(story.text)


def draw_story(rng: np.random.Generator, shortest: int, longest: int, *, held_out: bool) -> Story:
    """A random story of `shortest` to `longest` events, `MOST` at most, from the asked side of the split."""
    while True:
        count = int(rng.integers(shortest, longest + 1))
        chosen = [THINGS[i] for i in rng.permutation(len(THINGS))[:count]]
        columns = rng.choice(scenes.COLUMNS, count)
        pairs = zip(chosen, columns, strict=True)
        events = tuple(Event(color, shape, str(column)) for (color, shape), column in pairs)
        story = Story(events, tuple(rng.integers(HOLD[0], HOLD[1] + 1, count).tolist()), int(rng.integers(2**31)))
        if is_held_out(story) == held_out:
            return story


def render(story: Story, size: int) -> np.ndarray:
    """uint8 [sum of holds, size, size, 3]."""
    stills = []
    for event in story.events:
        cell = (1, scenes.COLUMNS.index(event.column))
        thing = Thing("large", event.color, event.shape, cell, (0.0, 0.0))
        stills.append(render_image(Arrangement((thing,), story.background), size))
    return np.repeat(np.stack(stills), story.holds, axis=0)


def questions(story: Story, rng: np.random.Generator, types: Sequence[str] = TYPES) -> list[scenes.Question]:
    """One question of each type that the story has an answer to, in random order."""
    asked = [made for kind in types if (made := _question(story, kind, rng)) is not None]
    return [asked[i] for i in rng.permutation(len(asked))]


def _question(story: Story, kind: str, rng: np.random.Generator) -> scenes.Question | None:
    events, numbers = story.events, ("empty", *scenes.NUMBERS[:_MOST_COUNTED])
    if kind == "first":
        return scenes.Question(kind, "what first ?", events[0].thing)
    if kind == "column":
        event = events[rng.integers(len(events))]
        return scenes.Question(kind, f"{event.thing} column ?", event.column)
    if kind == "count":
        shape = str(rng.choice(scenes.SHAPES))
        number = sum(event.shape == shape for event in events)
        return scenes.Question(kind, f"how many {shape} ?", numbers[number]) if number < len(numbers) else None
    if len(events) < 2:
        return None
    if kind in ("after", "before"):
        early = int(rng.integers(len(events) - 1))
        near, far = events[early], events[early + 1]
        asked, answer = (near, far) if kind == "after" else (far, near)
        return scenes.Question(kind, f"{kind} {asked.thing} ?", answer.thing)
    early, late = sorted(rng.permutation(len(events))[:2].tolist())
    pair = [events[early].thing, events[late].thing]
    mention = pair if rng.integers(2) else pair[::-1]
    return scenes.Question("order", f"{mention[0]} or {mention[1]} first ?", pair[0])
