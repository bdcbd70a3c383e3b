"""Any source to ArrayRecord shards with the media in them: the same bytes every time, and nothing whole is made anew.

`make_plan` divides the records into shards and notes the settings in the output folder (`plan.json`); `write_shard`
makes one of them, wherever it runs; `finish` writes `dropped.jsonl` and the manifest once all are there.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from vlvm_jax import json_text, storage
from vlvm_jax.config import MixtureEntry, build
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import evenly
from vlvm_jax.data.sources import mixture, shards
from vlvm_jax.data.sources.mixture import Mixture, read_mixture
from vlvm_jax.data.sources.shards import Manifest, ShardInfo
from vlvm_jax.data.tools import reencode
from vlvm_jax.data.tools.record_bytes import record_bytes
from vlvm_jax.data.tools.reencode import AS_THEY_ARE, Target
from vlvm_jax.errors import InputError
from vlvm_jax.workers import made

PLAN = "plan.json"
DROPPED = "dropped.jsonl"
_PROBED = 32  # records from which the size of all is estimated


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make of what; plain data, so that it travels to workers.

    Attributes:
      sources: as `open_source` takes them; their records follow one another.
      output: folder, local or `gs://`.
      name: shards are called after it.
      format: of all sources.
      shards: how many; None for as many as make `shard_mb`.
      shard_mb: MiB that a shard is to have, about.
    """

    sources: tuple[str, ...]
    output: str
    name: str
    media_root: str | None = None
    format: str = "auto"
    target: Target = AS_THEY_ARE
    shards: int | None = None
    shard_mb: float = 256.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job with its records counted and divided.

    Attributes:
      settings: all that decides the bytes.
      records: in all sources together.
      shards: how many.
      notes: what to tell the user about the sources, a line each.
    """

    job: Job
    settings: Mapping[str, Any]
    records: int
    shards: int
    notes: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        text = json.dumps([self.settings, self.records, self.shards], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shard(self, index: int) -> str:
        """Path of a shard."""
        return storage.join(self.job.output, shards.shard_name(self.job.name, index, self.shards))

    def members(self, index: int) -> range:
        """The records of a shard, dropped ones among them."""
        return range(self.records * index // self.shards, self.records * (index + 1) // self.shards)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a finished folder holds, for people."""

    manifest: Manifest
    media: Mapping[str, int]
    bytes: int
    dropped: Mapping[str, int]


def make_plan(job: Job) -> Plan:
    """Opens the sources, and continues the plan that is in the output folder or begins one.

    Raises:
      InputError: a source cannot be read, is empty, or the folder holds what was made with other settings.
    """
    _open.cache_clear()
    records = _open(job)
    settings = _settings(job, records)
    path = storage.join(job.output, PLAN)
    try:
        noted = json_text.loads(storage.read_text(path))
    except FileNotFoundError:
        noted = None
    except ValueError:
        raise InputError(f"{path}: damaged; delete it and what lies beside it, or give another --output") from None
    if noted is not None and not _is_plan(noted):
        raise InputError(f"{path}: damaged; delete it and what lies beside it, or give another --output")
    if noted is None:
        count = job.shards or _shards_for(job, records)
        noted = {"settings": settings, "records": len(records), "shards": max(1, min(count, len(records)))}
        storage.write_text(path, json.dumps(noted, indent=2))
    elif noted["settings"] != settings:
        key = next(key for key in {**noted["settings"], **settings} if noted["settings"].get(key) != settings.get(key))
        raise InputError(
            f"--output={job.output}: holds what was made with other settings ({key}: "
            f"{json.dumps(noted['settings'].get(key))} there, {json.dumps(settings.get(key))} here); give another "
            "folder, or the same settings to continue"
        )
    return Plan(job, settings, noted["records"], noted["shards"], records.notes)


def _is_plan(noted: Any) -> bool:
    wanted = {"settings": dict, "records": int, "shards": int}
    return isinstance(noted, dict) and all(isinstance(noted.get(key), kind) for key, kind in wanted.items())


