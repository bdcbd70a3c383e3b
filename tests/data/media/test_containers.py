"""Bytes of media wherever they lie: files, folders and lists of frames, shards, Parquet, TFDS."""

from pathlib import Path

import pytest
from support.stored import clip, jpeg, shades, write_shards

from vlvm_jax.data.media import containers
from vlvm_jax.data.media.containers import frame_names, frame_rate, open_medium
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.errors import InputError


def content(path):
    with open_medium(path) as file:
        return shades(file)


def test_a_file_is_one_medium(tmp_path):
    (tmp_path / "v#1.mp4").write_bytes(clip([0, 100, 200]))
    (tmp_path / "i.jpg").write_bytes(jpeg(77))
    assert content(str(tmp_path / "v#1.mp4")) == pytest.approx([0, 100, 200], abs=3)
    assert content(str(tmp_path / "i.jpg")) == [77]
    for name in ("v#1.mp4", "i.jpg", "absent.mp4"):
        assert frame_names(str(tmp_path / name)) is None and frame_rate(str(tmp_path / name)) is None
    with pytest.raises(FileNotFoundError):
        open_medium(str(tmp_path / "absent.mp4"))
    with pytest.raises(IsADirectoryError):
        open_medium(str(tmp_path))


def test_a_folder_of_frames_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "clip.mp4"
    folder.mkdir()
    for name in ("f10.jpg", "f9.PNG", "f1.webp", "f2.jpeg", "notes.txt", "g1.bmp"):
        (folder / name).touch()
    (folder / "f3.jpg.d").mkdir()
    names = [f"{folder}/{name}" for name in ("f1.webp", "f2.jpeg", "f9.PNG", "f10.jpg", "g1.bmp")]
    assert frame_names(str(folder)) == frame_names(f"{folder}/") == names
    (tmp_path / "empty").mkdir()
    assert frame_names(str(tmp_path / "empty")) == []


def test_a_list_of_frames_in_its_own_order(tmp_path):
    for name, shade in (("b.jpg", 10), ("a.jpg", 20)):
        (tmp_path / name).write_bytes(jpeg(shade))
    names = [f"{tmp_path}/b.jpg", f"{tmp_path}/a.jpg"]
    found = frame_names("\t".join(names))
    assert found == names and [content(name) for name in names] == [[10], [20]]


# --- shards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path):
    media = [
        StoredMedium("image", "i.jpg", jpeg(30)),
        StoredMedium("video", "v.mp4", clip([10, 240])),
        StoredMedium("video", "c", frames=(jpeg(40), jpeg(50)), fps=2.0),
    ]
    folder = write_shards(tmp_path / "made", [[({"id": "0"}, media), ({"id": "1"}, [])]])
    return f"{folder}/clips-00000-of-00001.array_record"


def test_media_in_a_shard(shard):
    assert content(f"{shard}#0/0") == [30]
    assert content(f"{shard}#0/1") == pytest.approx([10, 240], abs=3)
    assert frame_names(f"{shard}#0/1") is None and frame_rate(f"{shard}#0/1") is None
    assert frame_names(f"{shard}#0/2") == [f"{shard}#0/2/0", f"{shard}#0/2/1"]
    assert [content(name) for name in frame_names(f"{shard}#0/2")] == [[40], [50]]
    assert frame_rate(f"{shard}#0/2") == 2.0


def test_what_a_shard_does_not_hold(shard, tmp_path):
    for place in ("0/3", "1/0", "2/0", "0/0/0", "0/2/2"):
        with pytest.raises(ValueError, match="clips-00000-of-00001"):
            open_medium(f"{shard}#{place}")
    with pytest.raises(ValueError, match="is not one file"):
        open_medium(f"{shard}#0/2")
    with pytest.raises(FileNotFoundError):
        open_medium(f"{tmp_path}/absent.array_record#0/0")


@pytest.mark.parametrize("damage", ["cut", "overwritten", "zeros", "empty"])
def test_a_damaged_shard_is_a_value_error(shard, tmp_path, damage):
    data = Path(shard).read_bytes()
    wrong = {
        "cut": data[: len(data) // 2],
        "overwritten": data[:300] + bytes(byte ^ 255 for byte in data[300:3000]) + data[3000:],
        "zeros": bytes(len(data)),
        "empty": b"",
    }[damage]
    path = tmp_path / f"{damage}.array_record"
    path.write_bytes(wrong)
    with pytest.raises(ValueError, match=rf"{damage}\.array_record") as caught:
        open_medium(f"{path}#0/0")
    assert "\n" not in str(caught.value)


# --- what comes with extras --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "extra"), [("pyarrow.parquet", "parquet"), ("tensorflow_datasets", "tfds")])
def test_an_extra_that_is_not_installed_is_named(monkeypatch, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)  # as if not installed
    with pytest.raises(InputError) as caught:
        containers.need(module, extra)
    assert str(caught.value) == (
        f"{module} is not installed, which reads this data; run: pip install 'vlvm_jax[{extra}]'"
    )
