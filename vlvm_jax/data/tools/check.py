"""What a file of conversations holds, and what training would drop of it and why; nothing is written."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlvm_jax.data import media_names
from vlvm_jax.data.faults import BadSampleError, reading
from vlvm_jax.data.media import containers
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.media.video_file import open_video
from vlvm_jax.data.record import LISTED, MediaKind, Record
from vlvm_jax.data.tools.reencode import PROBED
from vlvm_jax.workers import Aside, pool

if TYPE_CHECKING:
    from vlvm_jax.data.sample.spec import SampleSpec

FRAMES = PROBED  # taken from a clip when no config says how many, so that `prepare` drops the same
_CHUNK = 8  # records a worker takes at a time


@dataclasses.dataclass(frozen=True)
class MediumFacts:
    """What a file says of itself.

    Attributes:
      width, height: in pixels, as stored.
      seconds: of a clip, where known.
    """

    kind: MediaKind
    width: int
    height: int
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of one record.

    Attributes:
      index: among all records.
      kind: "image", "video" or "text"; empty where the record cannot be read.
      cause: why it cannot be used; empty where it can.
      characters: of its questions and answers.
      tokens: of the whole sample, with `visual` ones among them; 0 without a config. A sample that is too long has its
        length all the same.
      empty_answers: number of its answers without a text.
      respelled: (name, file) of media that were found only under another spelling.
    """

    index: int
    kind: str = ""
    source: str = ""
    cause: str = ""
    detail: str = ""
    characters: int = 0
    tokens: int = 0
    visual: int = 0
    media: tuple[MediumFacts, ...] = ()
    empty_answers: int = 0
    respelled: tuple[tuple[str, str], ...] = ()


class Checker:
    """Looks at records one by one. Light to pickle where its records are.

    Args:
      spec: of a training stage, to make of each record what training would; None only decodes.
    """

    def __init__(self, records: Sequence[Record], spec: "SampleSpec | None"):
        self.records, self.spec, self._loader = records, spec, None
        if spec is not None:
            from vlvm_jax.data.sample.loader import SampleLoader  # with Grain, which takes seconds

            # Of any length, so that it is known how long samples are that are too long.
            self._loader = SampleLoader(records, dataclasses.replace(spec, length=2**31 - 1))

    def __call__(self, index: int) -> Finding:
        try:
            record = self.records[index]
        except BadSampleError as error:
            return Finding(index, cause=error.cause, detail=error.detail)
        finding = Finding(
            index,
            record.kind,
            record.source,
            characters=sum(len(turn.question) + len(turn.answer) for turn in record.turns),
            empty_answers=sum(not turn.answer.strip() for turn in record.turns),
        )
        try:
            finding = dataclasses.replace(finding, media=tuple(probe(kind, path) for kind, path in record.media))
            finding = dataclasses.replace(finding, respelled=_respelled(path for _, path in record.media))
            return dataclasses.replace(finding, **self._use(index, record))
        except BadSampleError as error:
            return dataclasses.replace(finding, cause=error.cause, detail=error.detail)

    def _use(self, index: int, record: Record) -> dict[str, Any]:
        """Makes a sample of a record; without a config only decodes its media."""
        if self.spec is None or self._loader is None:
            for kind, path in record.media:
                if kind == "image":
                    video.open_image(path)
                else:
                    video.decode_clip(path, FRAMES, lambda pixels: pixels[:1, :1], span=record.span)
            return {}
        sample = self._loader.load(index)
        tokens, visual = len(sample["token_ids"]), int(sample["media_mask"].sum())
        facts: dict[str, Any] = {"tokens": tokens, "visual": visual}
        if tokens > self.spec.length:
            facts["cause"] = "too_long"
            facts["detail"] = f"{tokens - visual} tokens of text and {visual} visual, for length {self.spec.length}"
        return facts


def _respelled(paths: Iterable[str]) -> tuple[tuple[str, str], ...]:
    files = ((name, media_names.known(name)) for path in paths for name in path.split(LISTED))
    return tuple((name, file) for name, file in files if file is not None)


