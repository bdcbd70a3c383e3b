"""Long texts to samples of page images (T2Vid), written as LLaVA JSON with PNGs, as ArrayRecord shards, or as texts.

`make_plan` opens the texts and notes the settings in the output folder (`plan.json`); `run` makes the parts that are
missing, each whole or not at all; `finish` joins them. The same texts and settings give the same samples, whatever was
interrupted and however many processes there were.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from array_record.python.array_record_module import ArrayRecordWriter
from tokenizers import Tokenizer

from vlvm_jax import json_text, storage
from vlvm_jax.data.media import shard_record
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.pages import draw, filters, triplets
from vlvm_jax.data.pages.draw import MissingGlyphs, PageFiles
from vlvm_jax.data.pages.filters import Filters
from vlvm_jax.data.pages.triplets import Triplet, TripletFile
from vlvm_jax.data.prompt import conversation
from vlvm_jax.data.sources import shards
from vlvm_jax.data.sources.shards import Manifest, ShardInfo
from vlvm_jax.data.sources.text_pages import TextPages
from vlvm_jax.data.tools.prepare import alone
from vlvm_jax.errors import InputError
from vlvm_jax.workers import made

Format = Literal["llava", "array_record", "triplets"]
FORMATS: tuple[Format, ...] = get_args(Format)
PLAN, CARD, DROPPED = "plan.json", "card.json", "dropped.jsonl"
RESULTS: Mapping[Format, str] = {
    "llava": "data.json",
    "array_record": shards.MANIFEST,
    "triplets": "triplets.jsonl",
}
PER_PART: Mapping[Format, int] = {"llava": 16, "array_record": 128, "triplets": 256}  # texts


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make of what.

    Attributes:
      sources: files of texts (`triplets`), which follow one another.
      output: folder, local or `gs://`.
      name: of shards.
      limits: what is dropped.
      tokenizer: of the base model, a directory or file; needed where `limits` count tokens.
      limit: texts, the first ones; None for all.
      per_part: texts that are made at a time, a shard of the format `array_record`.
    """

    sources: tuple[str, ...]
    output: str
    format: Format = "llava"
    name: str = "pages"
    options: TextPages = dataclasses.field(default_factory=TextPages)
    limits: Filters = dataclasses.field(default_factory=Filters)
    tokenizer: str | None = None
    limit: int | None = None
    per_part: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A job whose texts are opened. Light to pickle: texts stay in their files.

    Attributes:
      settings: all that decides the samples.
      texts: how many are made into samples or dropped.
    """

    job: Job
    files: tuple[TripletFile, ...]
    settings: Mapping[str, Any]
    texts: int

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def per_part(self) -> int:
        return self.job.per_part or PER_PART[self.job.format]

    @property
    def parts(self) -> int:
        return -(-self.texts // self.per_part)

    def members(self, part: int) -> range:
        """Numbers of a part's texts."""
        return range(part * self.per_part, min(self.texts, (part + 1) * self.per_part))

    def find(self, number: int) -> tuple[TripletFile, int]:
        """The file of a text and its index there."""
        ends = list(itertools.accumulate(map(len, self.files)))
        place = bisect.bisect_right(ends, number)
        return self.files[place], number - (ends[place] - len(self.files[place]))

    def path(self, *names: str) -> str:
        return storage.join(self.job.output, "/".join(names))

    def part(self, index: int) -> str:
        """Path of what is noted of a finished part."""
        return self.path("parts", f"{index:05d}.json")

    def shard(self, index: int) -> str:
        return self.path(shards.shard_name(self.job.name, index, self.parts))


@dataclasses.dataclass(frozen=True)
class Report:
    """What a finished folder holds, for people.

    Attributes:
      counts: `texts`, `kept`, `pages`, `overflowed` (pages that text leaves), `boxes` (characters without a glyph).
      dropped: number of records by cause, those without a long text among them.
      path: what a stage's data names.
    """

    counts: Mapping[str, int]
    dropped: Mapping[str, int]
    path: str


def make_plan(job: Job) -> Plan:
    """Opens the texts, and continues what is in the output folder or begins.

    Raises:
      InputError: a source, the font, the tokenizer or an option is at fault; the folder holds what was made with other
        settings.
    """
    if job.limits.max_total_tokens is not None and job.tokenizer is None:
        raise InputError(
            "the filter of max_total_tokens counts the base model's tokens of question and answer: give "
            "--tokenizer=DIR, a directory with its tokenizer.json"
        )
    draw.font(job.options)
    draw.chunk("", job.options)
    files = tuple(triplets.read_triplets(path, job.options) for path in job.sources)
    total = sum(map(len, files))
    plan = Plan(job, files, _settings(job, files), total if job.limit is None else min(job.limit, total))
    path = plan.path(PLAN)
    try:
        noted = json_text.loads(storage.read_text(path))
    except FileNotFoundError:
        storage.write_text(path, json.dumps(plan.settings, indent=2))
        return plan
    except ValueError:
        raise InputError(f"{path}: damaged; delete it and what lies beside it, or give another --out") from None
    if not isinstance(noted, dict):
        raise InputError(f"{path}: damaged; delete it and what lies beside it, or give another --out")
    if noted != plan.settings:
        key = next(key for key in {**plan.settings, **noted} if noted.get(key) != plan.settings.get(key))
        raise InputError(
            f"--out={job.output}: holds what was made with other settings ({key}: {json.dumps(noted.get(key))} there, "
            f"{json.dumps(plan.settings.get(key))} here); give another folder, or the same settings to continue"
        )
    return plan


