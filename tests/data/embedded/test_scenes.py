"""Scenes: answers that are true of the pixels, and that nobody can guess from the text."""

import collections

import numpy as np
import pytest

from vlvm_jax.data.embedded import scenes
from vlvm_jax.data.embedded import words as embedded_words

SIZE, FRAMES = 96, 16
KINDS = ("image", *scenes.VIDEO_KINDS)
SHAPE_WORDS, COLOR_WORDS = set(scenes.SHAPES), set(scenes.COLORS)


def drawn(kind, count, *, held_out=False, seed=0):
    """Scenes with what is asked about them."""
    rng = np.random.default_rng([seed, KINDS.index(kind), held_out])
    for _ in range(count):
        scene = scenes.draw_scene(rng, kind, held_out=held_out)
        yield scene, scenes.questions(scene, rng)


# --- an observer that knows only pixels --------------------------------------------------------------------------


def named_shape(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if box.mean() > 0.9:
        return "square"
    if box.mean() > 0.68:
        return "circle"
    low = np.argwhere(box).mean(axis=0)[0] / len(box)
    return "triangle" if low > 0.58 else "cross"


def observe(frame):
    """Shape -> (colour, row, column) of what a frame shows."""
    found = {}
    for color, value in scenes.COLORS.items():
        mask = np.abs(frame.astype(int) - value).max(axis=-1) <= 4
        if mask.sum() > 40:
            row, column = np.argwhere(mask).mean(axis=0) / SIZE
            shape = named_shape(mask)
            assert shape not in found
            found[shape] = (color, row, column)
    return found


def answer(question, seen):
    """The answer that the observed frames give."""
    ever = {shape: found for frame in seen for shape, found in frame.items()}
    when = {"before": seen[0], "after": seen[-1]}
    match question.removesuffix(" ?").split():
        case ["how", "many"]:
            return scenes.NUMBERS[len(seen[-1]) - 1]
        case [shape, "color"]:
            return ever[shape][0]
        case [color, "shape"]:
            return next(shape for shape, (its, _, _) in ever.items() if its == color)
        case [shape, "row", *time]:
            return scenes.ROWS[int((when[time[0]] if time else ever)[shape][1] * 3)]
        case [shape, "column", *time]:
            return scenes.COLUMNS[int((when[time[0]] if time else ever)[shape][2] * 3)]
        case [shape, "color", time]:
            return when[time][shape][0]
        case [shape, "direction"]:
            track = np.array([frame[shape][1:] for frame in seen])
            steps = np.diff(track, axis=0)
            (row, column) = track[-1] - track[0]
            if abs(row) > abs(column):
                assert (np.sign(row) * steps[:, 0] > -0.003).all()
                return "down" if row > 0 else "up"
            assert (np.sign(column) * steps[:, 1] > -0.003).all()
            return "right" if column > 0 else "left"
        case [shape, "speed"]:
            track = np.array([frame[shape][1:] for frame in seen])
            halves = [np.abs(track[i] - track[j]).sum() for i, j in ((FRAMES // 2, 0), (-1, FRAMES // 2))]
            return "faster" if halves[1] > halves[0] else "slower"
        case [one, "or", other, "first"]:
            return min((one, other), key=lambda shape: next(i for i, frame in enumerate(seen) if shape in frame))
    raise AssertionError(f"the observer does not know {question!r}")


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_true_of_the_pixels(kind, held_out):
    types = set()
    for scene, asked in drawn(kind, 40, held_out=held_out):
        seen = [observe(frame) for frame in scenes.render(scene, 1 if kind == "image" else FRAMES, SIZE)]
        for question in asked:
            types.add(question.type)
            assert answer(question.question, seen) == question.answer, (scene, question)
    event = {"move": {"direction", "speed", "before_after"}, "appear": {"order"}, "change": {"before_after"}}
    assert event.get(kind, {"count"}) | {"position", "color", "shape"} <= types


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixel_at_a_things_centre_has_its_color(kind):
    for scene, _ in drawn(kind, 40):
        frames = scenes.render(scene, FRAMES, 48)
        for index, frame in enumerate(frames):
            for number, thing in enumerate(scene.things):
                time = index / (FRAMES - 1)
                row, column = scenes.position(scene, number, time)
                pixel = frame[int(row * 48), int(column * 48)]
                color = scene.new_color if number == 0 and scene.new_color and time >= scene.change_at else thing.color
                if thing.appears <= time < thing.vanishes:
                    np.testing.assert_array_equal(pixel, scenes.COLORS[color])
                else:
                    assert np.abs(pixel.astype(int) - scenes.COLORS[color]).max() > 30


def test_the_column_grows_when_a_thing_goes_right():
    moved = [scene for scene, _ in drawn("move", 60) if scene.motion.direction == "right"]
    assert len(moved) > 5
    for scene in moved:
        color = scene.things[0].color
        columns = [next(c for its, _, c in observe(f).values() if its == color) for f in scenes.render(scene, 8, SIZE)]
        assert (np.diff(columns) > -0.003).all() and columns[-1] - columns[0] > 0.25


def test_rendering_is_reproducible_and_moves_nothing_else():
    for kind in KINDS:
        scene, _ = next(drawn(kind, 1))
        one = scenes.render(scene, 4, 32)
        assert one.dtype == np.uint8 and one.shape == (4, 32, 32, 3)
        np.testing.assert_array_equal(one, scenes.render(scene, 4, 32))
    still, _ = next(drawn("image", 1))
    frames = scenes.render(still, 4, 32)
    assert (frames == frames[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_things_differ_and_stay_apart(kind):
    for scene, _ in drawn(kind, 200):
        for key in ("shape", "color", "cell"):
            assert len({getattr(thing, key) for thing in scene.things}) == len(scene.things)
        assert scene.new_color not in {thing.color for thing in scene.things}
        for time in np.linspace(0, 1, 9):
            places = np.array([scenes.position(scene, i, time) for i in range(len(scene.things))])
            assert (places > 0.1).all() and (places < 0.9).all()
            apart = np.abs(places[:, None] - places[None]).max(axis=-1) + np.eye(len(places))
            assert apart.min() > 0.25


def test_drawn_scenes_are_on_the_asked_side_of_the_split():
    for kind in KINDS:
        sides = [{scenes.combination(s) for s, _ in drawn(kind, 500, held_out=side)} for side in (False, True)]
        assert not sides[0] & sides[1]
        assert 0.1 < len(sides[1]) / len(sides[0] | sides[1]) < 0.35
        for side in (False, True):
            assert all(scenes.is_held_out(s) == side for s, _ in drawn(kind, 50, held_out=side))


# --- nothing to guess from ---------------------------------------------------------------------------------------


def template(question):
    """The question's class: which thing is meant does not matter, what is asked of it does."""
    words = ["SHAPE" if w in SHAPE_WORDS else "COLOR" if w in COLOR_WORDS else w for w in question.question.split()]
    return f"{question.type}: {' '.join(words)}"


CHANCE = {"color": 4, "shape": 4, "count": 3, "position": 3, "direction": 4, "speed": 2}


def chance(name):
    kind, words = name.split(": ")
    if kind == "order":
        return 1 / 4  # four shapes; which of the two mentioned is tested on its own
    if kind == "before_after":
        return 1 / 4 if "color" in words.split() else 1 / 3
    return 1 / CHANCE[kind]


@pytest.mark.parametrize("held_out", [False, True], ids=["train", "held_out"])
@pytest.mark.parametrize(("name", "mix"), [("images", ("image",)), ("videos", ("move", "move", "appear", "change"))])
def test_no_answer_is_much_more_common_than_chance(name, mix, held_out):
    answers = collections.defaultdict(collections.Counter)
    for part, kind in enumerate(mix):
        # Of a moving thing's places only one in ten scenes asks each; fewer scenes would measure chance.
        for _, asked in drawn(kind, 4000 if kind == "move" else 2000, held_out=held_out, seed=part):
            for question in asked:
                answers[template(question)][question.answer] += 1
    shares = {name: max(found.values()) / found.total() for name, found in answers.items()}
    assert len(shares) >= 5
    assert {name: round(share, 3) for name, share in shares.items() if share > chance(name) + 0.08} == {}


@pytest.mark.parametrize("held_out", [False, True], ids=["train", "held_out"])
def test_neither_place_in_an_order_question_is_the_better_guess(held_out):
    first = [
        question.question.split()[0] == question.answer
        for _, asked in drawn("appear", 2000, held_out=held_out)
        for question in asked
        if question.type == "order"
    ]
    assert len(first) == 2000 and abs(np.mean(first) - 0.5) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_in_the_conversation_tells_nothing(kind):
    """Every type of question comes first about as often as last."""
    ends = collections.defaultdict(lambda: [0, 0])
    for _, asked in drawn(kind, 2000):
        for place in (0, -1):
            ends[asked[place].type][place] += 1
    for name, (first, last) in ends.items():
        assert abs(first - last) < 0.2 * (first + last) + 20, name


def test_the_vocabulary_holds_every_word_of_every_text():
    words = set(embedded_words.VOCABULARY)
    for kind in KINDS:
        for scene, asked in drawn(kind, 300):
            texts = [scenes.caption(scene), *(f"{q.question} {q.answer}" for q in asked)]
            assert {word for text in texts for word in text.split()} <= words


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_true_of_the_pixels(kind):
    for scene, _ in drawn(kind, 30):
        words = scenes.caption(scene).split()
        # Of 17 frames, the odd ones are the middles of the eighths.
        seen = [observe(frame) for frame in scenes.render(scene, 1 if kind == "image" else 17, SIZE)]
        shape = scene.things[0].shape
        if kind == "image":
            cells = {(int(row * 3), int(column * 3)): [color, s] for s, (color, row, column) in seen[0].items()}
            expected = [w for i in range(9) for w in cells.get(divmod(i, 3), ["empty", "empty"])]
        elif kind == "move":
            places = [frame[shape][1:] for frame in seen[1::2]]
            axis = 0 if scene.motion.direction in ("up", "down") else 1
            names = (scenes.ROWS, scenes.COLUMNS)[axis]
            # On the border of two cells the centre of the painted pixels may fall on either side.
            near = [{names[int((place[axis] + d) * 3)] for d in (-0.02, 0.02)} for place in places]
            expected = [word if word in allowed else allowed for word, allowed in zip(words, near, strict=True)]
        elif kind == "change":
            expected = [frame[shape][0] for frame in seen[1::2]]
        else:
            comers = [thing.shape for thing in scene.things[:2]]
            arrival = {s: next(i for i, frame in enumerate(seen) if s in frame) for s in comers}
            come = [[s for s in comers if arrival[s] <= i] for i in range(1, 17, 2)]
            expected = [max(already, key=arrival.get, default="empty") for already in come]
        assert words == expected, scene
