"""Lists of questions over real clips, a tiny random checkpoint, and the command that asks it."""

import json
import subprocess
import sys
from pathlib import Path

from support import tiny_checkpoints as tiny
from support.recipes import ROOT, environment

CLIPS = ("a", "v_b", "c")


def checkpoint(folder: Path) -> Path:
    """A model that says random things."""
    return tiny.checkpoint(folder, "llava_next_video")


def clips(folder: Path) -> Path:
    """Three clips that can be read, and one that cannot."""
    for number, name in enumerate(CLIPS):
        tiny.clip(folder / f"{name}.mp4", seed=number)
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def write(path: Path, records: list) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def open_lists(folder: Path, count: int = 12) -> str:
    """Questions and answers in two lists of different orders."""
    names = ("a", "b", "c", "cut", "gone")
    asked = [
        {"video_name": names[i % 5], "question_id": f"q{i}", "question": f"how many in {'x' * i} ?"}
        for i in range(count)
    ]
    answered = [{"question_id": f"q{i}", "answer": "two", "type": i % 2} for i in reversed(range(count))]
    write(folder / "test_a.json", answered)
    return write(folder / "test_q.json", asked)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(checkpoint, questions, media, output, *extra) -> list[str]:
    return [
        sys.executable, "-m", "vlvm_jax.evaluate", f"--checkpoint={checkpoint}", f"--questions={questions}",
        f"--media={media}", f"--output={output}", "--frames=4", *extra,
    ]  # fmt: skip


def run(tmp_path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=600
    )
