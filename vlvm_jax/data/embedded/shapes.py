"""The embedded data set: scenes written once as real PNG and MP4 files with LLaVA-format JSON beside them.

Training reads it through the same path as anybody's data. The folder's name holds a hash of all that decides its
content; a folder is complete or absent (it is built under another name and renamed).
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
import pydantic
from etils import epath
from PIL import Image
from pydantic import Field, PositiveInt
from tokenizers import Tokenizer, models, pre_tokenizers

from vlvm_jax import storage
from vlvm_jax.config import Settings
from vlvm_jax.data.embedded import scenes
from vlvm_jax.data.workers import pool

_INFO = "dataset.json"  # the last file that is written
SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<image>")


class ShapesOptions(Settings):
    """How much to make, and how large.

    `size` and `num_frames` are the files' own, not the model's: the loader samples and resizes like for any clip.
    """

    train_images: PositiveInt = 12000
    train_videos: PositiveInt = 4000
    heldout_images: PositiveInt = 200
    heldout_videos: PositiveInt = 240
    size: PositiveInt = 48
    num_frames: PositiveInt = 16
    fps: PositiveInt = 8
    kinds: tuple[Literal["move", "appear", "change"], ...] = Field(default=("move", "move", "appear", "change"))
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.size % 2:
            raise ValueError(f"size {self.size} is odd; H.264 needs an even one")
        return self

    @property
    def hash(self) -> str:
        """Of the options and of the code that draws, asks and writes: a change of either is another data set."""
        code = "".join(Path(module).read_text() for module in (scenes.__file__, __file__))
        text = json.dumps({"code": code, **self.model_dump(mode="json")}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Split:
    """One annotation file: its scenes, and which of what is asked goes in."""

    name: str
    kinds: tuple[str, ...]
    count: int
    held_out: bool


def default_root() -> epath.Path:
    """`$VLVM_JAX_DATA`, which may be in a bucket, or the user's cache folder."""
    return epath.Path(os.environ.get("VLVM_JAX_DATA", _cache()))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlvm_jax"


def folder(options: ShapesOptions, root: epath.PathLike | None = None) -> epath.Path:
    """Where the data set with these options lives, whether or not it exists yet."""
    place = epath.Path(root or default_root()) / f"shapes-{options.hash}"
    return place if storage.is_remote(str(place)) else cast(epath.Path, Path(place))


def exists(options: ShapesOptions, root: epath.PathLike | None = None) -> bool:
    """Whether the data set is there, all of it."""
    return storage.is_file(str(folder(options, root) / _INFO))


def splits(options: ShapesOptions) -> list[Split]:
    return [
        Split("train_images", ("image",), options.train_images, held_out=False),
        Split("train_videos", options.kinds, options.train_videos, held_out=False),
        Split("heldout_images", ("image",), options.heldout_images, held_out=True),
        Split("heldout_videos", options.kinds, options.heldout_videos, held_out=True),
    ]


def ensure(
    options: ShapesOptions,
    root: epath.PathLike | None = None,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> epath.Path:
    """Makes the data set if it is not there, and returns its folder; one process of a machine makes it, others wait.

    One in a bucket is made in the user's cache folder and copied.

    Writes `<split>.json` (conversations), `<split>_captions.json`, `media/<split>/*.png|mp4`, `tokenizer.json` and
    `dataset.json` (options, counts, content hash of the annotations).

    Args:
      workers: processes that render; 0 renders in this one. The result does not depend on it.
      progress: called with files done and files in all.
    """
    target = folder(options, root)
    if exists(options, root):
        return target
    if storage.is_remote(str(target)):
        made = ensure(options, _cache(), workers=workers, progress=progress)
        storage.upload(Path(made), str(target), last=_INFO)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent, lambda: progress(0, sum(split.count for split in splits(options)))):
        if not target.exists():
            _make(options, Path(target), workers, progress)
    return target


