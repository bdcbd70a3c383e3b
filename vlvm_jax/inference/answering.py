"""Answers: requests in, batches of fixed shapes through the model, text out. Clips are encoded once and kept."""

import dataclasses
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlvm_jax import storage
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.sample.assemble import Medium, Sample
from vlvm_jax.errors import InputError
from vlvm_jax.inference.engine import Engine, length_bucket, power_bucket
from vlvm_jax.inference.prompts import Prompts, padded
from vlvm_jax.inference.requests import Answer, Decoding, Request
from vlvm_jax.inference.text import AnswerText
from vlvm_jax.models.adapters.base import Features
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoding import Limits, Sampling

__all__ = ["Answer", "Answering", "Decoding", "EncodedMedia", "Request", "Retention"]

GREEDY = Decoding()
ROWS = 8  # questions in a batch
CACHE_BYTES = 2 << 30  # of encoded media
_WINDOW = 8  # batches' worth of questions that are sorted by length together
_LEAST_ROOM = 16  # tokens that a cache has room for beside the prompt


@dataclasses.dataclass(frozen=True)
class EncodedMedia:
    """The media of a request, decoded and encoded.

    Attributes:
      media: decoded.
      frames: T, with padding.
      features: [1, T, ...] on the devices.
      seconds: that it took.
    """

    media: tuple[Medium, ...]
    frames: int
    features: Features
    seconds: float

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in jax.tree.leaves(self.features)) + sum(m.frames.nbytes for m in self.media)


@dataclasses.dataclass(frozen=True)
class Retention:
    """How much an adapter keeps of the T frames of a request.

    Attributes:
      media: in the order in which the prompt shows them.
      weights: [T, N] how much of each patch reaches the decoder; None where nothing is weighed.
      path_weights: the part in it of each of the adapter's paths, by name.
    """

    media: tuple[Medium, ...]
    weights: np.ndarray | None
    path_weights: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Row:
    """A request that is ready for a batch, and which batches it can be in."""

    request: Request
    sample: Sample
    encoded: EncodedMedia
    seconds_vision: float
    bucket: tuple[int, int]  # T, L


