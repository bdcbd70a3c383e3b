"""What the embedded data shows and says: shapes, colours and places on a 3 x 3 grid of cells, drawn on textures.

Nothing here touches files (`vlvm_jax/data/embedded/shapes.py` does).
"""

import dataclasses

import numpy as np

COLORS = {
    "red": (220, 50, 47),
    "green": (60, 175, 75),
    "blue": (70, 120, 255),
    "yellow": (240, 205, 50),
}
SHAPES = ("circle", "square", "triangle", "cross")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
NUMBERS = ("one", "two", "three", "four", "five", "six")
CAPTION_PROMPTS = {"image": "what is there ?", "video": "what happens ?"}


@dataclasses.dataclass(frozen=True)
class Question:
    type: str
    question: str
    answer: str


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
