"""Records to batches with Grain: load in worker processes, pack rows of fixed shape, batch. No jax in here.

Samples are decoded and tokenised in workers; packing and batching happen after them in the main process, so that the
order of samples does not depend on the number of workers, and so that what is skipped is counted in one place.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags
from etils import epath

from vlvm_jax.data import conversation, video
from vlvm_jax.data.records import Record
from vlvm_jax.data.video import BadSampleError
from vlvm_jax.data.workers import follow_parent
from vlvm_jax.errors import InputError

Sample = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """How a record becomes a sample; everything is plain data, so that it travels to workers.

    Attributes:
      length: L, tokens per row.
      frames: T, frames per row.
      frames_per_video: frames taken from one clip.
      image_tokens: visual tokens of an image.
      video_tokens: `video_tokens[n]` visual tokens of a clip of n frames.
      control: None, or what evaluation does to clips: `blank_video`, `shuffled_frames`.
    """

    length: int
    frames: int
    frames_per_video: int
    image_size: int
    image_tokens: int
    video_tokens: tuple[int, ...]
    tokenizer: str
    chat_template: str
    frame_sampling: Literal["uniform", "fps"] = "uniform"
    fps: float = 1.0
    loss_on: str = "answer"
    control: str | None = None

    def check(self, where: str, has_video: bool) -> None:
        """Raises `InputError` when a clip's visual tokens alone overflow the row."""
        if not has_video:
            return
        tokens = self.video_tokens[self.frames_per_video]
        if tokens >= self.length:
            raise InputError(
                f"{where}.length: a clip of {self.frames_per_video} frames takes {tokens} visual tokens "
                f"({tokens / self.frames_per_video:g} a frame), which leaves no room for text in a length of "
                f"{self.length}; raise length, or take fewer frames or tokens per frame"
            )


class SampleLoader:
    """Record index to sample, in a worker. A sample that cannot be used comes back empty, with its cause."""

    def __init__(self, records: Sequence[Record], spec: SampleSpec):
        self.records, self.spec = records, spec
        self._tokenizer = None

    def __getstate__(self):
        return {"records": self.records, "spec": self.spec, "_tokenizer": None}

    @property
    def tokenizer(self):
        if self._tokenizer is None:
            self._tokenizer = conversation.load_tokenizer(self.spec.tokenizer)
        return self._tokenizer

    def __call__(self, index: int) -> Sample:
        try:
            return self.load(int(index))
        except BadSampleError as error:
            record = self.records[int(index)].source
            note = json.dumps({"record": int(index), "source": record, "cause": error.cause, "detail": error.detail})
            return self._sample(int(index), _NO_TOKENS, [], note)

    def load(self, index: int) -> Sample:
        """The sample of one record, or `BadSampleError`."""
        record, spec = self.records[index], self.spec
        media = []
        for kind, path in record.media:
            if kind == "image":
                media.append((kind, video.read_image(path, spec.image_size)))
            else:
                media.append((kind, self._clip(path, index)))
        counts = [spec.image_tokens if kind == "image" else spec.video_tokens[len(f)] for kind, f in media]
        tokens = self.encode(record, counts)
        num_frames = sum(len(f) for _, f in media)
        if num_frames > spec.frames:
            raise BadSampleError("too_many_frames", f"{record.source}: {num_frames} frames for a row of {spec.frames}")
        return self._sample(index, tokens, media, "")

    def encode(self, record: Record, counts: Sequence[int]) -> conversation.Tokens:
        template = conversation.get_template(self.spec.chat_template)
        tokens = conversation.encode(record.turns, counts, self.tokenizer, template, loss_on=self.spec.loss_on)
        if len(tokens.ids) > self.spec.length:
            text = len(tokens.ids) - sum(counts)
            raise BadSampleError(
                "too_long", f"{record.source}: {sum(counts)} visual + {text} text tokens > length {self.spec.length}"
            )
        return tokens

    def _clip(self, path: str, index: int) -> np.ndarray:
        spec = self.spec
        frames = video.read_clip(
            path, spec.frames_per_video, spec.image_size, rule=spec.frame_sampling, fps=spec.fps
        )  # fmt: skip
        if spec.control == "blank_video":
            return np.full_like(frames, 128)
        if spec.control == "shuffled_frames":
            return frames[np.random.default_rng([index, 1]).permutation(len(frames))]
        return frames

    def _sample(self, index: int, tokens: conversation.Tokens, media: list, bad: str) -> Sample:
        size = self.spec.image_size
        lengths = [len(f) for _, f in media]
        return {
            "token_ids": tokens.ids,
            "media_mask": tokens.media_mask,
            "loss_mask": tokens.loss_mask,
            "record": np.full(len(tokens.ids), index, np.int32),
            "frames": np.concatenate([np.zeros((0, size, size, 3), np.uint8), *(f for _, f in media)]),
            "media": np.repeat(np.arange(1, len(media) + 1, dtype=np.int32), lengths),
            "is_video": np.repeat(np.array([kind == "video" for kind, _ in media], bool), lengths),
            "bad": np.frombuffer(bad.encode(), np.uint8),
        }


_NO_TOKENS = conversation.Tokens(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, bool))