def probe(kind: MediaKind, path: str) -> MediumFacts:
    """What a medium's header says; nothing is decoded.

    Raises:
      BadSampleError: it cannot be opened.
    """
    with reading(path):
        frames = containers.frame_names(path) if kind == "video" else None
        if frames == []:
            raise BadSampleError("empty", f"{path} holds no frame")
        if kind == "image" or frames:
            height, width = video.image_size(frames[0] if frames else path)
            rate = containers.frame_rate(path) if frames else None
            return MediumFacts(kind, width, height, len(frames) / rate if frames and rate else None)
        file = containers.open_medium(path)
    with file, open_video(file, path) as opened:
        seconds = None if opened.duration is None else float(opened.duration * opened.unit)
        return MediumFacts(kind, opened.codec.width, opened.codec.height, seconds)


def examine(
    checker: Checker, indices: Sequence[int], workers: int, progress: Callable[[int], None] = lambda done: None
) -> list[Finding]:
    """Findings in the order of `indices`.

    Args:
      workers: processes, as far as there is work for so many; one works in this one.
      progress: called with the records that are done; what it raises ends the work.

    Raises:
      Interrupted: a worker process died.
    """
    findings: list[Finding] = []
    for part in _in_parts(checker, indices, workers):
        findings += part
        progress(len(findings))
    return findings


def _in_parts(checker: Checker, indices: Sequence[int], workers: int) -> Iterator[list[Finding]]:
    parts = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
    workers = min(workers, len(parts))
    if workers < 2:
        yield from ([checker(index) for index in part] for part in parts)
        return
    with pool(workers, _start_worker, (Aside(checker),)) as processes:
        yield from processes.map(_work, parts)


_checker: Checker | None = None  # in a worker


def _start_worker(checker: Any) -> None:
    global _checker
    _checker = checker.load()


def _work(part: Sequence[int]) -> list[Finding]:
    assert _checker is not None
    return [_checker(index) for index in part]


def summarise(findings: Sequence[Finding], total: int, spec: "SampleSpec | None") -> dict[str, Any]:
    """What `data check --json` writes: plain data.

    Args:
      total: records in all, of which `findings` may be a spread.
    """
    bad = [finding for finding in findings if finding.cause]
    media = [medium for finding in findings for medium in finding.media]
    measured = [finding for finding in findings if finding.tokens]
    return {
        "version": 1,
        "records": total,
        "checked": len(findings),
        "usable": len(findings) - len(bad),
        "kinds": dict(Counter(finding.kind or "unreadable" for finding in findings)),
        "empty_answers": sum(finding.empty_answers > 0 for finding in findings),
        "respelled": dict(pair for finding in findings for pair in finding.respelled),
        "media": dict(Counter(medium.kind for medium in media)),
        "causes": dict(Counter(finding.cause for finding in bad).most_common()),
        "seconds": spread([medium.seconds for medium in media if medium.seconds is not None]),
        "shorter_side": spread([min(medium.width, medium.height) for medium in media]),
        "characters": spread([finding.characters for finding in findings if finding.kind]),
        "tokens": spread([finding.tokens for finding in measured]),
        "visual_tokens": spread([finding.visual for finding in measured]),
        "length": spec.length if spec else None,
        "histograms": {
            "seconds": _histogram([medium.seconds for medium in media if medium.seconds is not None]),
            "tokens": _histogram([finding.tokens for finding in measured]),
        },
        "resolutions": {
            f"{width}x{height}": count
            for (width, height), count in Counter((m.width, m.height) for m in media).most_common(20)
        },
        "bad": [{"record": f.index, "source": f.source, "cause": f.cause, "detail": f.detail} for f in bad],
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, quartiles, 99th percentile, most and sum; None of nothing."""
    if not values:
        return None
    marks = {"min": 0, "p25": 25, "median": 50, "p75": 75, "p99": 99, "max": 100}
    percentiles = {name: round(float(np.percentile(values, at)), 3) for name, at in marks.items()}
    return {**percentiles, "sum": round(float(np.sum(values)), 3)}


def _histogram(values: Sequence[float], bins: int = 20) -> dict[str, list[float]]:
    """Edges and counts; empty of nothing."""
    if not values:
        return {"edges": [], "counts": []}
    counts, edges = np.histogram(values, bins)
    return {"edges": [round(float(edge), 3) for edge in edges], "counts": counts.tolist()}
