"""Records to batches with Grain: load in worker processes, pack rows of fixed shape, batch. No jax in here.

Samples are decoded and tokenised in workers; packing and batching happen after them in the main process, so that the
order of samples does not depend on the number of workers, and so that what is skipped is counted in one place.
"""

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import grain
import numpy as np
from PIL import Image

from vlvm_jax.data import packing, tuning, video
from vlvm_jax.data.cache import MediaCache
from vlvm_jax.data.decoding.sampling import FrameRule, ShortVideo
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.images import grid
from vlvm_jax.data.images.squares import Fit, to_square
from vlvm_jax.data.loading import loaded
from vlvm_jax.data.media import Medium, Sample, assemble
from vlvm_jax.data.processor import ImageLayout, Processor, load_processor
from vlvm_jax.data.skipped import SkipLog
from vlvm_jax.data.sources.records import LISTED, MediaKind, Record, Turn, evenly
from vlvm_jax.data.stream import WHOLE, Part, PartOf
from vlvm_jax.data.text import answers, conversation, prompts, templates
from vlvm_jax.data.text.conversation import Expansion, Prompt, Template
from vlvm_jax.data.text.scoring import ClipText, scored_text, scoring_tokenizer
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
      control: None, or what evaluation does to clips, `blank_video`, `shuffled_frames`, or to what guides the look at
        them, `shuffled_prompt`.
      processor: directory whose image settings, tokenizer class and, for the `chat_template` "checkpoint", template are
        used as transformers uses them; None for this library's own.
      image_layout: `anyres` cuts images into tiles as the processor's family does.
      frame_sampling, fps, folder_fps, short_video: which frames of a clip, see `video.decode_frames`.
      seed: with which frames are drawn from segments; None for their midpoints.
      time_instruction: a sentence with its times follows every clip, see `prompts.time_instruction`.
      cache_bytes: of decoded media that each loading process keeps.
      frame_fit: how frames, and images shown as one square, become squares, see `squares.to_square`; `auto` as the
        processor says, cropped without one.
      image_mean: the tower's; the colour around padded pictures where there is no processor.
      clips: `grid` shows a clip as one image of `frames_per_video` tiles, see `images.grid`.
      prompt_tokenizer: of the CLIP text tower that reads a sample's first question: samples have `prompt_ids`.
      prompt_length: P of `prompt_ids`.
      clip_text: whether that tower reads a question's options too.
      prompt_template: in which questions are put, see `answers.render_question`; `prompt_ids` are those of the question
        alone.
      max_clips: of a sample; None for any number.
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
    short_video: ShortVideo = "formula"
    frame_fit: Fit = "auto"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    clips: Literal["frames", "grid"] = "frames"
    prompt_tokenizer: str | None = None
    prompt_length: int = 77
    clip_text: ClipText = "question"
    prompt_template: str = "question"
    max_clips: int | None = None

    def check(self, where: str, has_video: bool) -> None:
        """Raises `InputError` when a clip's visual tokens alone overflow the row."""
        if not has_video or self.clips == "grid":
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
            frame_fit=spec.frame_fit,
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

    def named(self, index: int) -> str:
        """What messages call a record: its source and media."""
        try:
            record = self.records[int(index)]
        except BadSampleError:
            return f"record {index}"
        media = [path.partition(LISTED)[0] for _, path in record.media]
        return f"{record.source} ({', '.join(media[:3])}{', ...' if media[3:] else ''})" if media else record.source

    def empty(self) -> Sample:
        """A sample of no tokens and no media."""
        return self._sample(0, _NO_TOKENS, [], "")

    def load(self, index: int) -> Sample:
        """The sample of one record, or `BadSampleError`."""
        return self._load(self.records[index], index)

    def _load(self, record: Record, index: int) -> Sample:
        spec = self.spec
        clips = sum(kind == "video" for kind, _ in record.media)
        if spec.max_clips is not None and clips > spec.max_clips:
            raise BadSampleError("too_many_clips", f"{record.source}: {clips} clips; the model takes {spec.max_clips}")
        media = self.media(record, index)
        tokens = self.encode(record, [medium.expansion for medium in media])
        num_frames = sum(len(medium.frames) for medium in media)
        if num_frames > spec.frames:
            raise BadSampleError("too_many_frames", f"{record.source}: {num_frames} frames for a row of {spec.frames}")
        return self._sample(index, tokens, media, "", record)

    def encode(self, record: Record, expansions: Sequence[int | Expansion]) -> conversation.Tokens:
        """Token ids of a record whose media become these, or `BadSampleError` for more than fit."""
        spec = self.spec
        turns = [_rendered(turn, spec.prompt_template, bool(record.media)) for turn in record.turns]
        prompt = self.template.conversation(turns, self._kinds(record), system=record.system)
        tokens = self.tokenize(prompt, expansions)
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

    def _kinds(self, record: Record) -> list[MediaKind]:
        """What the media are shown as."""
        return ["image" if self.spec.clips == "grid" else kind for kind, _ in record.media]

    def largest(self, record: Record) -> list[int | Expansion]:
        """What the record's media become at most; of their files only the sizes of images to be cut are read.

        A time instruction is counted as that of a clip of 100 seconds.

        Raises:
          BadSampleError: such an image cannot be used.
        """
        spec, processor, kinds = self.spec, self.processor, self._kinds(record)
        times = np.linspace(0, _TIMED_SECONDS, spec.frames_per_video).tolist()
        if processor is None:
            clip = self._clip_expansion(times, _TIMED_SECONDS)
            return [clip if kind == "video" else spec.image_tokens for kind in kinds]
        alone = kinds.count("image") == 1
        found: list[int | Expansion] = []
        for kind, (stored, path) in zip(kinds, record.media, strict=True):
            if kind == "image":
                size = self._size(stored, path) if spec.image_layout == "anyres" else (1, 1)
                found.append(processor.image_plan(size, alone)[0])
            else:
                found.append(processor.clip_plan(spec.frames_per_video, times, _TIMED_SECONDS)[0])
        return found

    def _size(self, kind: MediaKind, path: str) -> tuple[int, int]:
        """Height and width of an image, or of the grid that a clip becomes."""
        if kind == "image":
            return video.image_size(path)
        first = video.decode_frames(path, 1, folder_fps=self.spec.folder_fps).frames[0]
        return grid.size(first.shape[0], first.shape[1], self.spec.frames_per_video)

    def _clip_expansion(self, times: Sequence[float], duration: float | None) -> Expansion:
        note = prompts.time_instruction(times, duration) if self.spec.time_instruction else ""
        return Expansion((self.spec.video_tokens[len(times)],), note=note)

    def media(self, record: Record, index: int = 0) -> list[Medium]:
        """A record's images and clips, decoded; or `BadSampleError`."""
        kinds, chosen = self._kinds(record), self._frame_choice(record, index)
        shown = list(zip(kinds, record.media, strict=True))
        if self.processor is None:
            return [
                self._image(*medium, chosen, index) if kind == "image" else self._frames(medium[1], chosen, index)
                for kind, medium in shown
            ]
        pictures = [self._picture(*medium, chosen, index) for kind, medium in shown if kind == "image"]
        images = iter(self.processor.images(pictures))
        media = []
        for kind, (_, path) in shown:
            if kind == "image":
                media.append(next(images))
            else:
                clip = self._clip(path, chosen, self.processor.read_clip)
                frames = self._controlled(clip.frames, index)
                media.append(self.processor.clip(dataclasses.replace(clip, frames=frames)))
        return media

    def _image(self, kind: MediaKind, path: str, chosen: dict[str, Any], index: int) -> Medium:
        """An image, or a clip as one, without a processor."""
        if kind == "image":
            square = self._cache.get(path, lambda: self._square(video.open_image(path)))
        else:
            square = self._square(self._picture(kind, path, chosen, index))
        return Medium("image", square[None], Expansion((self.spec.image_tokens,)))

    def _frames(self, path: str, chosen: dict[str, Any], index: int) -> Medium:
        """A clip's frames, without a processor."""
        clip = self._clip(path, chosen, functools.partial(video.decode_clip, to_frame=self._square))
        expansion = self._clip_expansion(clip.times, clip.duration)
        return Medium("video", self._controlled(clip.frames, index), expansion, times=clip.times)

    def _picture(self, kind: MediaKind, path: str, chosen: dict[str, Any], index: int) -> Image.Image:
        """An image at its own size, or a clip as a grid of its frames."""
        if kind == "image":
            return video.open_image(path)
        count = self.spec.frames_per_video
        read = lambda: grid.Stills(tuple(video.decode_frames(path, count, **chosen).frames))  # noqa: E731
        stills = self._cache.get(("grid", path, *chosen.values()), read)
        return grid.image(self._controlled(stills.frames, index), count)

    def _clip(self, path: str, chosen: dict[str, Any], read: Callable[..., video.Clip]) -> video.Clip:
        read = functools.partial(read, path, self.spec.frames_per_video, **chosen)
        return self._cache.get((path, *chosen.values()), read)

    def _frame_choice(self, record: Record, index: int) -> dict[str, Any]:
        """Which frames of a record's clips are taken: the same ones in every epoch."""
        spec = self.spec
        seed = None if spec.seed is None else (spec.seed, index)
        choice = {"rule": spec.frame_sampling, "fps": spec.fps, "folder_fps": spec.folder_fps}
        return {**choice, "span": record.span, "seed": seed, "short_video": spec.short_video}

    def _square(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        return to_square(picture, self.spec.image_size, self.spec.frame_fit, self.spec.image_mean)

    def _controlled(self, frames: Any, index: int) -> Any:
        """Frames, stacked or of different sizes, as the control has them."""
        if self.spec.control == "blank_video":
            return np.full_like(frames, 128) if isinstance(frames, np.ndarray) else [f * 0 + 128 for f in frames]
        if self.spec.control == "shuffled_frames":
            order = np.random.default_rng([index, 1]).permutation(len(frames))
            return frames[order] if isinstance(frames, np.ndarray) else [frames[i] for i in order]
        return frames

    def _sample(
        self, index: int, tokens: conversation.Tokens, media: Sequence[Medium], bad: str, record: Record | None = None
    ) -> Sample:
        slots, taps = self.layout
        return {
            **assemble(tokens, media, self.spec.image_size, slots=slots, taps=taps),
            **self._guidance(record, index),
            "record": np.full(len(tokens.ids), index, np.int32),
            "bad": np.frombuffer(bad.encode(), np.uint8),
        }

    def _guidance(self, record: Record | None, index: int) -> Sample:
        """Ids of the first question for the tower that scores by it, `prompt_ids` int32 [P], where there is one."""
        spec = self.spec
        if spec.prompt_tokenizer is None:
            return {}
        if record is None:
            return {"prompt_ids": np.zeros(spec.prompt_length, np.int32), "prompt_cut": np.zeros(0, bool)}
        first = self._another(record, index).turns[0] if spec.control == "shuffled_prompt" else record.turns[0]
        text = scored_text(_bare(first), first.options, spec.clip_text)
        ids, cut = scoring_tokenizer(spec.prompt_tokenizer, spec.prompt_length)(text)
        return {"prompt_ids": ids, "prompt_cut": np.ones(int(cut), bool)}

    def _another(self, record: Record, index: int) -> Record:
        """The next record that asks in other words; itself where none does."""
        for step in range(1, len(self.records)):
            try:
                other = self.records[(index + step) % len(self.records)]
            except BadSampleError:
                continue
            if _bare(other.turns[0]) != _bare(record.turns[0]):
                return other
        return record


def _bare(turn: Turn) -> str:
    """A question without its placeholders."""
    return turn.question.replace(conversation.PLACEHOLDER, "").strip()


def _rendered(turn: Turn, template: str, has_media: bool = True) -> Turn:
    """A turn whose question stands in the template, its placeholders before it."""
    if template == "question" and not turn.options:
        return turn
    media = f"{conversation.PLACEHOLDER}\n" * turn.question.count(conversation.PLACEHOLDER) if has_media else ""
    question = answers.render_question(_bare(turn) if has_media else turn.question, turn.options, template)
    return dataclasses.replace(turn, question=media + question)


_TIMED_SECONDS = 99.99
_NO_TOKENS = conversation.Tokens(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, bool))


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
    The batches are the same whatever the workers. With the spec's `prompt_tokenizer`, which needs rows of one sample,
    `prompt_ids` int32 [rows, P] are among them.

    Args:
      workers: processes that load samples; see `plan_loading`.
      part: of the samples in this order; all by default.

    Raises:
      InputError: packed rows of samples that are guided by their question.
    """
    check_guided(spec.prompt_tokenizer, pack, "config")
    loading = workers if isinstance(workers, Loading) else plan_loading(records, spec, rows, pack, workers)
    order = grain.MapDataset.range(len(records))
    if seed is not None:
        order = order.seed(seed).shuffle().repeat()
    loader = SampleLoader(records, spec)
    chosen = PartOf(order, part)
    samples = grain.MapDataset.source(chosen).map(loader)
    arrived = loaded(samples, loading, rows, lambda number: loader.named(chosen[number]))
    numbered = arrived.map_with_index(functools.partial(packing.numbered, part.taken))
    usable = numbered.filter(skip_log.usable)
    batches = _batched(usable, loader, rows, pack, drop_remainder=seed is not None)
    # Packing the next batches overlaps with the step on this one.
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=loading.batches)


def check_guided(prompt_tokenizer: str | None, pack: bool, where: str) -> None:
    """Raises `InputError` when clips that are looked at by their question would share rows."""
    if pack and prompt_tokenizer is not None:
        raise InputError(
            f"{where}.pack: with config.data.prompt_tokenizer a question guides what is seen of its clip, and a row "
            "holds one question; set pack to False"
        )


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
    return next(iter(_batched(nothing, loader, rows, pack=spec.prompt_tokenizer is None)))


def _batched(
    samples: grain.IterDataset, loader: SampleLoader, rows: int, pack: bool, *, drop_remainder: bool = False
) -> grain.IterDataset:
    spec = loader.spec
    return packing.batched(
        samples, length=spec.length, frames=spec.frames, rows=rows, pack=pack, layout=loader.layout,
        prompt_length=spec.prompt_length if spec.prompt_tokenizer is not None else 0,
        drop_remainder=drop_remainder,
    )  # fmt: skip


def split_turns(records: Iterable[Record]) -> list[Record]:
    """One record per question, each asked alone: an earlier answer must not help a later one."""
    alone = []
    for record in records:
        media = "".join(f"{conversation.PLACEHOLDER}\n" for _ in record.media)
        for number, turn in enumerate(record.turns):
            question = turn.question
            if record.media and question.count(conversation.PLACEHOLDER) != len(record.media):
                question = media + question.replace(conversation.PLACEHOLDER, "").strip()
            alone.append(
                dataclasses.replace(
                    record, id=f"{record.id}/{number}", turns=(dataclasses.replace(turn, question=question),)
                )
            )
    return alone


def check_lengths(loader: SampleLoader, where: str, max_share: float, probe: int = 256) -> list[tuple[int, int]]:
    """Tokenises a spread of records before anything runs, so that a length that cannot work fails at once.

    Media are counted at their largest: a clip at `frames_per_video` frames.

    Returns:
      Tokens and frames of each record that fits; an image counts as one frame, also where it is cut into tiles.
    """
    records, spec = loader.records, loader.spec
    chosen = evenly(len(records), probe)
    faults, wrong, sizes = [], [], []
    for index in chosen:
        try:
            record = records[index]
            tokens = loader.encode(record, loader.largest(record))
            of_clip = 1 if spec.clips == "grid" else spec.frames_per_video
            shown = sum(of_clip if kind == "video" else 1 for kind, _ in record.media)
            if shown <= spec.frames:
                sizes.append((len(tokens.ids), shown))
        except BadSampleError as error:
            if error.cause == "too_long":  # files that cannot be used are counted when they are loaded
                faults.append(error.detail)
            elif error.cause == "bad_record":
                wrong.append(error.detail)
    if len(wrong) > max(max_share, 0.1) * len(chosen):  # fewer may be fewer yet among all, which loading counts
        raise InputError(f"{where}.data: {len(wrong)} of {len(chosen)} records probed do not parse; {wrong[0]}")
    if len(faults) > max_share * len(chosen):
        raise InputError(f"{where}.length: {len(faults)} of {len(chosen)} records probed do not fit; {faults[0]}")
    return sizes
