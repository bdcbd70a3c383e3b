"""The embedded data set: scenes written once as real PNG and MP4 files with LLaVA-format JSON beside them.

Training reads it through the same path as anybody's data. The folder's name holds a hash of all that decides its
content; a folder is complete or absent (it is built under another name and renamed).
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydantic
from etils import epath
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from vlvm_jax import storage
from vlvm_jax.config import Settings
from vlvm_jax.data.embedded import (
    arrangement_files,
    arrangements,
    events,
    files,
    scenes,
    searches,
    stories,
    story_files,
    words,
)
from vlvm_jax.data.embedded.files import Split, conversation, write_mp4
from vlvm_jax.workers import pool

_INFO = "dataset.json"  # the last file that is written
_BUILDING = ".building-"  # in the name of a folder that is not complete, before the host and the process
_ABANDONED = 24 * 3600  # seconds without a change after which nobody is making it any more
# Of a record, and the files they go to.
_PARTS = {"conversations": "", "caption": "_captions", "pair": "_pairs", "patch": "_patches", "listing": "_listings"}
_OF_ARRANGEMENTS = ("arrangements", "sets", "signs", "timeless_texts", "clips")  # ends of names of options
_GONE = ("train_images", "train_videos", "heldout_images", "heldout_videos")  # of earlier versions
_GONE_WITH_THEM = ("num_frames", "kinds")
_SINGLES = 6  # number of the split of which sheets are made
_SINGLES_A_SHEET = 8  # singles there have to be for each image of a sheet, so that none need be in it twice


class ShapesOptions(Settings):
    """How much to make, and how large; nothing where it is not said.

    `size` is the files' own, not the model's: the loader samples and resizes like for any clip.

    What `embedded.arrangements` draws, images of `size` pixels: `*_arrangements` of up to six things, `*_sets` of two
    or three images, `*_signs` with words to read, and `train_timeless_texts`, stories as text; `*_clips`, what
    `embedded.events` draws.

    `*_searches`, `*_singles` and `train_sheets` count what `embedded.searches` draws, of `search_size` pixels: clips of
    `search_frames` frames, of which a rare thing shows in `search_shown` and a small one fills a cell of `search_cells`
    x `search_cells`; and records of up to `sheet_images` of the singles.

    What `embedded.stories` draws: `*_stories` clips of three to six events, `heldout_long_stories` of eight to twelve;
    `train_story_texts`, stories of any length as text with questions; `train_long_texts`, texts of six to sixteen
    events with one question each; `train_events`, single events as images and as words.
    """

    size: PositiveInt = 64
    fps: PositiveInt = 8
    seed: int = 0
    train_searches: NonNegativeInt = 0
    heldout_searches: NonNegativeInt = 0
    train_singles: NonNegativeInt = 0
    heldout_singles: NonNegativeInt = 0
    train_sheets: NonNegativeInt = 0
    search_size: PositiveInt = 96
    search_frames: PositiveInt = 32
    search_shown: PositiveInt = 2
    search_cells: int = Field(default=6, ge=4)
    sheet_images: int = Field(default=8, ge=2)
    train_stories: NonNegativeInt = 0
    heldout_stories: NonNegativeInt = 0
    heldout_long_stories: NonNegativeInt = 0
    train_story_texts: NonNegativeInt = 0
    train_long_texts: NonNegativeInt = 0
    train_events: NonNegativeInt = 0
    train_arrangements: NonNegativeInt = 0
    heldout_arrangements: NonNegativeInt = 0
    train_sets: NonNegativeInt = 0
    heldout_sets: NonNegativeInt = 0
    train_signs: NonNegativeInt = 0
    heldout_signs: NonNegativeInt = 0
    train_timeless_texts: NonNegativeInt = 0
    train_clips: NonNegativeInt = 0
    heldout_clips: NonNegativeInt = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, given: Any) -> Any:
        """Runs of earlier versions say of some data that there is none of it."""
        if not isinstance(given, dict):
            return given
        if asked := [name for name in _GONE if given.get(name)]:
            raise ValueError(f"{asked[0]}: no such data is made any more; there are train_arrangements and train_clips")
        return {name: value for name, value in given.items() if name not in (*_GONE, *_GONE_WITH_THEM)}

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.size % 2:
            raise ValueError(f"size {self.size} is odd; H.264 needs an even one")
        if self.search_size % 2:
            raise ValueError(f"search_size {self.search_size} is odd; H.264 needs an even one")
        least = searches.THINGS * (self.search_shown + 1) - 1
        if self.search_frames < least:
            raise ValueError(
                f"search_frames {self.search_frames}: {searches.THINGS} things, each shown in search_shown "
                f"{self.search_shown} frames and apart by one, take {least}"
            )
        if self.train_sheets and self.train_singles < _SINGLES_A_SHEET * self.sheet_images:
            raise ValueError(
                f"train_sheets are made of train_singles, of which there are {self.train_singles}; sheets of up to "
                f"{self.sheet_images} images need {_SINGLES_A_SHEET * self.sheet_images}"
            )
        return self

    @property
    def has_searches(self) -> bool:
        return any(split.count for split in _search_splits(self))

    @property
    def has_stories(self) -> bool:
        return any(split.count for split in _story_splits(self))

    @property
    def has_arrangements(self) -> bool:
        return any(split.count for split in _arrangement_splits(self))

    @property
    def made_of(self) -> dict[str, Any]:
        """The options that decide the content: those of searches, stories and arrangements where there are some."""
        names = set(type(self).model_fields)
        left_out = set()
        if not self.has_stories:
            left_out |= {name for name in names if "stor" in name or name in ("train_long_texts", "train_events")}
        if not self.has_searches:
            left_out |= {name for name in names if "search" in name or "single" in name or "sheet" in name}
        if not self.has_arrangements:
            left_out |= {name for name in names if name.endswith(_OF_ARRANGEMENTS)}
        return self.model_dump(mode="json", exclude=left_out)

    @property
    def hash(self) -> str:
        """Of the options and of the code that draws, asks and writes: a change of either is another data set."""
        modules = [scenes, files, words]
        modules += [searches] if self.has_searches else []
        modules += [stories, story_files, arrangements] if self.has_stories else []
        modules += [arrangements, arrangement_files, events, stories] if self.has_arrangements else []
        code = "".join(Path(str(path)).read_text() for path in (*(m.__file__ for m in modules), __file__))
        text = json.dumps({"code": code, **self.made_of}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def default_root() -> epath.Path:
    """`$VLVM_JAX_DATA`, which may be in a bucket, or the user's cache folder."""
    return epath.Path(os.environ.get("VLVM_JAX_DATA", storage.user_cache()))