class Answering:
    """Answers questions over images and clips with one model.

    Args:
      rows: questions in a batch at most.
      cache_bytes: of decoded frames and their features that are kept for the next question; what was not used longest
        goes first.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        *,
        rows: int = ROWS,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.engine, self.prompts, self.rows, self.cache_bytes = engine, prompts, rows, cache_bytes
        self._kept: OrderedDict[tuple, EncodedMedia] = OrderedDict()

    def answer(
        self,
        requests: Sequence[Request],
        decoding: Decoding = GREEDY,
        *,
        on_bad: Callable[[Request, BadSampleError], None] | None = None,
    ) -> Iterator[Answer]:
        """Answers in the order of the requests. Questions of like length share a batch, within a window of many.

        Args:
          on_bad: told of requests whose media cannot be used, which get no answer; without it the first one raises.

        Raises:
          InputError: a request that cannot be answered: an empty question, more tokens than the context.
          BadSampleError: media that cannot be used, without `on_bad`.
        """
        size = self.rows * _WINDOW
        for start in range(0, len(requests), size):
            waiting: dict[tuple, list[tuple[int, _Row]]] = {}
            answers: dict[int, Answer] = {}
            for number, request in enumerate(requests[start : start + size]):
                try:
                    row = self._prepare(request)
                except BadSampleError as error:
                    if on_bad is None:
                        raise
                    on_bad(request, error)
                    continue
                batch = waiting.setdefault(row.bucket, [])
                batch.append((number, row))
                if len(batch) == self.rows:
                    answers |= self._answers(waiting.pop(row.bucket), decoding)
            for batch in waiting.values():
                answers |= self._answers(batch, decoding)
            yield from (answers[number] for number in sorted(answers))

    def stream(self, request: Request, decoding: Decoding = GREEDY) -> Generator[str, None, Answer]:
        """The answer's text in pieces, as they come; joined they are its `text`. The generator returns the `Answer`.

        Raises:
          InputError, BadSampleError: as `answer`.
        """
        batch = self._run([self._prepare(request)], decoding)
        while True:
            try:
                (piece,) = next(batch)
            except StopIteration as end:
                return end.value[0]
            if piece:
                yield piece

    def encode_media(self, request: Request, order: tuple[int, ...] | None = None) -> EncodedMedia:
        """A request's media, from what is kept if they were encoded before.

        Args:
          order: in which the prompt shows them; default: as they stand.

        Raises:
          BadSampleError: one of them cannot be used.
        """
        order = tuple(range(len(request.media))) if order is None else order
        key = (request.media, order, request.span, *(_stamp(path) for _, path in request.media))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        start = time.perf_counter()
        media = self.prompts.media(request)
        size = self.prompts.spec.image_size
        shown = [media[number].frames for number in order] or [np.zeros((1, size, size, 3), np.uint8)]
        frames = np.concatenate(shown)
        clips = any(medium.kind == "video" for medium in media)
        count = power_bucket(len(frames), self.prompts.spec.frames_per_video if clips else 1)
        features = self.engine.encode_media(padded(frames, count)[None])
        encoded = EncodedMedia(tuple(media), count, features, time.perf_counter() - start)
        self._kept[key] = encoded
        while sum(kept.nbytes for kept in self._kept.values()) > self.cache_bytes and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return encoded

    def inputs(self, request: Request) -> tuple[Features, Batch]:
        """A request as the engine takes it, in a batch of its own.

        Raises:
          InputError, BadSampleError: as `answer`.
        """
        row = self._prepare(request)
        return row.encoded.features, self._batch([row], 1)

    def retention(self, request: Request) -> Retention:
        """What a request's answer is made from, for pictures.

        Raises:
          InputError, BadSampleError: as `answer`.
        """
        prompt, row = self.prompts.prompt(request), self._prepare(request)
        media = tuple(row.encoded.media[marker.medium] for marker in prompt.markers)
        shown = sum(len(medium.frames) for medium in media)
        batch = self._batch([row], 1)
        weights = self.engine.frame_weights(row.encoded.features, batch)
        path_weights = self.engine.path_weights(row.encoded.features, batch)
        return Retention(
            media,
            None if weights is None else weights[0, :shown],
            {name: values[0, :shown] for name, values in path_weights.items()},
        )

    # --- a batch -----------------------------------------------------------------------------------------------------

    def _prepare(self, request: Request) -> _Row:
        prompt = self.prompts.prompt(request)
        start = time.perf_counter()
        encoded = self.encode_media(request, tuple(marker.medium for marker in prompt.markers))
        seconds = time.perf_counter() - start
        sample = self.prompts.sample(request, prompt, encoded.media)
        del sample["frames"]
        length = length_bucket(len(sample["token_ids"]), self.prompts.longest)
        return _Row(request, sample, encoded, seconds, (encoded.frames, length))

    def _answers(self, batch: Sequence[tuple[int, _Row]], decoding: Decoding) -> dict[int, Answer]:
        running = self._run([row for _, row in batch], decoding)
        while True:
            try:
                next(running)
            except StopIteration as end:
                return {number: answer for (number, _), answer in zip(batch, end.value, strict=True)}

    def _run(self, rows: Sequence[_Row], decoding: Decoding) -> Generator[list[str], None, list[Answer]]:
        """Yields what each row can show, time after time; returns the answers."""
        start = time.perf_counter()
        texts = [AnswerText(self.prompts.decode, self.prompts.end_ids, decoding.stop) for _ in rows]
        count = power_bucket(len(rows))
        most = decoding.max_new_tokens or self.prompts.answers.max_new_tokens
        if decoding.max_new_tokens is not None and most > self.prompts.longest:
            raise InputError(
                f"max_new_tokens: {most}, but the model's context (max_position_embeddings) has {self.prompts.longest} "
                "tokens"
            )
        limits, sampling = self._limits(rows, count, most), self._sampling(rows, count, decoding)
        encoded = [row.encoded.features for row in rows]
        features = self.engine.beside(encoded + encoded[:1] * (count - len(rows)))
        room = power_bucket(most, _LEAST_ROOM)
        asked = self._batch(rows, count)
        progress = self.engine.prefill(features, asked, room, limits, sampling)
        picked = self.engine.picked(features, asked)
        del features
        tokens = np.asarray(progress.token)[:, None]
        prefill, start = time.perf_counter() - start, time.perf_counter()
        while True:
            yield [text.push(said[said >= 0].tolist()) for text, said in zip(texts, tokens, strict=False)]
            stopped = np.array([*(text.finish is not None for text in texts), *[True] * (count - len(rows))])
            if (stopped | np.asarray(progress.done)).all():
                break
            progress, tokens = self.engine.decode(progress, limits, sampling, stopped)
        yield [text.close() for text in texts]
        seconds = prefill, time.perf_counter() - start
        return [
            self._answer(row, text, *seconds, {name: picks[number].tolist() for name, picks in picked.items()} or None)
            for number, (row, text) in enumerate(zip(rows, texts, strict=True))
        ]

    def _answer(
        self, row: _Row, text: AnswerText, prefill: float, decode: float, picked: dict[str, Any] | None
    ) -> Answer:
        assert text.finish is not None
        prompt, visual = len(row.sample["token_ids"]), int(row.sample["media_mask"].sum())
        return Answer(
            row.request.id,
            text.text,
            text.finish,
            prompt,
            visual,
            text.new_tokens,
            row.seconds_vision,
            prefill,
            decode,
            picked,
        )

    def _limits(self, rows: Sequence[_Row], count: int, most_new: int) -> Limits:
        room = [self.prompts.longest - len(row.sample["token_ids"]) for row in rows]
        most = np.minimum(np.pad(room, (0, count - len(rows))), most_new)
        return Limits(np.asarray(self.prompts.end_ids, np.int32), most.astype(np.int32))  # type: ignore[arg-type]

    def _sampling(self, rows: Sequence[_Row], count: int, decoding: Decoding) -> Sampling | None:
        """A key for each row, from the seed and the request's id alone."""
        if not decoding.temperature:
            return None
        keys = np.zeros((count, 2), np.uint32)
        for number, row in enumerate(rows):
            keys[number] = decoding.seed, zlib.crc32(row.request.id.encode())
        values: Any = np.float32(decoding.temperature), np.float32(decoding.top_p), keys
        return Sampling(*values)

    def _batch(self, rows: Sequence[_Row], count: int) -> Batch:
        """Of numpy arrays, without frames; rows behind the last are empty."""
        frames, length = rows[0].bucket
        filled = [_fields(row.sample, frames, length) for row in rows]
        for fields, row in zip(filled, rows, strict=True):
            if (prompt_ids := self.prompts.prompt_ids(row.request)) is not None:
                fields["prompt_ids"] = prompt_ids
        filled += [{name: np.zeros_like(value) for name, value in filled[0].items()}] * (count - len(rows))
        return Batch(**{name: np.stack([fields[name] for fields in filled]) for name in filled[0]})  # type: ignore[arg-type]


def _fields(sample: Sample, frames: int, length: int) -> dict[str, np.ndarray]:
    """A row of a batch."""
    count = len(sample["token_ids"])
    fields = {
        "frames": np.zeros((frames, 0, 0, 3), np.uint8),
        "media": padded(sample["media"], frames),
        "is_video": padded(sample["is_video"], frames),
        "positions": padded(np.arange(count, dtype=np.int32), length),
        "segment_ids": padded(np.ones(count, np.int32), length),
        "loss_mask": np.zeros(length, bool),
    }
    for name in ("token_ids", "media_mask", "visual_index", "visual_weight"):
        if name in sample:
            fields[name] = padded(sample[name], length)
    return fields


def _stamp(path: str) -> tuple[int, int] | None:
    """Tells a file that has changed from what was seen of it; what lies elsewhere is taken not to change."""
    if storage.is_remote(path) or not Path(path).exists():
        return None
    stat = Path(path).stat()
    return stat.st_mtime_ns, stat.st_size
