"""Clips of things: answers follow from the frames in their order, and from no frame alone."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data.embedded import events
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.embedded.arrangements import NUMBERS
from vlvm_jax.data.embedded.scenes import COLORS, COLUMNS, ROWS, SHAPES

SIDE = 64
MANY = 300
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)
kinds = st.sampled_from(events.KINDS)


def cell(clip, number, frame):
    return tuple(int(share * 3) for share in events.position(clip, number, frame))


def answer(clip, question: str) -> str | None:
    """What a question about the event asks, worked out from where and when things show; None for other questions."""
    words = question.removesuffix(" ?").split()
    if words[:2] == clip.things[0].name.split() and "or" not in words:
        words = words[2:]
    shown = [
        [events.shows(clip, number, frame) for frame in range(events.FRAMES)] for number in range(len(clip.things))
    ]
    cells = [[cell(clip, number, frame) for frame in range(events.FRAMES)] for number in range(len(clip.things))]
    moving = [number for number, path in enumerate(cells) if len(set(path)) > 1]
    steps = [
        np.subtract(b, a) for a, b in itertools.pairwise(events.position(clip, 0, f) for f in range(events.FRAMES))
    ]
    if words == ["what", "moves"]:
        return clip.things[moving[0]].name
    if words == ["direction"]:
        row, column = np.sign(np.subtract(cells[moving[0]][-1], cells[moving[0]][0]))
        return {(1, 0): "down", (-1, 0): "up", (0, 1): "right", (0, -1): "left"}[row, column]
    if words == ["speed"]:
        return "faster" if np.abs(steps[-1]).sum() > np.abs(steps[0]).sum() else "slower"
    if words[0] in ("row", "column"):
        place = cells[moving[0]][-1 if words[1] == "after" else 0][words[0] == "column"]
        return (COLUMNS if words[0] == "column" else ROWS)[place]
    gone = [sum(a and not b for a, b in itertools.pairwise(times)) for times in shown]
    if words == ["what", "blinks"]:
        return clip.things[gone.index(max(gone))].name
    if words == ["how", "many", "times"]:
        return NUMBERS[max(gone)]
    order = sorted((times.index(True), clip.things[n].name) for n, times in enumerate(shown) if not all(times))
    come = [name for _, name in order]
    if words[:1] == ["what"]:
        return come[{"first": 0, "second": 1, "last": -1}[words[1]]]
    if words[-1] == "first":
        return min((" ".join(words[:2]), " ".join(words[3:5])), key=come.index)
    return None


@given(rng=rngs, kind=kinds, held_out=st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_answer_follows_from_the_frames(rng, kind, held_out):
    clip = events.draw_clip(rng, kind, held_out=held_out)
    assert clip.held_out is held_out
    assert len({thing.name for thing in clip.things}) == len(clip.things) == len({thing.cell for thing in clip.things})
    asked = events.questions(clip, rng)
    assert 1 <= len(asked) <= events.MOST_QUESTIONS
    assert {q.type for q in asked} & set(events.TEMPORAL_TYPES)
    for question in asked:
        if (expected := answer(clip, question.question)) is not None:
            assert question.answer == expected and question.type in events.TEMPORAL_TYPES
        text = f"{question.question} {question.answer} {events.caption(clip)}"
        assert set(text.split()) <= set(embedded_words.VOCABULARY) and len(events.caption(clip).split()) == 16 + 2 * (
            kind != "appear"
        )


def form(question) -> str:
    """A question without the words that name things."""
    return " ".join(w for w in question.question.split() if w not in (*COLORS, *SHAPES, "row", "column"))


@pytest.mark.parametrize("kind", events.KINDS)
def test_in_training_all_is_asked_of_the_event_but_for_what_it_gives_away(kind):
    rng = np.random.default_rng(3)
    clip = events.draw_clip(rng, kind, held_out=False)
    asked, first = collections.Counter(), set()
    for _ in range(MANY):
        every = events.questions_to_learn(clip, rng)
        assert len({question.question for question in every}) == len(every)
        assert all(question.type != "which" for question in every[1:])
        types = collections.Counter(question.type for question in every)
        pairs = sum("or" in question.question.split() for question in every)
        assert {
            "move": types["speed"] == 1 and (types["direction"], types["before_after"]) in ((1, 0), (0, 2)),
            "appear": types["order"] == 3 and pairs in (0, 3),
            "blink": types["repetition"] == 1,
            "change": types["before_after"] == 2,
        }[kind]
        for question in every:
            if (expected := answer(clip, question.question)) is not None:
                assert question.answer == expected
        asked.update({form(question) for question in every if question.type in events.TEMPORAL_TYPES})
        first.add(form(every[0]))
    some = [form(q) for _ in range(MANY) for q in events.questions(clip, rng) if q.type in events.TEMPORAL_TYPES]
    assert set(some) == set(asked) <= first
    assert min(asked.values()) > MANY / 3


@given(rng=rngs)
@settings(max_examples=60, deadline=None)
def test_still_things_are_named_by_what_no_other_thing_has(rng):
    clip = events.draw_clip(rng, events.KINDS[int(rng.integers(4))], held_out=False)
    for question in events.questions(clip, rng):
        if question.type not in ("color", "shape", "position"):
            continue
        name, trait, _ = question.question.split()
        (thing,) = [thing for thing in clip.things if name in (thing.color, thing.shape)]
        places = {"row": ROWS[thing.cell[0]], "column": COLUMNS[thing.cell[1]]}
        assert question.answer == (places.get(trait) or getattr(thing, trait))
        assert thing is not clip.things[0]


@given(rng=rngs)
@settings(max_examples=20, deadline=None)
def test_frames_show_the_event(rng):
    for kind in events.KINDS:
        clip = events.draw_clip(rng, kind, held_out=False)
        frames = events.render(clip, SIDE).astype(int)
        assert frames.shape == (events.FRAMES, SIDE, SIDE, 3)
        for frame, number in itertools.product(range(events.FRAMES), range(len(clip.things))):
            row, column = (round(share * SIDE) for share in events.position(clip, number, frame))
            around = frames[frame, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1].reshape(-1, 3)
            color = clip.things[number].color
            if clip.new_color and not number and frame >= clip.change:
                color = clip.new_color
            near = np.abs(around - COLORS[color]).max(axis=1).min() < 25
            assert near == events.shows(clip, number, frame), (kind, frame, number)


def test_answers_are_balanced():
    """Of each question about time without a name in it, and of each type."""
    rng = np.random.default_rng(1)
    counted = collections.defaultdict(collections.Counter)
    for number in range(6000):
        for q in events.questions(events.draw_clip(rng, events.KINDS[number % 4], held_out=False), rng):
            words = " ".join(w for w in q.question.split() if w not in (*COLORS, *SHAPES))
            of_time = q.type in ("direction", "speed", "repetition") or words.split()[0] in ("row", "column")
            counted[words if of_time else q.type][q.answer] += 1
    for question, answers in counted.items():
        if question == "count":  # in a clip that changes, things of one shape would be confused and are left out
            continue
        mean = answers.total() / len(answers)
        assert all(abs(count - mean) < 4.5 * mean**0.5 for count in answers.values()), (question, answers)


@pytest.mark.parametrize("kind", ["appear", "blink"])
def test_how_long_something_shows_tells_nothing(kind):
    """All that come show for equally long; one that blinks is away for two frames, never at an end,
    and is seen to go and come in every second frame too."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        clip = events.draw_clip(rng, kind, held_out=False)
        times = [sum(events.shows(clip, n, f) for f in range(events.FRAMES)) for n in range(len(clip.things))]
        if kind == "appear":
            assert len(set(times[: events.COME])) == 1 and all(time == events.FRAMES for time in times[events.COME :])
        else:
            seen = [[frame for frame in clip.hidden if frame % 2 == odd] for odd in (0, 1)]
            assert times[0] == events.FRAMES - 2 * clip.blinks and all(len(half) == clip.blinks for half in seen)
            assert all(b - a > 2 for half in seen for a, b in itertools.pairwise(half))
            assert min(clip.hidden) > 0 and max(clip.hidden) < events.FRAMES - 1
