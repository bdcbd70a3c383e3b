"""Records to batches with Grain: load in worker processes, pack rows of fixed shape, batch. No jax in here.

Samples are decoded and tokenised in workers; packing and batching happen after them in the main process, so that the
order of samples does not depend on the number of workers, and so that what is skipped is counted in one place.
"""

import dataclasses
import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np
from PIL import Image

from vlvm_jax.data import packing, tuning, video
from vlvm_jax.data.cache import MediaCache
from vlvm_jax.data.decoding.sampling import FrameRule
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.loading import loaded
from vlvm_jax.data.media import Medium, Sample, assemble
from vlvm_jax.data.processor import ImageLayout, Processor, load_processor
from vlvm_jax.data.sources.records import MediaKind, Record, evenly
from vlvm_jax.data.stream import WHOLE, Part, PartOf
from vlvm_jax.data.text import conversation, prompts, templates
from vlvm_jax.data.text.conversation import Expansion, Prompt, Template
from vlvm_jax.data.tuning import Loading
from vlvm_jax.errors import InputError
from vlvm_jax.storage import StorageError


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
      processor: directory whose image settings, tokenizer class and, for the `chat_template` "checkpoint", template are
        used as transformers uses them; None for this library's own.
      image_layout: `anyres` cuts images into tiles as the processor's family does.
      frame_sampling, fps, folder_fps: which frames of a clip, see `video.decode_clip`.
      seed: with which frames are drawn from segments; None for their midpoints.
      time_instruction: a sentence with its times follows every clip, see `prompts.time_instruction`.
      cache_bytes: of decoded media that each loading process keeps.
    """

    length: int
    frames: int
    frames_per_video: int
    image_size: int
    image_tokens: int
    video_tokens: tuple[int, ...]
    tokenizer: str
    chat_template: str
    frame_sampling: FrameRule = "uniform"
    fps: float = 1.0
    folder_fps: float = 1.0
    seed: int | None = None
    loss_on: str = "answer"
    control: str | None = None
    processor: str | None = None
    image_layout: ImageLayout = "single"
    time_instruction: bool = False
    cache_bytes: int = 0

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
    """Record index to sample, in a worker.

    A sample that cannot be used comes back empty, with its cause; so does what ends the run, for `SkipLog` to raise.
    """

    def __init__(self, records: Sequence[Record], spec: SampleSpec):
        self.records, self.spec = records, spec
        self._tokenizer = self._processor = None
        self._cache = MediaCache(spec.cache_bytes)
        self._lock = threading.Lock()  # several threads of a worker begin at once

    def __getstate__(self):
        return {"records": self.records, "spec": self.spec}

    def __setstate__(self, state):
        self.__init__(**state)

    @property
    def tokenizer(self):
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = conversation.load_tokenizer(self.spec.tokenizer)
            return self._tokenizer

    @property
    def processor(self) -> Processor | None:
        """The checkpoint's processor, where the spec names one.

        Raises:
          InputError: it cannot be used, or is another tower's.
        """
        with self._lock:
            if self._processor is None and self.spec.processor is not None:
                self._processor = self._load_processor(self.spec.processor)
            return self._processor

    def _load_processor(self, directory: str) -> Processor:
        spec = self.spec
        processor = load_processor(
            directory,
            spec.tokenizer,
            chat_template=spec.chat_template,
            image_layout=spec.image_layout,
            image_tokens=spec.image_tokens,
            video_tokens=spec.video_tokens,
            time_instruction=spec.time_instruction,
        )
        if processor.image_size != spec.image_size:
            raise InputError(
                f"config.data.processor: {directory} prepares images of {processor.image_size} pixels; "
                f"config.model.vision.image_size is {spec.image_size}"
            )
        _ = processor.tokenizer, processor.template  # now: threads must not import transformers at once
        return processor

    @property
    def layout(self) -> tuple[int, int]:
        """S and P of `visual_index`; zeros where there is none."""
        return (0, 0) if self.processor is None else (self.processor.slots, self.processor.taps)

    def __call__(self, index: int) -> Sample:
        index, source = int(index), ""
        try:
            record = self.records[index]
            source = record.source
            return self._load(record, index)
        except BadSampleError as error:
            note = {"record": index, "source": source, "cause": error.cause, "detail": error.detail}
        except (StorageError, InputError) as error:  # a worker's would come with its traceback
            note = {"raises": type(error).__name__, "detail": str(error)}
        return self._sample(index, _NO_TOKENS, [], json.dumps(note))

    def empty(self) -> Sample:
        """A sample of no tokens and no media."""
        return self._sample(0, _NO_TOKENS, [], "")

    def load(self, index: int) -> Sample:
        """The sample of one record, or `BadSampleError`."""
        return self._load(self.records[index], index)

    def _load(self, record: Record, index: int) -> Sample:
        spec = self.spec
        media = self.media(record, index)
        tokens = self.encode(record, [medium.expansion for medium in media])
        num_frames = sum(len(medium.frames) for medium in media)
        if num_frames > spec.frames:
            raise BadSampleError("too_many_frames", f"{record.source}: {num_frames} frames for a row of {spec.frames}")
        return self._sample(index, tokens, media, "")

    def encode(self, record: Record, expansions: Sequence[int | Expansion]) -> conversation.Tokens:
        """Token ids of a record whose media become these, or `BadSampleError` for more than fit."""
        spec = self.spec
        kinds: list[MediaKind] = [kind for kind, _ in record.media]
        tokens = self.tokenize(self.template.conversation(record.turns, kinds, system=record.system), expansions)
        if len(tokens.ids) > spec.length:
            visual = int(tokens.media_mask.sum())
            raise BadSampleError(
                "too_long",
                f"{record.source}: {visual} visual + {len(tokens.ids) - visual} text tokens > length {spec.length}",
            )
        return tokens

    @property
    def template(self) -> Template:
        """How conversations are written."""
        if self.processor is not None:
            return self.processor.template
        return templates.get_template(self.spec.chat_template, self.tokenizer)

    def tokenize(self, prompt: Prompt, expansions: Sequence[int | Expansion]) -> conversation.Tokens:
        """Token ids of a prompt that the template wrote, whose media become these."""
        if self.processor is not None:
            return self.processor.tokenize(prompt, expansions, loss_on=self.spec.loss_on)
        return conversation.tokenize(prompt, expansions, self.tokenizer, loss_on=self.spec.loss_on)

    def largest(self, record: Record) -> list[int | Expansion]:
        """What the record's media become at most; of their files only the sizes of images to be cut are read.

        A time instruction is counted as that of a clip of 100 seconds.

        Raises:
          BadSampleError: such an image cannot be used.
        """
        spec, processor = self.spec, self.processor
        times = np.linspace(0, _TIMED_SECONDS, spec.frames_per_video).tolist()
        if processor is None:
            clip = self._clip_expansion(times, _TIMED_SECONDS)
            return [clip if kind == "video" else spec.image_tokens for kind, _ in record.media]
        alone = sum(kind == "image" for kind, _ in record.media) == 1
        found: list[int | Expansion] = []
        for kind, path in record.media:
            if kind == "image":
                size = video.image_size(path) if spec.image_layout == "anyres" else (1, 1)
                found.append(processor.image_plan(size, alone)[0])
            else:
                found.append(processor.clip_plan(spec.frames_per_video, times, _TIMED_SECONDS)[0])
        return found

    def _clip_expansion(self, times: Sequence[float], duration: float | None) -> Expansion:
        note = prompts.time_instruction(times, duration) if self.spec.time_instruction else ""
        return Expansion((self.spec.video_tokens[len(times)],), note=note)

    def media(self, record: Record, index: int = 0) -> list[Medium]:
        """A record's images and clips, decoded; or `BadSampleError`."""
        spec, processor = self.spec, self.processor
        chosen = self._frame_choice(record, index)
        if processor is None:
            media = []
            for kind, path in record.media:
                if kind == "image":
                    read = functools.partial(video.read_image, path, spec.image_size)
                    frames, expansion, times = self._cache.get(path, read), Expansion((spec.image_tokens,)), ()
                else:
                    clip = self._clip(path, chosen, functools.partial(video.decode_clip, to_frame=self._scaled))
                    frames = self._controlled(clip.frames, index)
                    expansion, times = self._clip_expansion(clip.times, clip.duration), clip.times
                media.append(Medium(kind, frames, expansion, times=times))
            return media
        pictures = [video.open_image(path) for kind, path in record.media if kind == "image"]
        images = iter(processor.images(pictures))
        media = []
        for kind, path in record.media:
            if kind == "image":
                media.append(next(images))
            else:
                clip = self._clip(path, chosen, processor.read_clip)
                media.append(processor.clip(dataclasses.replace(clip, frames=self._controlled(clip.frames, index))))
        return media

    def _clip(self, path: str, chosen: dict[str, Any], read: Callable[..., video.Clip]) -> video.Clip:
        read = functools.partial(read, path, self.spec.frames_per_video, **chosen)
        return self._cache.get((path, *chosen.values()), read)

    def _frame_choice(self, record: Record, index: int) -> dict[str, Any]:
        """Which frames of a record's clips are taken: the same ones in every epoch."""
        spec = self.spec
        seed = None if spec.seed is None else (spec.seed, index)
        choice = {"rule": spec.frame_sampling, "fps": spec.fps, "folder_fps": spec.folder_fps}
        return {**choice, "span": record.span, "seed": seed}

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        return video.resize(Image.fromarray(pixels), self.spec.image_size)

    def _controlled(self, frames: np.ndarray, index: int) -> np.ndarray:
        if self.spec.control == "blank_video":
            return np.full_like(frames, 128)
        if self.spec.control == "shuffled_frames":
            return frames[np.random.default_rng([index, 1]).permutation(len(frames))]
        return frames

    def _sample(self, index: int, tokens: conversation.Tokens, media: Sequence[Medium], bad: str) -> Sample:
        slots, taps = self.layout
        return {
            **assemble(tokens, media, self.spec.image_size, slots=slots, taps=taps),
            "record": np.full(len(tokens.ids), index, np.int32),
            "bad": np.frombuffer(bad.encode(), np.uint8),
        }