def _settings(job: Job, records: Mixture) -> dict[str, Any]:
    encoder = {"gop": reencode.GOP, "crf": reencode.CRF, "version": reencode.VERSION} if job.target.asked else None
    return {
        "sources": list(job.sources),
        "media_root": job.media_root,
        "format": job.format,
        "digest": records.digest(),
        "name": job.name,
        "size": job.target.size,
        "fps": None if job.target.fps is None else float(job.target.fps),
        "encoder": encoder,
        "shards": job.shards,
        "shard_mb": None if job.shards else job.shard_mb,
    }


def _shards_for(job: Job, records: Mixture) -> int:
    """How many shards make `shard_mb` each, from a spread of records."""
    probed = evenly(len(records), _PROBED)
    size = 0
    for index in probed:
        with contextlib.suppress(BadSampleError):
            size += len(record_bytes(records[index], job.target)[0])
    return math.ceil(size / len(probed) * len(records) / (job.shard_mb * 2**20))


@functools.lru_cache(maxsize=1)
def _open(job: Job) -> Mixture:
    """Once in each process."""
    return open_records(job.sources, job.media_root, job.format)


def open_records(sources: Sequence[str], media_root: str | None = None, format: str = "auto") -> Mixture:
    """The records of sources, one source after another.

    Raises:
      InputError: one cannot be read, or there is no record.
    """
    mixture.check_format(format, "source.format")
    entries = [{"path": path, "media_root": media_root, "format": format} for path in sources]
    return read_mixture([build(MixtureEntry, entry, "source") for entry in entries], 0)


def write_shard(plan: Plan, index: int, tick: Callable[[], None] = lambda: None) -> ShardInfo:
    """Makes one shard, unless it is there; its `ShardInfo` is written last.

    Args:
      tick: called after each record.

    Raises:
      StorageError: storage does not answer; what is written stays.
    """
    path = plan.shard(index)
    if (shard := whole(plan, index)) is not None:
        return shard
    records = _open(plan.job)
    kinds, types, ids, media, dropped = [], [], [], Counter(), []
    with storage.writing(path) as local:
        with contextlib.closing(ArrayRecordWriter(local, "group_size:1")) as writer:
            for number in plan.members(index):
                try:
                    record = records[number]
                    data, stored = record_bytes(record, plan.job.target)
                except BadSampleError as error:
                    dropped.append({"record": number, "cause": error.cause, "detail": error.detail})
                else:
                    writer.write(data)
                    kinds.append(record.kind)
                    types.append(tuple(dict.fromkeys(turn.type for turn in record.turns if turn.type)))
                    ids.append(record.id)
                    media.update(medium.kind for medium in stored)
                tick()
        size, digest = storage.size(local), storage.sha256(local)
    info = ShardInfo(
        settings=plan.hash,
        records=len(ids),
        sha256=digest,
        bytes=size,
        kinds=tuple(kinds),
        types=tuple(types),
        ids=tuple(ids),
        dropped=dict(sorted(Counter(entry["cause"] for entry in dropped).items())),
        media=dict(sorted(media.items())),
        dropped_records=tuple(dropped),
    )
    storage.write_text(shards.info_name(path), shards.to_json(info))
    return info


def run_local(plan: Plan, workers: int, max_bad_share: float, progress: Callable[[int, str], None]) -> None:
    """Makes the shards that are missing, in processes of this machine.

    Args:
      workers: processes; 0 works in this one. The bytes do not depend on it.
      progress: called with the records that are done and a note, a few times a second; what it raises ends the work.

    Raises:
      InputError: too many records were dropped, or another process works in the folder.
      Interrupted: a worker process died.
    """
    with alone(plan.job.output):
        there = {index: info for index in range(plan.shards) if (info := whole(plan, index)) is not None}
        todo = [index for index in range(plan.shards) if index not in there]
        done = sum(len(plan.members(index)) for index in there)
        dropped = Counter()
        for info in there.values():
            dropped.update(info.dropped)
        started = done
        note = f"{len(there)} of {plan.shards} shards were there" if there else ""
        progress(done, note)
        make = functools.partial(write_shard, plan)
        for info in made(make, todo, workers, lambda ticks: progress(started + ticks, note)):
            dropped.update(info.dropped)
            check_dropped(plan, dropped, max_bad_share)


