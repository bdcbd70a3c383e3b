"""Sources and media in a bucket are those in a folder; storage that fails is no bad record."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import yaml
from support import gcs
from support.stored import clip, jpeg, shades, write_shards

from vlvm_jax import storage
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import containers
from vlvm_jax.data.media.containers import frame_names, open_medium
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.errors import InputError

pytestmark = pytest.mark.slow

SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.fixture
def folder(tmp_path):
    """Every kind of source, with media."""
    made = tmp_path / "made"
    (made / "media" / "frames").mkdir(parents=True)
    (made / "media" / "v.mp4").write_bytes(clip([10, 200]))
    for number in (2, 10):
        (made / "media" / "frames" / f"f{number}.jpg").write_bytes(jpeg(number))
    raw = [{"id": name, "video": name, "conversations": SAID} for name in ("v.mp4", "frames", "absent.mp4")]
    (made / "a1.json").write_text(json.dumps(raw))
    (made / "a2.jsonl").write_text("\n".join(map(json.dumps, raw)))
    (made / "m.yaml").write_text(yaml.safe_dump({"datasets": [{"json_path": "a{1.json,2.jsonl}"}]}))
    (made / "c.json").write_text(json.dumps([{"video_id": "v", "q": "q", "a": "a"}]))
    stored = StoredMedium("video", "v.mp4", clip([50]))
    write_shards(made / "shards", [[({"id": str(i), "video": "v.mp4", "conversations": SAID}, [stored])
                                    for i in range(20)]])  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table({"image": [jpeg(7)], "conversations": [SAID]}), made / "t.parquet")
    return made


@pytest.fixture
def bucket(tmp_path, folder, monkeypatch):
    """The same files in a bucket."""
    (tmp_path / "bucket").mkdir()
    with gcs.serve(tmp_path / "bucket") as bucket:
        for key, value in bucket.environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.delenv("CLOUD_STORAGE_EMULATOR_ENDPOINT")  # the library's own doing
        for file in folder.rglob("*"):
            if file.is_file():
                storage.write_bytes(f"{bucket.root}/made/{file.relative_to(folder)}", file.read_bytes())
        yield bucket
    containers._array_record.cache_clear()


def content(root, **options):
    """Of each record its id, and what its media show."""
    found = []
    for record in open_source(MixtureEntry(**options)):
        ((_, path),) = record.media
        assert path.startswith(root)
        try:
            names = frame_names(path)
            shown = [shades(open_medium(name))[0] for name in names] if names else shades(open_medium(path))
        except FileNotFoundError:
            shown = "missing"
        found.append((record.id, shown))
    return found


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_bucket_is_a_folder(folder, bucket, share):
    bucket.faults = gcs.Faults(share, ("429", "500", "503", "cut"), seed=1)
    for path in ("a1.json", "a2.jsonl", "m.yaml", "c.json", "shards", "shards/*.array_record", "t.parquet"):
        media = "media" if path[-1] in "nl" else None
        here = content(str(folder), path=f"{folder}/{path}", media_root=media and f"{folder}/{media}")
        root = f"{bucket.root}/made"
        assert here == content(root, path=f"{root}/{path}", media_root=media and f"{root}/{media}"), path
        assert here
    assert bool(share) == any(count for kind, count in bucket.faults.done.items() if kind != "ok")
    with pytest.raises(InputError, match="no such annotation file"):
        open_source(MixtureEntry(path=f"{bucket.root}/made/absent.json"))
    with pytest.raises(InputError, match="no file has such a name"):
        open_source(MixtureEntry(path=f"{bucket.root}/made/absent*.json"))


def test_a_shard_that_is_not_there_or_damaged(folder, bucket):
    shard = f"{bucket.root}/made/shards/clips-00000-of-00001.array_record"
    source = open_source(MixtureEntry(path=shard))
    data = storage.read_bytes(shard)
    storage.write_bytes(shard, data[: len(data) // 2])
    with pytest.raises(BadSampleError):
        source[0]
    containers._array_record.cache_clear()
    shutil.rmtree(folder)
    copy = shard.replace("clips", "other")
    storage.write_bytes(
        copy.replace(".array_record", ".json"), storage.read_bytes(shard[: -len("array_record")] + "json")
    )
    with pytest.raises(BadSampleError, match="there is no file"):
        open_source(MixtureEntry(path=copy))[0]


READ = """
import sys
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.media import containers
from vlvm_jax.data.sources.mixture import open_source
from vlvm_jax.storage import StorageError
containers._PATIENCE = 3.0
source = open_source(MixtureEntry(path=sys.argv[1]))
if sys.argv[2] == "opened":
    source[0]
print("ready", flush=True)
input()
try:
    source[11]
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("when", ["opened", "not opened"])
@pytest.mark.parametrize("kind", ["503", "stall"])
def test_storage_that_fails_while_shards_are_read(bucket, when, kind):
    """ArrayRecord's reader would ask for a quarter of an hour."""
    command = [sys.executable, "-c", READ, f"{bucket.root}/made/shards", when]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        bucket.faults = gcs.Faults(1.0, (kind,))
        said, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert said.strip().endswith("storage does not answer (nothing came in 3 s)")


class Questions(tfds.core.GeneratorBasedBuilder):
    """Three clips with a question each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "id": features.Text(),
                    "video": features.Tensor(shape=(), dtype=np.object_),
                    "question": features.Text(),
                    "answer": features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            yield i, {"id": f"n{i}", "video": clip([50 * i]), "question": "q", "answer": "a"}


def test_a_tfds_data_set_in_a_bucket(tmp_path, bucket):
    made = Questions(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    made.download_and_prepare()
    root = f"{bucket.root}/questions"
    made = str(made.data_path)
    for file in Path(made).iterdir():
        storage.write_bytes(f"{root}/{file.name}", file.read_bytes())
    here = content(made, path=f"{made}@train")
    assert here == content(root, path=f"{root}@train") and len(here) == 3
    with pytest.raises(InputError, match=r"no split 'test'; there are train"):
        open_source(MixtureEntry(path=f"{root}@test"))