@contextlib.contextmanager
def _locked(root: epath.Path, waiting: Callable[[], None]) -> Generator[None, None, None]:
    """One process at a time; the lock goes with a process that dies. `waiting` is called while another has it."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def _make(options: ShapesOptions, target: Path, workers: int, progress: Callable[[int, int], None]) -> None:
    building = target.with_name(f"{target.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        _build(options, building, workers, progress)
        building.rename(target)
    except FileExistsError:  # another machine finished first; its content is the same
        pass
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(options: ShapesOptions, path: Path, workers: int, progress: Callable[[int, int], None]) -> None:
    tasks = []
    for number, split in enumerate(splits(options)):
        (path / "media" / split.name).mkdir(parents=True)
        chunk = 100
        for start in range(0, split.count, chunk):
            tasks.append((options, str(path), number, start, min(start + chunk, split.count)))
    total = sum(split.count for split in splits(options))
    records: dict[str, list[dict]] = {split.name: [] for split in splits(options)}
    done = 0
    with contextlib.closing(_run(tasks, workers)) as chunks:  # no worker may still write when this is left
        for (_, _, number, start, stop), made in zip(tasks, chunks, strict=True):
            records[splits(options)[number].name] += made
            done += stop - start
            progress(done, total)
    digest = hashlib.sha256()
    for name, made in records.items():
        for suffix, part in (("", "conversations"), ("_captions", "caption")):
            kept = [{k: v for k, v in r.items() if k not in ("conversations", "caption", "types")} for r in made]
            for record, source in zip(kept, made, strict=True):
                record["conversations"] = source[part]
                if part == "conversations":
                    record["types"] = source["types"]
                else:
                    record["type"] = "caption"
            text = json.dumps(kept)
            digest.update(text.encode())
            (path / f"{name}{suffix}.json").write_text(text)
    tokenizer().save(str(path / "tokenizer.json"))
    info = {
        "options": options.model_dump(mode="json"),
        "records": {name: len(made) for name, made in records.items()},
        "annotations_sha256": digest.hexdigest(),
    }
    (path / _INFO).write_text(json.dumps(info, indent=2))


def _run(tasks: list[tuple], workers: int) -> Generator[list[dict], None, None]:
    if not workers:
        yield from map(_write_chunk, tasks)
        return
    with pool(workers) as processes:
        yield from processes.map(_write_chunk, tasks)


def _write_chunk(task: tuple) -> list[dict]:
    options, path, number, start, stop = task
    split = splits(options)[number]
    return [_write_one(options, Path(path), split, number, index) for index in range(start, stop)]


def _write_one(options: ShapesOptions, path: Path, split: Split, number: int, index: int) -> dict:
    rng = np.random.default_rng([options.seed, number, index])
    kind = split.kinds[index % len(split.kinds)]
    scene = scenes.draw_scene(rng, kind, held_out=split.held_out)
    medium = "image" if kind == "image" else "video"
    name = f"media/{split.name}/{index:06d}.{'png' if medium == 'image' else 'mp4'}"
    if medium == "image":
        Image.fromarray(scenes.render(scene, 1, options.size)[0]).save(path / name, compress_level=1)
    else:
        write_mp4(path / name, scenes.render(scene, options.num_frames, options.size), options.fps)
    asked = scenes.questions(scene, rng)
    return {
        "id": f"{split.name}/{index:06d}",
        medium: name,
        "combination": "/".join(scenes.combination(scene)),
        "conversations": conversation([(q.question, q.answer) for q in asked]),
        "types": [q.type for q in asked],
        "caption": conversation([(scenes.CAPTION_PROMPTS[medium], scenes.caption(scene))]),
    }


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Question-answer pairs as LLaVA turns, the placeholder in the first."""
    said = []
    for number, (question, answer) in enumerate(turns):
        said.append({"from": "human", "value": question if number else f"<image>\n{question}"})
        said.append({"from": "gpt", "value": answer})
    return said


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    """H.264, yuv420p; uint8 frames [T, H, W, 3] with even H and W."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def tokenizer() -> Tokenizer:
    """One token per word of the scenes' vocabulary."""
    words = [*SPECIAL_TOKENS, *scenes.vocabulary()]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.add_special_tokens(list(SPECIAL_TOKENS))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def vocab_size() -> int:
    """Rounded up to a multiple of 64, so that any mesh divides it."""
    return -(-(len(SPECIAL_TOKENS) + len(scenes.vocabulary())) // 64) * 64
