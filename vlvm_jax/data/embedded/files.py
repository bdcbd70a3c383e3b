"""What all parts of the embedded data set write: splits, conversations, clips."""

import dataclasses
import hashlib
from pathlib import Path

import av
import numpy as np

from vlvm_jax.data.media.pyav import REPRODUCIBLE_X264

_X264 = {"crf": "18", "preset": "veryfast"}


HELD_OUT_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Split:
    """One annotation file: its scenes, and which of what is asked goes in. `number` seeds what is drawn."""

    number: int
    name: str
    kinds: tuple[str, ...]
    count: int
    held_out: bool


def in_held_out_share(combination: str) -> bool:
    """Whether what is described so belongs to the held-out splits; the same for every seed."""
    return hashlib.sha256(combination.encode()).digest()[0] / 256 < HELD_OUT_SHARE


def conversation(turns: list[tuple[str, str]], media: int = 1) -> list[dict[str, str]]:
    """Question-answer pairs as LLaVA turns, the placeholders in the first."""
    said = []
    for number, (question, answer) in enumerate(turns):
        said.append({"from": "human", "value": question if number else "<image>\n" * media + question})
        said.append({"from": "gpt", "value": answer})
    return said


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    """H.264, yuv420p; uint8 frames [T, H, W, 3] with even H and W."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=REPRODUCIBLE_X264 | _X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