class SkipLog:
    """Counts the records that could not be used, once each, and fails the run when they are too many.

    Args:
      records: of the stage; `max_share` of them (of this process's share of them) may be unusable.
      path: JSON-lines file that lists them; what it lists of this stage already counts.
    """

    def __init__(
        self,
        records: Sequence[Record],
        max_share: float,
        path: epath.Path | None = None,
        stage: str = "",
        process_count: int = 1,
    ):
        self.total = -(-len(records) // process_count)
        self.records, self.max_share, self.path, self.stage = records, max_share, path, stage
        self.causes: dict[int, str] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                if not line.endswith("}"):  # a crash cut it off
                    continue
                entry = json.loads(line)
                if entry["stage"] == stage:
                    self.causes[entry["record"]] = entry["cause"]

    def usable(self, sample: Sample) -> bool:
        """False for an empty sample, which is noted.

        Raises:
          InputError: more than `max_share` of the records are unusable.
        """
        if not len(sample["bad"]):
            return True
        note = json.loads(sample["bad"].tobytes())
        if note["record"] not in self.causes:
            self.causes[note["record"]] = note["cause"]
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"stage": self.stage, **note}) + "\n")
            self._check(note)
        return False

    def _check(self, note: dict[str, Any]) -> None:
        bad = len(self.causes)
        if bad > self.max_share * self.total:
            raise InputError(
                f"{bad} of {self.total} samples of stage {self.stage!r} cannot be used, more than "
                f"config.data.max_bad_share = {self.max_share:g} allows; the last: {note['cause']}: {note['detail']}"
            )

    def summary(self) -> dict[str, int]:
        """Number of unusable records by cause."""
        return dict(Counter(self.causes.values()))


def make_dataset(
    records: Sequence[Record],
    spec: SampleSpec,
    *,
    rows: int,
    pack: bool,
    skip_log: SkipLog,
    seed: int | None,
    workers: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Batches of `rows` rows (this process's share), as dicts with the fields of `models.video_llm.Batch` and `record`.

    With a seed: shuffled anew every epoch, for ever. Without: once, in order, the last batch filled up with empty rows.
    """
    dataset = grain.MapDataset.range(len(records))
    if seed is not None:
        dataset = dataset.seed(seed).shuffle().repeat()
    dataset = dataset[process_index::process_count].map(SampleLoader(records, spec))
    loaded = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0 if workers else 2, prefetch_buffer_size=2 * rows))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags; outside a command nobody has parsed any
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4 * rows)
        loaded = loaded.mp_prefetch(options, worker_init_fn=_start_worker)
    usable = loaded.filter(skip_log.usable)
    packed = grain.experimental.FirstFitPackIterDataset(
        usable.map(_drop_note),
        length_struct=dict.fromkeys(_TOKEN_FEATURES, spec.length) | dict.fromkeys(_FRAME_FEATURES, spec.frames),
        num_packing_bins=rows,
        shuffle_bins=False,
        max_sequences_per_bin=None if pack else 1,
        meta_features=[key for key in (*_TOKEN_FEATURES, *_FRAME_FEATURES) if key not in ("token_ids", "frames")],
    )
    batched = packed.map(_finish_row).batch(rows, drop_remainder=seed is not None, batch_fn=_pad_batch(rows))
    # Packing the next batches overlaps with the step on this one.
    return grain.experimental.ThreadPrefetchIterDataset(batched, prefetch_buffer_size=2)


_TOKEN_FEATURES = ("token_ids", "media_mask", "loss_mask", "record")
_FRAME_FEATURES = ("frames", "media", "is_video")


def _start_worker(_worker: int, _workers: int) -> None:
    follow_parent()


def _drop_note(sample: Sample) -> Sample:
    return {key: value for key, value in sample.items() if key != "bad"}


def _finish_row(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Grain's packed features to ours: one id per medium along the row."""
    segment, local = row["frames_segment_ids"], row["media"]
    change = np.concatenate([[True], (segment[1:] != segment[:-1]) | (local[1:] != local[:-1])])
    return {
        "frames": row["frames"],
        "media": np.where(segment > 0, np.cumsum(change), 0).astype(np.int32),
        "is_video": row["is_video"],
        "token_ids": row["token_ids"],
        "media_mask": row["media_mask"],
        "positions": row["token_ids_positions"],
        "segment_ids": row["token_ids_segment_ids"],
        "loss_mask": row["loss_mask"],
        "record": row["record"],
    }


def _pad_batch(rows: int):
    def batch(items: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        empty = {key: np.zeros_like(value) for key, value in items[0].items()}
        items = [*items, *[empty] * (rows - len(items))]
        return {key: np.stack([item[key] for item in items]) for key in empty}

    return batch


def split_turns(records: Sequence[Record]) -> list[Record]:
    """One record per question, each asked alone: an earlier answer must not help a later one."""
    alone = []
    for record in records:
        media = "".join(f"{conversation.PLACEHOLDER}\n" for _ in record.media)
        for number, turn in enumerate(record.turns):
            question = turn.question
            if question.count(conversation.PLACEHOLDER) != len(record.media):
                question = media + question.replace(conversation.PLACEHOLDER, "").strip()
            alone.append(
                dataclasses.replace(
                    record, id=f"{record.id}/{number}", turns=(dataclasses.replace(turn, question=question),)
                )
            )
    return alone


def check_lengths(loader: SampleLoader, where: str, max_share: float, probe: int = 256) -> None:
    """Tokenises a spread of records before anything runs, so that a length that cannot work fails at once.

    Media are counted at their largest: a clip at `frames_per_video` frames.
    """
    spec, records = loader.spec, loader.records
    chosen = np.unique(np.linspace(0, len(records) - 1, min(probe, len(records))).astype(int))
    faults = []
    for index in chosen:
        record = records[index]
        counts = [
            spec.image_tokens if kind == "image" else spec.video_tokens[spec.frames_per_video]
            for kind, _ in record.media
        ]
        try:
            loader.encode(record, counts)
        except BadSampleError as error:
            faults.append(error.detail)
    if len(faults) > max_share * len(chosen):
        raise InputError(f"{where}.length: {len(faults)} of {len(chosen)} records probed do not fit; {faults[0]}")
