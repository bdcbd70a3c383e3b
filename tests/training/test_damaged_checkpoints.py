"""Damaged checkpoints: said by name before anything is restored, renamed aside, the newest whole one taken."""

import json
import shutil
import time

import numpy as np
import pytest
from etils import epath
from orbax.checkpoint._src.metadata import checkpoint as metadata_store
from support import stage_states

from vlvm_jax import manifest, storage
from vlvm_jax.errors import InputError
from vlvm_jax.training.checkpoint import StageCheckpoints
from vlvm_jax.weights import integrity


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = StageCheckpoints(folder, keep=3)
    for step in (1, 2, 3):
        stage_states.save(checkpoints, step)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def flip(file, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def restored(folder) -> int:
    """The step of the parameters that are restored, from their values."""
    checkpoints = StageCheckpoints(folder, keep=3)
    values = checkpoints.restore_params(stage_states.abstract())
    checkpoints.close()
    (step,) = [
        step
        for step in (1, 2, 3)
        if all(np.array_equal(values[path], drawn) for path, drawn in stage_states.params(step).items())
    ]
    return step


def files_of(step) -> list[str]:
    return [name for name in storage.listing(str(step)) if name != "commit_success.txt"]


def test_a_local_save_is_waited_for_while_a_bucket_fails(tmp_path, monkeypatch):
    measure = manifest.measure

    def slow(*arguments):
        time.sleep(1)
        return measure(*arguments)

    monkeypatch.setattr(manifest, "measure", slow)
    checkpoints = StageCheckpoints(tmp_path / "checkpoints", keep=1)
    storage.StorageError("gs://b/clip.mp4: storage does not work")  # made anywhere in the process
    assert storage.failing.is_set()
    stage_states.save(checkpoints, 1, wait=False)
    assert not (tmp_path / "checkpoints" / "1").exists()
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "1").exists()


@pytest.mark.parametrize("method", ["write", "update"])
def test_metadata_that_orbax_writes_late_are_waited_for(tmp_path, monkeypatch, method):
    own = getattr(metadata_store._MetadataStoreImpl, method)

    def late(*arguments, **values):
        time.sleep(0.5)
        return own(*arguments, **values)

    monkeypatch.setattr(metadata_store._MetadataStoreImpl, method, late)
    checkpoints = StageCheckpoints(epath.Path(tmp_path / "checkpoints"), keep=1)
    stage_states.save(checkpoints, 1)
    checkpoints.close()
    assert restored(tmp_path / "checkpoints") == 1


def test_every_file_of_a_step_is_in_its_manifest(saved):
    known = manifest.load((saved / "3" / manifest.FILE).read_bytes())
    assert known.keys() == set(files_of(saved / "3")) - {manifest.FILE}
    arrays = {array for entry in known.values() for array in entry.arrays}
    assert arrays >= {"adapter/connector/linear_1/kernel", "decoder/embed_tokens/embedding"}


def test_arrays_are_measured_while_other_items_are_being_written(tmp_path, monkeypatch):
    """Not after everything else: a save would take so much longer."""
    calls, measure = [], manifest.measure

    def noted(folder, names, *rest):
        calls.append((folder, set(names)))
        return measure(folder, names, *rest)

    monkeypatch.setattr(manifest, "measure", noted)
    checkpoints = StageCheckpoints(tmp_path / "checkpoints", keep=1)
    stage_states.save(checkpoints, 1)
    checkpoints.close()
    *items, (_, rest) = calls
    assert {"params", "opt_state"} <= {folder.rpartition("/")[2].partition(".")[0] for folder, _ in items}
    assert not [name for name in rest if "/ocdbt.process_0/" in name]


@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_in_any_file_is_said_by_name(folder, capsys, place):
    step = folder / "3"
    for name in files_of(step):
        before = (step / name).read_bytes()
        if not before:
            continue
        flip(step / name, place)
        with pytest.raises(integrity.Damaged) as raised:
            integrity.check_step(epath.Path(step))
        assert f"{step}: damaged: {name}: " in str(raised.value) and "\n" not in str(raised.value)
        (step / name).write_bytes(before)
    assert integrity.check_step(epath.Path(step))
    assert not capsys.readouterr().err


