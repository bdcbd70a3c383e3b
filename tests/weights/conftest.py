"""Tiny checkpoints and the files of a recipe, made once for the tests of this folder."""

import json
import shutil
from pathlib import Path

import pytest
from support import small


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    families = pytest.importorskip("support.families")
    return families.Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def recipe_data(tmp_path_factory, data_root) -> Path:
    """The recipe's annotation files, over a few files of the embedded data."""
    root = tmp_path_factory.mktemp("data")
    embedded = small.data(data_root)

    def write(folder: str, name: str, kind: str, count: int):
        target = root / folder / f"{kind}s"
        target.mkdir(parents=True)
        split = {"image": "train_arrangements", "video": "train_clips"}[kind]
        records = json.loads((embedded / f"{split}.json").read_text())[:count]
        for record in records:
            del record["conversations"][6:], record["types"][3:]  # checkpoints' tokenizers make more of a word
            source = next(embedded.rglob(record[kind]))
            record[kind] = shutil.copy(source, target / source.name).name
        (root / folder / name).write_text(json.dumps(records))

    write("LLaVA-Pretrain", "blip_laion_cc_sbu_558k.json", "image", 16)
    write("LLaVA-Instruct", "llava_v1_5_mix665k.json", "image", 16)
    write("VideoChatGPT", "videochatgpt.json", "video", 16)
    return root