@contextlib.contextmanager
def alone(output: str) -> Iterator[None]:
    """Keeps a local folder for this process, and in the end clears what any left half written."""
    if storage.is_remote(output):
        yield
        return
    folder = Path(output)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"--output={output}: another process is preparing this folder") from None
    try:
        yield
    finally:
        for partial in folder.glob(f".*{storage.PARTIAL}"):
            partial.unlink(missing_ok=True)
        os.close(descriptor)


def whole(plan: Plan, index: int) -> ShardInfo | None:
    """What lies beside a shard, when both are there and belong to this plan."""
    path = plan.shard(index)
    try:
        info = shards.read_info(shards.info_name(path))
        same = info.settings == plan.hash and storage.size(path) == info.bytes
    except (FileNotFoundError, InputError):
        return None
    return info if same else None


def finish(plan: Plan, max_bad_share: float) -> Report:
    """Lists what was dropped and writes the manifest; all shards must be there.

    Raises:
      InputError: more than `max_bad_share` of the records were dropped; there is no manifest then.
    """
    infos = [shards.read_info(shards.info_name(plan.shard(index))) for index in range(plan.shards)]
    lines = [json_text.readable(entry) + "\n" for info in infos for entry in info.dropped_records]
    storage.write_text(storage.join(plan.job.output, DROPPED), "".join(lines))
    dropped, media = Counter(), Counter()
    for info in infos:
        dropped.update(info.dropped)
        media.update(info.media)
    check_dropped(plan, dropped, max_bad_share)
    manifest = Manifest(
        name=plan.job.name,
        shards=tuple(shards.shard_name(plan.job.name, index, plan.shards) for index in range(plan.shards)),
        records=sum(info.records for info in infos),
        settings=plan.settings,
        sha256=shards.combined([info.sha256 for info in infos]),
    )
    storage.write_text(storage.join(plan.job.output, shards.MANIFEST), shards.to_json(manifest))
    return Report(manifest, media, sum(info.bytes for info in infos), dropped)


def check_dropped(plan: Plan, dropped: Mapping[str, int], max_bad_share: float) -> None:
    """Raises `InputError` when more records were dropped than may be."""
    bad = sum(dropped.values())
    if bad > max_bad_share * plan.records:
        causes = ", ".join(f"{count} {cause}" for cause, count in sorted(dropped.items()))
        raise InputError(
            f"{bad} of {plan.records} records cannot be used ({causes}), more than --max_bad_share={max_bad_share:g} "
            f"allows; what is made stays in {plan.job.output}: run again with a larger share to keep it"
        )


def damaged(folder: str, progress: Callable[[int], None] = lambda done: None) -> Iterator[tuple[str, str]]:
    """Reads a finished folder's shards again; the name of each that is not as it was written, and what is wrong.

    Args:
      progress: called with the shards read so far.

    Raises:
      InputError: the folder is not finished.
    """
    manifest = shards.read_manifest(folder)
    hashes = []
    for number, name in enumerate(manifest.shards):
        try:
            info = shards.read_info(storage.join(folder, shards.info_name(name)))
            hashes.append(info.sha256)
            if storage.sha256(storage.join(folder, name)) != info.sha256:
                yield name, "its bytes are not those that were written"
        except FileNotFoundError as error:
            yield name, f"missing: {error.filename or name}"
        except InputError as error:
            yield shards.info_name(name), str(error)
        progress(number + 1)
    if len(hashes) == len(manifest.shards) and shards.combined(hashes) != manifest.sha256:
        yield shards.MANIFEST, "belongs to other shards than those that lie here"