def folder(options: ShapesOptions, root: epath.PathLike | None = None) -> epath.Path:
    """Where the data set with these options lives, whether or not it exists yet."""
    place = epath.Path(root or default_root()) / f"shapes-{options.hash}"
    return place if storage.is_remote(str(place)) else cast(epath.Path, Path(place))


def exists(options: ShapesOptions, root: epath.PathLike | None = None) -> bool:
    """Whether the data set is there, all of it."""
    return storage.is_file(str(folder(options, root) / _INFO))


def splits(options: ShapesOptions) -> list[Split]:
    """Those of which some are asked for."""
    made = (*_search_splits(options), *_story_splits(options), *_arrangement_splits(options))
    return [split for split in made if split.count]


def _search_splits(options: ShapesOptions) -> list[Split]:
    return [
        Split(4, "train_searches", searches.KINDS, options.train_searches, held_out=False),
        Split(5, "heldout_searches", searches.KINDS, options.heldout_searches, held_out=True),
        Split(_SINGLES, "train_singles", ("single",), options.train_singles, held_out=False),
        Split(7, "heldout_singles", ("single",), options.heldout_singles, held_out=True),
        Split(8, "train_sheets", ("sheet",), options.train_sheets, held_out=False),
    ]


def _story_splits(options: ShapesOptions) -> list[Split]:
    return [
        Split(9, "train_stories", ("story",), options.train_stories, held_out=False),
        Split(10, "heldout_stories", ("story",), options.heldout_stories, held_out=True),
        Split(11, "heldout_long_stories", ("long_story",), options.heldout_long_stories, held_out=True),
        Split(12, "train_story_texts", ("story_text",), options.train_story_texts, held_out=False),
        Split(13, "train_long_texts", ("long_text",), options.train_long_texts, held_out=False),
        Split(14, "train_events", ("event",), options.train_events, held_out=False),
        Split(15, "train_event_words", ("words",), options.train_events, held_out=False),
    ]