_TIMED_SECONDS = 99.99
_NO_TOKENS = conversation.Tokens(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, bool))


class SkipLog:
    """Counts the records that could not be used, once each, and fails the run when they are too many.

    Args:
      records: of the stage; `max_share` of them may be unusable.
      path: JSON-lines file `skipped*.jsonl` of this process that lists them; what such files in its folder list of
        this stage already counts.
      processes: how many write such files at the same time.
      fetch: brings into the folder what the others have written, where they write elsewhere.
    """

    def __init__(
        self,
        records: Sequence[Record],
        max_share: float,
        path: Path | None = None,
        stage: str = "",
        processes: int = 1,
        fetch: Callable[[], None] = lambda: None,
    ):
        self.records, self.path, self.stage, self.fetch = records, path, stage, fetch
        self.max_share, self.limit, self.processes = max_share, max_share * len(records), processes
        self.causes: dict[int, str] = {}
        self._read_lists()

    def _read_lists(self) -> None:
        """Takes note of what this and other processes, now or in earlier runs, have listed of this stage."""
        self.fetch()
        for path in self.path.parent.glob("skipped*.jsonl") if self.path is not None else ():
            for line in path.read_text().splitlines():
                if not line.endswith("}"):  # a crash cut it off, or it is being written
                    continue
                entry = json.loads(line)
                if entry["stage"] == self.stage:
                    self.causes[entry["record"]] = entry["cause"]

    def usable(self, sample: Sample) -> bool:
        """False for an empty sample, which is noted.

        Raises:
          InputError: more than `max_share` of the records are unusable; or as loading the sample raised it.
          StorageError: storage failed while the sample was loaded.
        """
        if not len(sample["bad"]):
            return True
        note = json.loads(sample["bad"].tobytes())
        if "raises" in note:
            raise (StorageError if note["raises"] == StorageError.__name__ else InputError)(note["detail"])
        if note["record"] not in self.causes:
            self.causes[note["record"]] = note["cause"]
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"stage": self.stage, **note}) + "\n")
            self._check(note)
        return False

    def _check(self, note: dict[str, Any]) -> None:
        if self.processes > 1 and len(self.causes) * self.processes > self.limit:  # never before all have too many
            self._read_lists()
        bad = len(self.causes)
        if bad > self.limit:
            raise InputError(
                f"{bad} of {len(self.records)} samples of stage {self.stage!r} cannot be used, more than "
                f"config.data.max_bad_share = {self.max_share:g} allows; the last: {note['cause']}: {note['detail']}"
            )

    def summary(self) -> dict[str, int]:
        """Number of unusable records by cause, of all processes."""
        self._read_lists()
        return dict(Counter(self.causes.values()))


