"""The embedded data set on disk: reproducible, split cleanly, complete or absent, and readable like anybody's data."""

import hashlib
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydantic
import pytest
from support.images import read_image
from tokenizers import Tokenizer

from vlvm_jax.data.embedded import arrangements, events, scenes, shapes
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.embedded.shapes import ShapesOptions
from vlvm_jax.data.media.frames import read_clip
from vlvm_jax.data.sources.annotations import read_annotations

# More than a chunk of images, so that several workers share a split.
OPTIONS = ShapesOptions(train_arrangements=110, train_clips=12, heldout_arrangements=10, heldout_clips=12, size=32)
TINY = OPTIONS.model_copy(
    update={"train_arrangements": 3, "train_clips": 4, "heldout_arrangements": 2, "heldout_clips": 4}
)
SPLITS = ("train_arrangements", "heldout_arrangements", "train_clips", "heldout_clips")
PARTS = {"arrangements": ("", "_captions", "_patches", "_listings"), "clips": ("", "_captions")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shapes.ensure(OPTIONS, tmp_path_factory.mktemp("data"))


def assert_same_files(one, other):
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (one / name).is_dir() or (one / name).read_bytes() == (other / name).read_bytes(), name


def annotations(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def texts(records):
    return [turn["value"] for record in records for turn in record["conversations"]]


# --- reproducible ------------------------------------------------------------------------------------------------


def test_every_file_is_the_same_again_with_other_workers(made, tmp_path):
    again = shapes.ensure(OPTIONS, tmp_path, workers=2)
    assert again.name == made.name
    assert_same_files(again, made)


def test_what_killed_processes_had_begun_is_swept(tmp_path):
    host = re.sub(r"\W", "_", socket.gethostname())
    for name in (f"0.building-{host}-1", "1.building-2", "2.building-elsewhere-3", "3.building-elsewhere-4"):
        (tmp_path / f"shapes-{name}" / "media" / "train_arrangements").mkdir(parents=True)
    old = tmp_path / "shapes-3.building-elsewhere-4"
    for folder in (old / "media" / "train_arrangements", old / "media", old):
        os.utime(folder, (0, 0))
    made = shapes.ensure(TINY, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {made.name, "shapes-2.building-elsewhere-3"}


def test_another_seed_gives_other_scenes(tmp_path):
    one = shapes.ensure(TINY, tmp_path)
    other = shapes.ensure(TINY.model_copy(update={"seed": 1}), tmp_path)
    with pytest.raises(AssertionError):
        assert_same_files(one, other)
    for name in SPLITS:
        assert annotations(one, name) != annotations(other, name)


@pytest.mark.parametrize("name", ["size", "fps", "seed", *SPLITS])
def test_the_hash_follows_every_option(name):
    """Those of searches: test_searches.py."""
    changed = OPTIONS.model_copy(update={name: getattr(OPTIONS, name) + 2})  # an even size stays even
    assert changed.hash != OPTIONS.hash
    assert OPTIONS.model_copy(update={name: getattr(changed, name)}).hash == changed.hash


def test_the_hash_follows_the_code(tmp_path, monkeypatch):
    before = OPTIONS.hash
    assert re.fullmatch("[0-9a-f]{12}", before)
    edited = tmp_path / "edited.py"
    for module in (scenes, events, arrangements, shapes):
        edited.write_text(Path(module.__file__).read_text() + "\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(edited))
            assert OPTIONS.hash != before
    assert OPTIONS.hash == before


def test_options_of_earlier_versions():
    """A run that asked for nothing of them can still be opened."""
    assert ShapesOptions(**{"train_images": 0, "kinds": ("move",), "train_clips": 12}) == ShapesOptions(train_clips=12)
    with pytest.raises(pydantic.ValidationError, match="train_videos: no such data is made any more"):
        ShapesOptions(**{"train_videos": 10})


def test_the_folder_is_under_the_asked_or_the_default_root(tmp_path, monkeypatch):
    monkeypatch.setenv("VLVM_JAX_DATA", str(tmp_path / "a"))
    assert shapes.folder(OPTIONS) == tmp_path / "a" / f"shapes-{OPTIONS.hash}"
    assert shapes.folder(OPTIONS, tmp_path) == tmp_path / f"shapes-{OPTIONS.hash}"
    monkeypatch.delenv("VLVM_JAX_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert shapes.folder(OPTIONS).parent == tmp_path / "b" / "vlvm_jax"


# --- splits ------------------------------------------------------------------------------------------------------


def test_splits_share_no_combination_and_no_file(made):
    combinations, files, contents = {}, {}, {}
    for name in SPLITS:
        records = annotations(made, name)
        shown = records if name.endswith("clips") else annotations(made, f"{name}_captions")
        combinations[name] = {record.get("combination") or record["conversations"][1]["value"] for record in shown}
        files[name] = {record.get("image") or record["video"] for record in records}
        contents[name] = {hashlib.sha256((made / file).read_bytes()).hexdigest() for file in files[name]}
        assert len(files[name]) == len(contents[name]) == len(records)
    for medium in PARTS:
        assert not combinations[f"train_{medium}"] & combinations[f"heldout_{medium}"]
    for kind in (files, contents):
        assert sum(map(len, kind.values())) == len(set.union(*kind.values()))


# --- the files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLITS)
def test_annotations_load_and_every_file_decodes(made, name):
    expected = dict(zip(SPLITS, (110, 10, 12, 12), strict=True))[name]
    records = read_annotations(str(made / f"{name}.json"), str(made))
    captions = read_annotations(str(made / f"{name}_captions.json"), str(made))
    assert len(records) == len(captions) == expected
    for record, described in zip(records, captions, strict=True):
        assert record.id == described.id and record.media == described.media
        ((kind, path),) = record.media
        assert kind == record.kind == ("video" if name.endswith("clips") else "image")
        frames = read_image(path, 32) if kind == "image" else read_clip(path, 99, 32)
        assert frames.shape == (1 if kind == "image" else events.FRAMES, 32, 32, 3)
        types = (*events.STATIC_TYPES, *events.TEMPORAL_TYPES, "told") if kind == "video" else arrangements.TYPES
        assert {turn.type for turn in record.turns} <= set(types)
        assert [turn.type for turn in described.turns] == ["caption"]
        assert described.turns[0].question == f"<image>\n{scenes.CAPTION_PROMPTS[kind]}"


def test_clips_show_what_was_rendered_in_its_order(made):
    """The annotation's combination names the scene, so a clip that moves must move the way it says."""
    moves = [r for r in annotations(made, "train_clips") if r["combination"].startswith("move/")]
    assert len(moves) == 3
    for record in moves:
        _, direction, _, _, moving, *_ = record["combination"].split("/")
        frames = read_clip(str(made / record["video"]), events.FRAMES, 32).astype(float)
        row_step, column_step = events.DIRECTIONS[direction]
        # What is gone at the end, and what has come: the thing's colour at either place, whatever else has it.
        near = [np.abs(frame - scenes.COLORS[moving.split()[1]]).max(axis=-1) < 60 for frame in frames[[0, -1]]]
        gone, come = (np.argwhere(one & ~other).mean(axis=0) for one, other in (near, near[::-1]))
        along, across = (come - gone) @ (row_step, column_step), (come - gone) @ (column_step, row_step)
        assert along > 5 and abs(across) < 2


def test_the_placeholder_is_in_the_first_question_only(made):
    for name in SPLITS:
        for record in annotations(made, name) + annotations(made, f"{name}_captions"):
            first, *rest = [turn["value"] for turn in record["conversations"]]
            assert first.startswith("<image>\n") and "<image>" not in "".join(rest)


def test_videos_go_round_the_kinds(made):
    kinds = [record["combination"].split("/")[0] for record in annotations(made, "heldout_clips")]
    assert kinds == list(events.KINDS) * 3


def test_every_text_is_made_of_known_words(made):
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    unknown = tokenizer.token_to_id("<unk>")
    parts = [name + part for name in SPLITS for part in PARTS[name.partition("_")[2]]]
    said = [text for name in parts for text in texts(annotations(made, name))]
    assert len(said) > 1000
    assert not [text for text in said if unknown in tokenizer.encode(text, add_special_tokens=False).ids]
    assert tokenizer.encode("circle nonsense", add_special_tokens=False).ids[1] == unknown
    assert tokenizer.get_vocab_size() <= embedded_words.ROOM == 128  # rows of the packaged checkpoints


def test_the_card_counts_and_fingerprints_the_annotations(made):
    card = json.loads((made / "dataset.json").read_text())
    assert ShapesOptions(**card["options"]) == OPTIONS
    assert card["records"] == {
        "train_arrangements": 110,
        "train_clips": 12,
        "heldout_arrangements": 10,
        "heldout_clips": 12,
    }
    digest = hashlib.sha256()
    for name in SPLITS:
        for part in PARTS[name.partition("_")[2]]:
            digest.update((made / f"{name}{part}.json").read_bytes())
    assert card["annotations_sha256"] == digest.hexdigest()


# --- complete or absent ------------------------------------------------------------------------------------------


def test_progress_counts_every_file(tmp_path):
    calls = []
    shapes.ensure(OPTIONS, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(100, 144), (110, 144), (120, 144), (132, 144), (144, 144)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing(tmp_path, error, workers):
    def stop(done, total):
        raise error

    with pytest.raises(error):
        shapes.ensure(TINY, tmp_path, workers=workers, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert shapes.ensure(TINY, tmp_path).is_dir()


def test_an_interrupted_build_leaves_nothing_while_workers_are_busy(tmp_path):
    """A worker that outlives the build could write into the folder while it is being removed."""
    options = TINY.model_copy(update={"train_arrangements": 1, "train_clips": 120})

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shapes.ensure(options, tmp_path, workers=2, progress=stop)
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_builds_nothing(tmp_path, monkeypatch):
    first = shapes.ensure(TINY, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    monkeypatch.setattr(shapes, "_build", lambda *args: pytest.fail("built again"))
    assert shapes.ensure(TINY, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


def test_a_build_that_another_process_finished_first_is_kept(tmp_path):
    target = shapes.folder(TINY, tmp_path)

    def rival(done, total):
        if done == total:
            target.mkdir()
            (target / "dataset.json").write_text("the rival's")

    assert shapes.ensure(TINY, tmp_path, progress=rival) == target
    assert (target / "dataset.json").read_text() == "the rival's"
    assert list(tmp_path.iterdir()) == [target]


def test_of_processes_that_start_at_once_one_builds(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vlvm_jax.data.embedded import shapes; made = [];"
        "shapes.ensure(shapes.ShapesOptions.model_validate_json(sys.argv[1]), Path(sys.argv[2]),"
        " progress=lambda done, total: made.append(done)); print(any(made))"
    )
    command = [sys.executable, "-c", code, TINY.model_dump_json(), str(tmp_path / "data")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(process.communicate(timeout=300)[0].strip() for process in started) == ["False", "False", "True"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [shapes.folder(TINY).name]