def test_a_flipped_byte_in_an_array_names_the_array(folder):
    known = manifest.load((folder / "3" / manifest.FILE).read_bytes())
    named = 0
    for name, entry in known.items():
        offset = 0
        for size, _, array in entry.parts:
            if "kernel" in array or "embedding" in array:
                flip(folder / "3" / name, offset + size // 2)
                with pytest.raises(integrity.Damaged, match=rf"{name}: checksum differs; arrays: {array}$"):
                    integrity.check_step(epath.Path(folder / "3"))
                flip(folder / "3" / name, offset + size // 2)
                named += 1
            offset += size
    assert named == 6  # two parameters, each with two moments


DAMAGES = {
    "flipped parameters": lambda step: flip(max(step.glob("params/ocdbt.process_0/d/*"), key=size), 100),
    "flipped moments": lambda step: flip(max(step.glob("opt_state/ocdbt.process_0/d/*"), key=size), 100),
    "flipped node": lambda step: flip(next(step.glob("params/d/*")), 9),
    "another node": lambda step: next(step.glob("progress/d/*")).write_bytes(
        next((step.parent / "1").glob("progress/d/*")).read_bytes()
    ),
    "truncated": lambda step: (step / "params" / "manifest.ocdbt").write_bytes(b"OCDB"),
    "zero length": lambda step: (step / "data" / "reader_0-of-1.json").write_bytes(b""),
    "missing": lambda step: (step / "params" / "_METADATA").unlink(),
    "missing item": lambda step: shutil.rmtree(step / "opt_state"),
    "extra": lambda step: (step / "data" / "reader_1-of-2.json").write_text('{"taken": 9}'),
    "manifest missing": lambda step: (step / manifest.FILE).unlink(),
    "manifest lost a line": lambda step: (step / manifest.FILE).write_text(
        "".join((step / manifest.FILE).read_text().splitlines(keepends=True)[1:])
    ),
    "metadata missing": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "metadata flipped": lambda step: flip(step / "_CHECKPOINT_METADATA", 0),
    "metadata and manifest": lambda step: (
        (step / "_CHECKPOINT_METADATA").write_text("{"), (step / manifest.FILE).unlink(),
    ),
}  # fmt: skip


def size(file) -> int:
    return file.stat().st_size


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_renamed_aside_and_the_one_before_taken(folder, capsys, damage):
    DAMAGES[damage](folder / "3")
    assert restored(folder) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3.damaged"]
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"warning: {folder}") for line in said] == [True, True]
    assert "DAMAGED: " in said[0] and "renamed to 3.damaged" in said[0] and "taking step 2" in said[1]


def test_the_newest_step_is_that_of_the_highest_number(tmp_path):
    """Steps without a manifest, in any order; as text, 9 would come after 10."""
    steps = [epath.Path(tmp_path) / name for name in ("2", "10", "9")]
    for step in steps:
        (step / "params").mkdir(parents=True)
    assert integrity.newest_whole(steps) == steps[1]
    assert integrity.newest_whole([]) is None


def test_a_step_that_was_renamed_aside_counts_for_nothing(folder):
    """Neither as the newest nor among those that are kept, and nothing deletes it; it may happen again."""
    for _ in range(2):
        flip(next((folder / "3").glob("params/d/*")))
        checkpoints = StageCheckpoints(folder, keep=2)
        assert checkpoints.newest_whole() == checkpoints.latest() == 2
        stage_states.save(checkpoints, 3)
        assert checkpoints.newest_whole() == 3
        checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "3.damaged", "3.damaged.2"]


def test_where_every_step_is_damaged_nothing_is_renamed(folder):
    for step in ("1", "2", "3"):
        flip(next((folder / step).glob("params/d/*")))
    checkpoints = StageCheckpoints(folder, keep=3)
    with pytest.raises(InputError) as raised:
        checkpoints.newest_whole()
    checkpoints.close()
    assert str(raised.value).startswith(f"{folder}: every step is damaged (3: params/d/")
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_a_step_from_before_manifests_is_restored_and_said_to_be_unverified(folder, capsys):
    for step in ("2", "3"):
        make_old(folder / step)
    assert restored(folder) == restored(folder) == 3
    assert capsys.readouterr().err == f"warning: {folder / '3'}: not verified: it was written without a manifest\n"
    next((folder / "3").glob("params/d/*")).unlink()
    with pytest.raises(InputError, match=r"3: cannot be read \(.*, and has no manifest"):
        restored(folder)


def make_old(step) -> None:
    """As it was written before there were manifests."""
    (step / manifest.FILE).unlink()
    file = step / "_CHECKPOINT_METADATA"
    file.write_text(json.dumps({**json.loads(file.read_text()), "custom_metadata": {}}))


def test_in_a_bucket_sums_are_those_of_the_listing(bucket, capsys):
    """Nothing is fetched for it but the manifest."""
    folder = f"{bucket.root}/damaged/checkpoints"
    checkpoints = StageCheckpoints(folder, keep=3)
    for step in (1, 2, 3):
        stage_states.save(checkpoints, step)
    checkpoints.close()
    assert restored(folder) == 3
    known = manifest.load(storage.read_bytes(f"{folder}/3/{manifest.FILE}"))
    assert known.keys() == set(files_of(f"{folder}/3")) - {manifest.FILE}
    name = next(name for name, entry in known.items() if "decoder/embed_tokens/embedding" in entry.arrays)
    data = bytearray(storage.read_bytes(f"{folder}/3/{name}"))
    data[-1] ^= 1
    storage.write_bytes(f"{folder}/3/{name}", bytes(data))
    before = len(bucket.requests)
    with pytest.raises(integrity.Damaged, match=rf"{name}: checksum differs; arrays: decoder/embed_tokens/embedding$"):
        integrity.check_step(epath.Path(f"{folder}/3"))
    read = {path for method, path in bucket.requests[before:] if "alt=media" in path}
    assert len(read) <= 2 and all("manifest" in path or "METADATA" in path for path in read)
    assert restored(folder) == 2
    assert storage.names(folder) == ["1", "2", "3.damaged"]
    assert "renamed to 3.damaged" in capsys.readouterr().err
    for step in (1, 2):
        storage.write_bytes(f"{folder}/{step}/data/reader_0-of-1.json", b"")
    with pytest.raises(InputError, match="every step is damaged"):
        restored(folder)