def make_dataset(
    records: Sequence[Record],
    spec: SampleSpec,
    *,
    rows: int,
    pack: bool,
    skip_log: SkipLog,
    seed: int | None,
    workers: int | Literal["auto"] | Loading,
    part: Part = WHOLE,
) -> grain.IterDataset:
    """Batches of `rows` rows, as dicts with the fields of `models.video_llm.Batch`, `record` and `last`.

    `visual_index` and `visual_weight` are among them where the spec's processor cuts images so that they are needed.
    `last` int64 [rows] numbers the last sample of each row among those of the reader, the skipped ones counted.

    With a seed: shuffled anew every epoch, for ever. Without: once, in order, the last batch filled up with empty rows.
    The batches are the same whatever the workers.

    Args:
      workers: processes that load samples; see `plan_loading`.
      part: of the samples in this order; all by default.
    """
    loading = workers if isinstance(workers, Loading) else plan_loading(records, spec, rows, pack, workers)
    order = grain.MapDataset.range(len(records))
    if seed is not None:
        order = order.seed(seed).shuffle().repeat()
    loader = SampleLoader(records, spec)
    samples = grain.MapDataset.source(PartOf(order, part)).map(loader)
    numbered = loaded(samples, loading, rows).map_with_index(functools.partial(packing.numbered, part.taken))
    usable = numbered.filter(skip_log.usable)
    batches = _batched(usable, loader, rows, pack, drop_remainder=seed is not None)
    # Packing the next batches overlaps with the step on this one.
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=loading.batches)


