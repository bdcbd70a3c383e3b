"""Procedural scenes of the embedded data set: coloured shapes on textured backgrounds, and questions about them.

A scene is drawn from a random generator, rendered to frames, and asked about. Nothing here touches files
(`vlvm_jax/data/embedded/shapes.py` does). Positions live on a 3 x 3 grid of cells, so that every answer is unambiguous.
"""

import dataclasses

import numpy as np

from vlvm_jax.data.embedded.files import in_held_out_share

COLORS = {
    "red": (220, 50, 47),
    "green": (60, 175, 75),
    "blue": (70, 120, 255),
    "yellow": (240, 205, 50),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
NUMBERS = ("one", "two", "three", "four", "five", "six")

STATIC_TYPES = ("color", "shape", "count", "position")
TEMPORAL_TYPES = ("direction", "order", "speed", "before_after")
VIDEO_KINDS = ("move", "appear", "change")
MAX_QUESTIONS = 6


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape in a cell, from `appears` until `vanishes` (shares of the clip)."""

    shape: str
    color: str
    cell: tuple[int, int]
    jitter: tuple[float, float]
    appears: float = 0.0
    vanishes: float = 1.01


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
class Scene:
    """Things, at most one event of each kind, and a seed for the background."""

    kind: str
    things: tuple[Thing, ...]
    background: int
    motion: Motion | None = None
    new_color: str | None = None
    change_at: float = 0.5


@dataclasses.dataclass(frozen=True)
class Question:
    type: str
    question: str
    answer: str


def combination(scene: Scene) -> tuple[str, ...]:
    """What a split may not share with another: all attributes of the scene's event and of the place it starts in.

    All of them, so that leaving some combinations out of training leaves no answer likelier than another there.
    """
    first = scene.things[0]
    thing = (first.shape, first.color, f"{ROWS[first.cell[0]]}-{COLUMNS[first.cell[1]]}")
    if scene.motion is not None:
        how = "faster" if scene.motion.faster else "slower"
        return ("move", *thing, scene.motion.direction, str(scene.motion.cells), how)
    if scene.new_color is not None:
        return ("change", *thing, scene.new_color)
    if scene.kind == "appear":
        second = scene.things[1]
        return ("appear", *thing, second.shape, second.color)
    return ("image", *thing, str(len(scene.things)))


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination belongs to the held-out splits; the same for every seed."""
    return in_held_out_share("/".join(combination(scene)))


def draw_scene(rng: np.random.Generator, kind: str, *, held_out: bool) -> Scene:
    """A random scene of `kind` (`image` or one of `VIDEO_KINDS`) from the asked side of the split."""
    while True:
        scene = _draw(rng, kind)
        if is_held_out(scene) == held_out:
            return scene


def _draw(rng: np.random.Generator, kind: str) -> Scene:
    count = int(rng.integers(2, 4)) if kind == "appear" else int(rng.integers(1, 4))
    shapes = rng.permutation(SHAPES)[:count]
    colors = rng.permutation(list(COLORS))[:count]
    motion = None
    cells = [divmod(int(c), 3) for c in rng.permutation(9)]
    if kind == "move":
        motion, cells = draw_motion(rng, cells)
    spans = [(0.0, 1.01)] * count
    if kind == "appear":  # both for equally long: only the order of the frames tells which came first
        length, early, late = rng.uniform(0.3, 0.4), rng.uniform(0.03, 0.1), rng.uniform(0.5, 0.57)
        spans[:2] = [(early, early + length), (late, late + length)]
    things = tuple(
        Thing(str(s), str(c), cell, (_jitter(rng), _jitter(rng)), float(begin), float(end))
        for s, c, cell, (begin, end) in zip(shapes, colors, cells, spans, strict=False)
    )
    new_color = None
    if kind == "change":
        new_color = str(rng.choice([c for c in COLORS if c not in colors]))
    change_at = float(rng.uniform(0.35, 0.65))
    return Scene(kind, things, int(rng.integers(2**31)), motion, new_color, change_at)


def draw_motion(rng: np.random.Generator, cells: list[tuple[int, int]]) -> tuple[Motion, list[tuple[int, int]]]:
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


def _jitter(rng: np.random.Generator) -> float:
    """How far off its cell's middle a thing stands, in cells."""
    return round(float(rng.uniform(-0.07, 0.07)), 3)


# --- rendering ---------------------------------------------------------------------------------------------------


def render(scene: Scene, num_frames: int, size: int) -> np.ndarray:
    """uint8 [num_frames, size, size, 3]. Frame i shows time i / (num_frames - 1); an image is one frame."""
    background = textured(np.random.default_rng(scene.background), size)
    frames = np.repeat(background[None], num_frames, axis=0)
    for index in range(num_frames):
        time = index / max(num_frames - 1, 1)
        for number, thing in enumerate(scene.things):
            if not thing.appears <= time < thing.vanishes:
                continue
            color = thing.color
            if number == 0 and scene.new_color is not None and time >= scene.change_at:
                color = scene.new_color
            row, column = position(scene, number, time)
            paint(frames[index], thing.shape, COLORS[color], row * size, column * size, 0.15 * size)
    return frames.round().astype(np.uint8)


def position(scene: Scene, number: int, time: float) -> tuple[float, float]:
    """Row and column of a thing's centre at `time`, as shares of the frame."""
    thing = scene.things[number]
    row, column = ((cell + 0.5 + jitter) / 3 for cell, jitter in zip(thing.cell, thing.jitter, strict=True))
    if number == 0 and scene.motion is not None:
        down, right = scene.motion.shift(time)
        row, column = row + down, column + right
    return row, column


def textured(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark texture, soft stripes or blotches: shapes stand out by being brighter, whatever their colour."""
    y, x = np.mgrid[0:size, 0:size] / size
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(2, 6), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    if rng.integers(2):
        wave = wave * np.sin(2 * np.pi * frequency * (y * np.cos(angle) - x * np.sin(angle)))
    base = rng.uniform(25, 65) + rng.uniform(-12, 12, 3)
    noise = rng.normal(0, 3, (size, size, 1))
    return np.clip(base + 10 * wave[..., None] + noise, 0, 255).astype(np.float32)


def paint(frame: np.ndarray, shape: str, color: tuple[int, int, int], row: float, column: float, radius: float):
    """Draws one anti-aliased shape in place, from its signed distance in pixels."""
    size = frame.shape[0]
    y, x = np.mgrid[0:size, 0:size] + 0.5
    dy, dx = y - row, x - column
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.95 * radius
    elif shape == "triangle":
        distance = np.maximum(dy - 0.8 * radius, 0.89 * np.abs(dx) - 0.45 * dy - 0.5 * radius)
    else:
        arm, width = 1.05 * radius, 0.35 * radius
        distance = np.minimum(
            np.maximum(np.abs(dx) - arm, np.abs(dy) - width), np.maximum(np.abs(dx) - width, np.abs(dy) - arm)
        )
    alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)
    frame[:] = frame * (1 - alpha) + np.asarray(color, np.float32) * alpha


# --- questions ---------------------------------------------------------------------------------------------------


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """A conversation about a scene, in random order. Within a type, answers are balanced over scenes.

    No answer gives another away (a thing's colour is asked by its shape or its shape by its colour, never both; the
    direction or a place before and after, never both), so that each must be read off the frames.
    """
    event = _event_questions(scene, rng)
    asked = []
    # Kept or not whatever the number is: with few things there is less to choose from. In "appear" never one.
    if scene.kind != "appear" and rng.integers(2):
        event.append(Question("count", "how many ?", NUMBERS[len(scene.things) - 1]))
    for index, thing in enumerate(scene.things):
        if index == 0 and scene.new_color is not None:
            asked += _place_questions(thing)
            continue
        if rng.integers(2):
            asked.append(Question("color", f"{thing.shape} color ?", thing.color))
        else:
            asked.append(Question("shape", f"{thing.color} shape ?", thing.shape))
        if index or scene.motion is None:
            asked += _place_questions(thing)
    keep = rng.permutation(len(asked))[: MAX_QUESTIONS - len(event)]
    asked = [*event, *(asked[i] for i in keep)]
    return [asked[i] for i in rng.permutation(len(asked))]


def _place_questions(thing: Thing) -> list[Question]:
    return [
        Question("position", f"{thing.shape} row ?", ROWS[thing.cell[0]]),
        Question("position", f"{thing.shape} column ?", COLUMNS[thing.cell[1]]),
    ]


def _event_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    first = scene.things[0]
    if scene.motion is not None:
        speed = Question("speed", f"{first.shape} speed ?", "faster" if scene.motion.faster else "slower")
        if rng.random() < 0.7:
            return [Question("direction", f"{first.shape} direction ?", scene.motion.direction), speed]
        row_step, column_step = DIRECTIONS[scene.motion.direction]
        when = "after" if rng.integers(2) else "before"
        moved = scene.motion.cells if when == "after" else 0
        if row_step:
            place = Question("before_after", f"{first.shape} row {when} ?", ROWS[first.cell[0] + row_step * moved])
        else:
            column = COLUMNS[first.cell[1] + column_step * moved]
            place = Question("before_after", f"{first.shape} column {when} ?", column)
        return [place, speed]
    if scene.new_color is not None:
        return [
            Question("before_after", f"{first.shape} color before ?", first.color),
            Question("before_after", f"{first.shape} color after ?", scene.new_color),
        ]
    if scene.kind == "appear":
        pair = [scene.things[0].shape, scene.things[1].shape]
        mention = pair if rng.integers(2) else pair[::-1]
        return [Question("order", f"{mention[0]} or {mention[1]} first ?", pair[0])]
    return []


def caption(scene: Scene) -> str:
    """A dense description. An image: what is in each of its nine cells, in reading order. A clip: where the moving
    thing is, what colour the changing one has, or what came last, in each eighth of the clip.

    Every cell and every eighth takes the same number of words, so that a model from scratch finds the words of a
    place, or of a moment, at a fixed distance from the tokens that show it.
    """
    if scene.kind == "image":
        in_cell = {thing.cell: f"{thing.color} {thing.shape}" for thing in scene.things}
        return " ".join(in_cell.get((row, column), "empty empty") for row in range(3) for column in range(3))
    return " ".join(_moment(scene, (eighth + 0.5) / 8) for eighth in range(8))


def _moment(scene: Scene, time: float) -> str:
    first = scene.things[0]
    if scene.motion is not None:
        row, column = position(scene, 0, time)
        vertical = DIRECTIONS[scene.motion.direction][0] != 0
        return ROWS[int(row * 3)] if vertical else COLUMNS[int(column * 3)]
    if scene.new_color is not None:
        return scene.new_color if time >= scene.change_at else first.color
    come = [thing for thing in scene.things[:2] if thing.appears <= time]
    return max(come, key=lambda thing: thing.appears).shape if come else "empty"


CAPTION_PROMPTS = {"image": "what is there ?", "video": "what happens ?"}