def _arrangement_splits(options: ShapesOptions) -> list[Split]:
    return [
        Split(16, "train_arrangements", ("arrangement",), options.train_arrangements, held_out=False),
        Split(17, "heldout_arrangements", ("arrangement",), options.heldout_arrangements, held_out=True),
        Split(18, "train_sets", ("set",), options.train_sets, held_out=False),
        Split(19, "heldout_sets", ("set",), options.heldout_sets, held_out=True),
        Split(20, "train_signs", ("sign",), options.train_signs, held_out=False),
        Split(21, "heldout_signs", ("sign",), options.heldout_signs, held_out=True),
        Split(22, "train_timeless_texts", ("timeless_text",), options.train_timeless_texts, held_out=False),
        Split(23, "train_clips", ("clip",), options.train_clips, held_out=False),
        Split(24, "heldout_clips", ("clip",), options.heldout_clips, held_out=True),
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

    Writes `<split>.json` (conversations), a `<split>_<part>s.json` for each other part its records have (captions,
    patches, listings), `media/<split>/*.png|mp4`, `tokenizer.json` and `dataset.json` (options, counts, content hash of
    the annotations). Texts for pages are `<split>.jsonl`. Of searches also `<split>_pairs.json` of single images, each
    with one text that goes with it as question and as answer, for towers that compare images with texts. Of these
    and of arrangements `prompt_tokenizer.json`, which puts the start and end around a text that such a tower needs.

    Args:
      workers: processes that render; 0 renders in this one. The result does not depend on it.
      progress: called with files done and files in all.
    """
    target = folder(options, root)
    if exists(options, root):
        return target
    if storage.is_remote(str(target)):
        made = ensure(options, storage.user_cache(), workers=workers, progress=progress)
        storage.upload(Path(made), str(target), last=_INFO)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent, lambda: progress(0, sum(split.count for split in splits(options)))):
        _sweep(Path(target.parent))
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


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _sweep(root: Path) -> None:
    """Removes what killed processes had begun to make; to be called with the lock held."""
    for left in root.glob(f"shapes-*{_BUILDING}*"):
        host, _, _ = left.name.rpartition(_BUILDING)[2].rpartition("-")
        # Nobody on this machine makes it, as the lock is held. Another machine may share the folder and not the lock.
        if host in ("", _host()) or _unchanged(left) > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def _unchanged(building: Path) -> float:
    """Seconds since a file was made in it."""
    try:
        times = [path.stat().st_mtime for path in (building, *building.glob("*"), *building.glob("media/*"))]
    except FileNotFoundError:  # it was just completed and renamed
        return 0.0
    return time.time() - max(times)


def _make(options: ShapesOptions, target: Path, workers: int, progress: Callable[[int, int], None]) -> None:
    building = target.with_name(f"{target.name}{_BUILDING}{_host()}-{os.getpid()}")
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
    for split in splits(options):
        (path / "media" / split.name).mkdir(parents=True)
        chunk = 100
        for start in range(0, split.count, chunk):
            tasks.append((options, str(path), split, start, min(start + chunk, split.count)))
    total = sum(split.count for split in splits(options))
    records: dict[str, list[dict]] = {split.name: [] for split in splits(options)}
    done = 0
    with contextlib.closing(_run(tasks, workers)) as chunks:  # no worker may still write when this is left
        for (_, _, split, start, stop), made in zip(tasks, chunks, strict=True):
            records[split.name] += made
            done += stop - start
            progress(done, total)
    digest = hashlib.sha256()
    for name, made in records.items():
        if "context" in made[0]:
            text = "".join(json.dumps(record) + "\n" for record in made)
            digest.update(text.encode())
            (path / f"{name}.jsonl").write_text(text)
            continue
        for part, suffix in _PARTS.items():
            if part not in made[0]:
                continue
            kept = [{key: value for key, value in record.items() if key not in (*_PARTS, "types")} for record in made]
            for record, source in zip(kept, made, strict=True):
                record["conversations"] = source[part]
                if part == "conversations":
                    record["types"] = source["types"]
                else:
                    record["type"] = part
            text = json.dumps(kept)
            digest.update(text.encode())
            (path / f"{name}{suffix}.json").write_text(text)
    words.tokenizer().save(str(path / "tokenizer.json"))
    if options.has_searches or options.has_arrangements:
        words.prompt_tokenizer().save(str(path / "prompt_tokenizer.json"))
    info = {
        "options": options.made_of,
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
    options, path, split, start, stop = task
    if write_arrangement := arrangement_files.WRITERS.get(split.kinds[0]):
        write = functools.partial(write_arrangement, size=options.size, fps=options.fps, seed=options.seed)
        return [write(Path(path), split, index) for index in range(start, stop)]
    if split.kinds[0] in story_files.WRITERS:
        write = functools.partial(story_files.write, size=options.size, fps=options.fps, seed=options.seed)
        return [write(Path(path), split, index) for index in range(start, stop)]
    write = {"single": _write_single, "sheet": _sheet}.get(split.kinds[0], _write_search)
    return [write(options, Path(path), split, index) for index in range(start, stop)]


def _write_search(options: ShapesOptions, path: Path, split: Split, index: int) -> dict:
    """A clip with one question; kinds, traits and answers take turns."""
    kind, turn = split.kinds[index % len(split.kinds)], index // len(split.kinds)
    search = searches.draw_clip(
        np.random.default_rng([options.seed, split.number, index]),
        cast(searches.Kind, kind),
        *_turn(turn),
        frames=options.search_frames,
        shown=options.search_shown,
        cells=options.search_cells,
        held_out=split.held_out,
    )
    name = f"media/{split.name}/{index:06d}.mp4"
    write_mp4(path / name, searches.render(search, options.search_size), options.fps)
    return _searched(split, index, {"video": name}, search, "/".join(search.combination))


def _turn(number: int) -> tuple[searches.Trait, str]:
    """The number-th of all traits and answers, which take turns."""
    trait = searches.TRAITS[number % len(searches.TRAITS)]
    answers = searches.ANSWERS[trait]
    return trait, answers[number // len(searches.TRAITS) % len(answers)]


def _searched(split: Split, index: int, media: dict, search: searches.Search, combination: str) -> dict:
    asked, kind = search.question, "image" if "image" in media else "video"
    return {
        "id": f"{split.name}/{index:06d}",
        **media,
        "combination": combination,
        "conversations": conversation([(asked.question, asked.answer)]),
        "types": [asked.type],
        "caption": conversation([(scenes.CAPTION_PROMPTS[kind], search.caption)]),
    }


def _write_single(options: ShapesOptions, path: Path, split: Split, index: int) -> dict:
    """An image of a thing, or of none. What goes with it as a text takes turns too."""
    single = _single(options.seed, split.number, split.held_out, options.search_cells, index)
    name = f"media/{split.name}/{index:06d}.png"
    Image.fromarray(searches.render(single, options.search_size)[0]).save(path / name, compress_level=1)
    texts = searches.names(single)
    text = texts[index // 8 % len(texts)]  # after each of the eight answers
    made = _searched(split, index, {"image": name}, single, "/".join(single.combination))
    return {**made, "pair": conversation([(text, text)])}


def _single(seed: int, number: int, held_out: bool, cells: int, index: int) -> searches.Search:
    rng = np.random.default_rng([seed, number, index])
    return searches.draw_single(rng, *_turn(index), cells=cells, held_out=held_out)


@functools.lru_cache(maxsize=1)
def _singles(seed: int, cells: int, count: int) -> list[searches.Search]:
    """What the images of training show."""
    return [_single(seed, _SINGLES, False, cells, index) for index in range(count)]


def _sheet(options: ShapesOptions, path: Path, split: Split, index: int) -> dict:
    """A record of several single images, of which no new files are made."""
    del path
    rng = np.random.default_rng([options.seed, split.number, index])
    singles = _singles(options.seed, options.search_cells, options.train_singles)
    chosen = searches.draw_sheet(rng, singles, options.sheet_images)
    shown = [chosen[i] for i in rng.permutation(len(chosen))]
    made = _searched(
        split,
        index,
        {"image": [f"media/train_singles/{number:06d}.png" for number in shown]},
        singles[chosen[0]],
        "/".join(("sheet", *map(str, shown))),
    )
    asked, count = singles[chosen[0]].question, len(shown)
    captions = " ".join(singles[number].caption for number in shown)
    return {
        **made,
        "conversations": conversation([(asked.question, asked.answer)], count),
        "types": [f"sheet_{singles[chosen[0]].trait}"],
        "caption": conversation([(scenes.CAPTION_PROMPTS["image"], captions)], count),
    }
