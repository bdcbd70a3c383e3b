"""A user's folder: clips, images and frames of some sizes, with annotations beside them, some of it of no use."""

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vlvm_jax.data.embedded.shapes import write_mp4


def ask(question: str, answer: str = "It moves.") -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def clip(file: Path, frames: int = 24, fps: int = 12, size: tuple[int, int] = (64, 48)) -> None:
    """A square that crosses a texture; another one for each name. `size` is width and height."""
    rng = np.random.default_rng(list(file.name.encode()))
    width, height = size
    picture = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    moving = np.repeat(picture[None, :height, :width], frames, 0)
    for number in range(frames):
        left = number * (width - 12) // frames
        moving[number, 8:20, left : left + 12] = 255
    file.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(file, moving, fps)


def sound(file: Path) -> None:
    """A file of sound alone."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def image(file: Path, size: tuple[int, int] = (64, 48)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(file.name.encode())).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file)


def good(root: Path) -> Path:
    """An annotation file of every kind of record that is of use."""
    for name in ("a", "b", "c"):
        clip(root / f"clips/{name}.mp4")
    image(root / "pictures/one.jpg", (90, 60))
    image(root / "pictures/two.png", (60, 90))
    for number in range(3):
        image(root / f"frames/{number}.jpg", (80, 60))
    records = [
        {"id": "first", "video": "clips/a.mp4", "conversations": ask("<video>\nWhat moves?"), "types": ["action"]},
        {"video": "clips/b.mp4", "conversations": ask("How?") + ask("And then?"), "start": 0.5, "end": 1.5},
        {"image": "pictures/one.jpg", "conversations": ask("What is this?"), "type": "scene"},
        {"image": ["pictures/one.jpg", "pictures/two.png"], "conversations": ask("First <image> then <image>?")},
        {
            "image": "pictures/two.png",
            "video": ["clips/a.mp4", "clips/c.mp4"],
            "conversations": ask("In <video> or <video> is this: <image>"),
        },
        {"video": "frames", "conversations": ask("Frames?")},
        {"video": [f"frames/{number}.jpg" for number in (2, 0)], "conversations": ask("Listed?")},
        {"conversations": ask("Nothing to see, what is two and two?", "Four.")},
    ]
    file = root / "notes.json"
    file.write_text(json.dumps(records))
    return file


BAD = {"missing": 2, "corrupt": 1, "no_video": 1, "bad_record": 2}


def bad(root: Path, fill: int = 6) -> Path:
    """An annotation file with `fill` records of use, and one that is not for each count in `BAD`."""
    clip(root / "ok.mp4")
    (root / "torn.mp4").write_bytes((root / "ok.mp4").read_bytes()[:300])
    sound(root / "sound.mp4")
    names = ["gone.mp4", "gone/too.mp4", "torn.mp4", "sound.mp4"]
    lines = [json.dumps({"video": name, "conversations": ask("<video>What?")}) for name in names]
    lines += ['{"video": "ok.mp4", "conversations": [', json.dumps({"conversations": ask("<image> but none")})]
    lines += [json.dumps({"video": "ok.mp4", "conversations": ask(f"What is {n}?")}) for n in range(fill)]
    file = root / "notes.jsonl"
    file.write_text("\n".join(lines))
    return file