def plan_loading(
    records: Sequence[Record], spec: SampleSpec, rows: int, pack: bool, workers: int | Literal["auto"]
) -> Loading:
    """How samples are loaded by that many workers, or by as many as a short measurement suggests."""
    loader = SampleLoader(records, spec)
    _, taps = loader.layout
    return tuning.plan(
        tuning.measure(loader, len(records), spec.length, spec.frames) if workers == "auto" else workers,
        sample_bytes=3 * spec.frames * spec.image_size**2 + (10 + 8 * taps) * spec.length,
        rows=rows,
        pack=pack,
        cache_bytes=spec.cache_bytes,
    )


def empty_batch(spec: SampleSpec, rows: int) -> dict[str, np.ndarray]:
    """A batch as `make_dataset` gives them, without a sample in it."""
    loader = SampleLoader([], spec)
    nothing = grain.MapDataset.source([packing.numbered(0, 0, loader.empty())]).to_iter_dataset()
    return next(iter(_batched(nothing, loader, rows, pack=True)))


def _batched(
    samples: grain.IterDataset, loader: SampleLoader, rows: int, pack: bool, *, drop_remainder: bool = False
) -> grain.IterDataset:
    spec = loader.spec
    return packing.batched(
        samples, length=spec.length, frames=spec.frames, rows=rows, pack=pack, layout=loader.layout,
        drop_remainder=drop_remainder,
    )  # fmt: skip


def split_turns(records: Iterable[Record]) -> list[Record]:
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
    records = loader.records
    chosen = evenly(len(records), probe)
    faults, wrong = [], []
    for index in chosen:
        try:
            record = records[index]
            loader.encode(record, loader.largest(record))
        except BadSampleError as error:
            if error.cause == "too_long":  # files that cannot be used are counted when they are loaded
                faults.append(error.detail)
            elif error.cause == "bad_record":
                wrong.append(error.detail)
    if len(wrong) > max(max_share, 0.1) * len(chosen):  # fewer may be fewer yet among all, which loading counts
        raise InputError(f"{where}.data: {len(wrong)} of {len(chosen)} records probed do not parse; {wrong[0]}")
    if len(faults) > max_share * len(chosen):
        raise InputError(f"{where}.length: {len(faults)} of {len(chosen)} records probed do not fit; {faults[0]}")