def _settings(job: Job, files: Sequence[TripletFile]) -> dict[str, Any]:
    tokenizer = None
    if job.tokenizer is not None:
        text = conversation.load_tokenizer(job.tokenizer).to_str()
        tokenizer = {"path": job.tokenizer, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    settings = {
        "format": job.format,
        "name": job.name,
        "options": job.options.model_dump(),
        "made_with": draw.provenance(job.options),
        "filters": job.limits.model_dump(),
        "tokenizer": tokenizer,
        "sources": [
            {
                "path": file.path,
                "layout": file.layout,
                "sha256": file.sha256,
                "texts": len(file),
                "left_out": dict(file.dropped),
            }
            for file in files
        ],
        "limit": job.limit,
        "per_part": job.per_part,
    }
    return json.loads(json.dumps(settings))  # as it will be read back


# --- parts -------------------------------------------------------------------------------------------------------


def run(plan: Plan, workers: int, progress: Callable[[int, str], None]) -> int:
    """Makes the parts that are missing, in processes of this machine; returns the pages it drew.

    Args:
      workers: processes; 0 works in this one. The samples do not depend on it.
      progress: called with the texts that are done and a note, a few times a second; what it raises ends the work.

    Raises:
      InputError: another process works in the folder.
      Interrupted: a worker process died.
    """
    with alone(plan.job.output):
        todo = [index for index in range(plan.parts) if whole(plan, index) is None]
        started, drawn = plan.texts - sum(len(plan.members(index)) for index in todo), 0
        note = f"{started} were there" if started else ""
        progress(started, note)
        make = functools.partial(write_part, plan)
        for part in made(make, todo, workers, lambda ticks: progress(started + ticks, note)):
            drawn += part["counts"]["pages"]
        return drawn


def write_part(plan: Plan, index: int, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Makes one part, unless it is there; what is noted of it is written last.

    Args:
      tick: called after each text.
    """
    if (part := whole(plan, index)) is not None:
        return part
    counts, dropped = Counter(texts=0, kept=0, pages=0, overflowed=0, boxes=0), []
    count_tokens = _counter(plan.job.tokenizer)
    with _sink(plan, index) as sink:
        for number in plan.members(index):
            file, place = plan.find(number)
            counts["texts"] += 1
            try:
                triplet = file.triplet(place)
                pages = PageFiles(triplet.context, plan.job.options)
                cause = filters.reason(
                    triplet.question, triplet.answer, len(pages), file.layout, plan.job.limits, count_tokens
                )
                detail = f"{len(pages)} pages"
            except InputError as error:
                cause, detail = "no_glyphs" if isinstance(error, MissingGlyphs) else "bad_record", str(error)
            else:
                if cause is None:
                    sink.add(number, triplet, pages)
                    boxes = draw.missing_glyphs(triplet.context, plan.job.options).total()
                    counts.update(kept=1, pages=len(pages), overflowed=pages.overflowed, boxes=boxes)
            if cause is not None:
                dropped.append({"text": number, "source": file.where(place), "cause": cause, "detail": detail})
            tick()
        noted = {"settings": plan.hash, "counts": dict(counts), "dropped": dropped, "records": sink.records}
    storage.write_text(plan.part(index), json.dumps(noted))
    return noted


def whole(plan: Plan, index: int) -> dict[str, Any] | None:
    """What is noted of a part, when it is finished and belongs to this plan."""
    try:
        noted = json_text.loads(storage.read_text(plan.part(index)))
    except (FileNotFoundError, ValueError):
        return None
    return noted if noted.get("settings") == plan.hash else None


@functools.lru_cache(maxsize=2)
def _counter(path: str | None) -> Callable[[str], int]:
    if path is None:
        return lambda _text: 0  # nothing is limited by tokens then
    tokenizer: Tokenizer = conversation.load_tokenizer(path)
    return lambda text: len(tokenizer.encode(text).ids)


class _Conversations:
    """Records of a LLaVA JSON, and a PNG file a page."""

    def __init__(self, plan: Plan):
        self.plan, self.records = plan, []

    def add(self, number: int, triplet: Triplet, pages: PageFiles) -> None:
        names = []
        if self.plan.job.options.shown_as != "text":
            for page, data in enumerate(pages):
                names.append(f"pages/{number:05d}/{page:05d}.png")
                storage.write_bytes(self.plan.path(names[-1]), data)
        self.records.append(_llava(number, triplet, names, self.plan.job.options.shown_as))


class _Shard:
    """Records of one ArrayRecord shard."""

    def __init__(self, plan: Plan, writer: ArrayRecordWriter):
        self.plan, self.writer = plan, writer
        self.records, self.kinds, self.media = [], [], Counter()

    def add(self, number: int, triplet: Triplet, pages: PageFiles) -> None:
        shown_as = self.plan.job.options.shown_as
        stored = []
        if shown_as == "images":
            stored = [StoredMedium("image", f"{page:05d}.png", data) for page, data in enumerate(pages)]
        elif shown_as == "video":
            stored = [StoredMedium("video", "pages", frames=tuple(pages))]
        record = _llava(number, triplet, [medium.name for medium in stored], shown_as)
        self.writer.write(shard_record.encode(record, stored))
        self.records.append(record["id"])
        self.kinds.append({"images": "image", "video": "video", "text": "text"}[shown_as])
        self.media.update(medium.kind for medium in stored)


class _Texts:
    """Triplets that passed the filters, for pages drawn on the fly."""

    def __init__(self):
        self.records: list[dict[str, str]] = []

    def add(self, number: int, triplet: Triplet, pages: PageFiles) -> None:
        del pages
        self.records.append(dataclasses.asdict(triplet) | {"id": f"{number:05d}"})


def _llava(number: int, triplet: Triplet, names: Sequence[str], shown_as: str) -> dict[str, Any]:
    record: dict[str, Any] = {"id": f"{number:05d}"}
    question = triplet.question
    if shown_as == "images":
        record["image"] = list(names)
        question = "<image>\n" * len(names) + question
    elif shown_as == "video":
        record["video"] = list(names)
        question = f"<video>\n{question}"
    else:
        question = f"{triplet.context}\n\n{question}"
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": triplet.answer}]
    return record | {"conversations": said}


def _sink(plan: Plan, index: int) -> contextlib.AbstractContextManager[Any]:
    if plan.job.format == "array_record":
        return _shard(plan, index)
    return contextlib.nullcontext(_Conversations(plan) if plan.job.format == "llava" else _Texts())


@contextlib.contextmanager
def _shard(plan: Plan, index: int) -> Iterator[_Shard]:
    path = plan.shard(index)
    with storage.writing(path) as local:
        with contextlib.closing(ArrayRecordWriter(local, "group_size:1")) as writer:
            yield (sink := _Shard(plan, writer))
        size, digest = storage.size(local), storage.sha256(local)
    info = ShardInfo(
        settings=plan.hash,
        records=len(sink.records),
        sha256=digest,
        bytes=size,
        kinds=tuple(sink.kinds),
        types=((),) * len(sink.records),
        ids=tuple(sink.records),
        media=dict(sink.media),
    )
    storage.write_text(shards.info_name(path), shards.to_json(info))


# --- the whole ---------------------------------------------------------------------------------------------------


def finish(plan: Plan, version: str) -> Report:
    """Joins the parts, lists what was dropped, writes the card and clears up; all parts must be there.

    Args:
      version: of this package, for the card.

    Raises:
      InputError: nothing was kept.
    """
    parts = [json.loads(storage.read_text(plan.part(index))) for index in range(plan.parts)]
    counts = Counter(texts=0, kept=0, pages=0, overflowed=0, boxes=0)
    dropped = Counter()
    for file in plan.files:
        dropped.update(file.dropped)
    for part in parts:
        counts.update(part["counts"])
        dropped.update(entry["cause"] for entry in part["dropped"])
    lost = [entry for part in parts for entry in part["dropped"]]
    storage.write_text(plan.path(DROPPED), "".join(f"{json_text.readable(entry)}\n" for entry in lost))
    if not counts["kept"]:
        causes = ", ".join(f"{count} {cause}" for cause, count in sorted(dropped.items()))
        last = lost[-1]["detail"]
        raise InputError(f"{', '.join(plan.job.sources)}: every text was dropped ({causes}); the last: {last}")
    result = plan.path(RESULTS[plan.job.format])
    records = [record for part in parts for record in part["records"]]
    if plan.job.format == "llava":
        storage.write_text(result, json_text.readable(records))
    elif plan.job.format == "triplets":
        storage.write_text(result, "".join(f"{json_text.readable(record)}\n" for record in records))
    else:
        _write_manifest(plan)
    card = {**plan.settings, "vlvm_jax": version, "counts": dict(counts), "dropped": dict(sorted(dropped.items()))}
    storage.write_text(plan.path(CARD), json_text.readable(card, indent=2))
    storage.sweep(plan.job.output)
    return Report(counts, dropped, plan.job.output if plan.job.format == "array_record" else result)


def _write_manifest(plan: Plan) -> None:
    infos = [shards.read_info(shards.info_name(plan.shard(index))) for index in range(plan.parts)]
    manifest = Manifest(
        name=plan.job.name,
        shards=tuple(shards.shard_name(plan.job.name, index, plan.parts) for index in range(plan.parts)),
        records=sum(info.records for info in infos),
        settings=plan.settings,
        sha256=shards.combined([info.sha256 for info in infos]),
    )
    storage.write_text(plan.path(shards.MANIFEST), shards.to_json(manifest))
