"""Sources through the loader: what workers read of annotation files, shards and tables, and what they count as bad."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import gcs
from support.specs import make_spec
from support.stored import clip, jpeg, write_shards

from vlvm_jax import storage
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.batch.dataset import make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.sample.loader import SampleLoader, check_lengths
from vlvm_jax.data.sources.mixture import read_mixture
from vlvm_jax.errors import InputError

SAID = [{"from": "human", "value": "how many ?"}, {"from": "gpt", "value": "two"}]


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    embedded_words.tokenizer().save(str(folder / "tokenizer.json"))
    return make_spec(
        length=40, frames=4, frames_per_video=4, image_size=8, image_tokens=3, video_tokens=(0, 2, 5, 7, 11),
        tokenizer=str(folder), chat_template="bare",
    )  # fmt: skip


@pytest.fixture
def mixture(tmp_path):
    """Two images and two lines that are no records, two clips in a shard, an image in a table; shades 20, 40, ...

    The first clip counts from its second second on, where its shade is 60.
    """
    for shade in (20, 40):
        (tmp_path / f"{shade}.jpg").write_bytes(jpeg(shade))
    lines = [json.dumps({"image": f"{shade}.jpg", "conversations": SAID}) for shade in (20, 40)]
    (tmp_path / "n.jsonl").write_text("\n".join([lines[0], '{"image": "x.jpg"}', lines[1], "{oops"]))
    write_shards(tmp_path / "made", [[
        ({"id": "v", "video": "v.mp4", "conversations": SAID, "start": 1},
         [StoredMedium("video", "v.mp4", clip([0] * 10 + [60] * 5))]),
        ({"id": "f", "video": "f", "conversations": SAID},
         [StoredMedium("video", "f", frames=(jpeg(80), jpeg(80)), fps=1.0)]),
    ]])  # fmt: skip
    table = pyarrow.table({"image": [jpeg(100)], "conversations": [SAID]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    return read_mixture([MixtureEntry(path=str(tmp_path / name)) for name in ("n.jsonl", "made", "t.parquet")], 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_every_source(mixture, spec, workers, tmp_path):
    log = SkipLog(mixture, 0.5, path=None)
    batches = list(make_dataset(mixture, spec, rows=7, pack=False, skip_log=log, seed=None, workers=workers))
    assert log.summary() == {"bad_record": 2}
    rows = []
    for batch in batches:
        for record, frames, media in zip(batch["record"], batch["frames"], batch["media"], strict=True):
            if media.any():
                rows.append((int(record.max()), {round(float(frame.mean()), -1) for frame in frames[media > 0]}))
    assert rows == [(0, {20}), (2, {40}), (4, {60}), (5, {80}), (6, {100})]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["v.mp4", "i.jpg", "frames"])
def test_media_that_storage_refuses_end_the_run_and_count_as_no_sample(spec, bucket, tmp_path, name, workers):
    media = f"{bucket.root}/{tmp_path.name}"
    storage.write_bytes(f"{media}/v.mp4", clip([0]))
    for image in ("i.jpg", "frames/1.jpg"):
        storage.write_bytes(f"{media}/{image}", jpeg(0))
    kind = "image" if name.endswith("jpg") else "video"
    (tmp_path / "a.json").write_text(json.dumps([{kind: name, "conversations": SAID}] * 2))
    mixture = read_mixture([MixtureEntry(path=str(tmp_path / "a.json"), media_root=media)], 0)
    log = SkipLog(mixture, 1.0, path=None)
    batches = make_dataset(mixture, spec, rows=1, pack=False, skip_log=log, seed=None, workers=workers)
    bucket.faults = gcs.Faults(1.0, ("403",))
    with pytest.raises(InputError, match=rf"^{media}/.*: no access \("):
        list(batches)
    bucket.faults = gcs.Faults()
    assert log.summary() == {}


def test_a_bad_record_is_noted_with_what_is_wrong(mixture, spec, tmp_path):
    loader = SampleLoader(mixture, spec)
    note = json.loads(loader(1)["bad"].tobytes())
    assert (note["record"], note["cause"]) == (1, "bad_record")
    assert note["detail"] == f"{tmp_path}/n.jsonl: record 1: no 'conversations' list; this is not the LLaVA format"
    note = json.loads(loader(3)["bad"].tobytes())
    assert note["detail"].startswith(f"{tmp_path}/n.jsonl: record 3: not JSON")
    assert not len(loader(0)["bad"]) and np.any(loader(0)["frames"])


def test_a_file_of_bad_records_fails_before_anything_runs(spec, tmp_path):
    good = json.dumps({"conversations": SAID})
    (tmp_path / "n.jsonl").write_text("\n".join([good] * 8 + ["{}"] * 2))
    mixture = read_mixture([MixtureEntry(path=str(tmp_path / "n.jsonl"))], 0)
    check_lengths(SampleLoader(mixture, spec), "config.stages.s", 0.2)
    (tmp_path / "n.jsonl").write_text("\n".join([good] * 7 + ["{}"] * 3))
    mixture = read_mixture([MixtureEntry(path=str(tmp_path / "n.jsonl"))], 0)
    with pytest.raises(InputError) as caught:
        check_lengths(SampleLoader(mixture, spec), "config.stages.s", 0.2)
    assert str(caught.value) == (
        f"config.stages.s.data: 3 of 10 records probed do not parse; {tmp_path}/n.jsonl: record 7: "
        "no 'conversations' list; this is not the LLaVA format"
    )
