"""One process that runs commands, and a tiny checkpoint and clip, for all tests of this folder."""

import json

import commands
import pytest
from support import tiny_checkpoints as tiny


@pytest.fixture(scope="session")
def command():
    started = commands.Commands()
    yield started.run
    started.close()


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a checkpoint, a clip, lists of records and questions, a file and a folder of no use."""
    root = tmp_path_factory.mktemp("fuzz")
    tiny.checkpoint(root / "model", "llava_onevision")
    tiny.clip(root / "clip.mp4")
    record = {"id": "a", "video": "clip.mp4", "question": "what ?", "answer": "that"}
    (root / "notes.jsonl").write_text(json.dumps(record) + "\n")
    (root / "questions.txt").write_text("what ?\n")
    (root / "file").write_text("x")
    (root / "folder").mkdir()
    return root
