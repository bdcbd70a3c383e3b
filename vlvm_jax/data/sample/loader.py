"""Record to sample, in a worker process: decode the media, write the prompt, tokenise it."""

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.images import grid
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.media.cache import MediaCache
from vlvm_jax.data.prompt import conversation
from vlvm_jax.data.prompt.conversation import Expansion, Prompt, Template
from vlvm_jax.data.prompt.guidance import scored_text, scoring_tokenizer
from vlvm_jax.data.record import LISTED, MediaKind, Record, evenly
from vlvm_jax.data.sample.assemble import Medium, Sample, assemble
from vlvm_jax.data.sample.plain import Picture, PlainProcessor, SampleProcessor
from vlvm_jax.data.sample.processor import Processor, load_processor
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.data.sample.turns import bare, rendered
from vlvm_jax.errors import InputError
from vlvm_jax.storage import StorageError


class SampleLoader:
    """Record index to sample, in a worker.

    A sample that cannot be used comes back empty, with its cause; so does what ends the run, for `SkipLog` to raise.
    """

    def __init__(self, records: Sequence[Record], spec: SampleSpec):
        self.records, self.spec = records, spec
        self._processor: SampleProcessor | None = None
        self._cache = MediaCache(spec.cache_bytes)
        self._lock = threading.Lock()  # several threads of a worker begin at once

    def __getstate__(self):
        return {"records": self.records, "spec": self.spec}

    def __setstate__(self, state):
        self.__init__(**state)

    @property
    def processor(self) -> SampleProcessor:
        """The checkpoint's processor, if the spec names one, else the plain one.

        Raises:
          InputError: it cannot be used, or is another tower's.
        """
        with self._lock:
            if self._processor is None:
                directory = self.spec.data.processor
                made: Any = self._plain() if directory is None else self._of_checkpoint(directory)
                _ = made.backend, made.template  # now: threads must not import transformers at once
                self._processor = cast(SampleProcessor, made)
            return self._processor

    def _plain(self) -> PlainProcessor:
        spec = self.spec
        return PlainProcessor(
            spec.data.tokenizer,
            spec.data.chat_template,
            size=spec.image_size,
            fit=spec.data.frame_fit,
            mean=spec.image_mean,
            image_tokens=spec.image_tokens,
            video_tokens=spec.video_tokens,
            time_instruction=spec.data.time_instruction,
        )

    def _of_checkpoint(self, directory: str) -> Processor:
        spec = self.spec
        processor = load_processor(
            directory,
            spec.data.tokenizer,
            chat_template=spec.data.chat_template,
            image_layout=spec.data.image_layout,
            image_tokens=spec.image_tokens,
            video_tokens=spec.video_tokens,
            time_instruction=spec.data.time_instruction,
            frame_fit=spec.data.frame_fit,
        )
        if processor.image_size != spec.image_size:
            raise InputError(
                f"config.data.processor: {directory} prepares images of {processor.image_size} pixels; "
                f"config.model.vision.image_size is {spec.image_size}"
            )
        return processor

    @property
    def layout(self) -> tuple[int, int]:
        """S and P of `visual_index`; zeros where there is none."""
        return self.processor.slots, self.processor.taps

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
        turns = [rendered(turn, spec.prompt_template, bool(record.media)) for turn in record.turns]
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
        return self.processor.template

    def tokenize(self, prompt: Prompt, expansions: Sequence[int | Expansion]) -> conversation.Tokens:
        """Token ids of a prompt that the template wrote, whose media become these."""
        return self.processor.tokenize(prompt, expansions, loss_on=self.spec.loss_on)

    def _kinds(self, record: Record) -> list[MediaKind]:
        """What the media are shown as."""
        return ["image" if self.spec.data.clips == "grid" else kind for kind, _ in record.media]

    def largest(self, record: Record) -> list[int | Expansion]:
        """What the record's media become at most; of their files only the sizes of images to be cut are read.

        A time instruction is counted as that of a clip of 100 seconds.

        Raises:
          BadSampleError: such an image cannot be used.
        """
        count, processor, kinds = self.spec.frames_per_video, self.processor, self._kinds(record)
        times = np.linspace(0, _TIMED_SECONDS, count).tolist()
        alone = kinds.count("image") == 1
        expansions: list[int | Expansion] = []
        for kind, (stored, path) in zip(kinds, record.media, strict=True):
            if kind == "image":
                size = self._size(stored, path) if processor.cuts_images else (1, 1)
                expansions.append(processor.image_plan(size, alone)[0])
            else:
                expansions.append(processor.clip_plan(count, times, _TIMED_SECONDS)[0])
        return expansions

    def _size(self, kind: MediaKind, path: str) -> tuple[int, int]:
        """Height and width of an image, or of the grid that a clip becomes."""
        if kind == "image":
            return video.image_size(path)
        first = video.decode_frames(path, 1, folder_fps=self.spec.data.folder_fps).frames[0]
        return grid.size(first.shape[0], first.shape[1], self.spec.frames_per_video)

    def media(self, record: Record, index: int = 0) -> list[Medium]:
        """A record's images and clips, decoded; or `BadSampleError`."""
        processor, chosen = self.processor, self._frame_choice(record, index)
        shown = list(zip(self._kinds(record), record.media, strict=True))
        pictures = [self._picture(*medium, chosen, index) for kind, medium in shown if kind == "image"]
        images = iter(processor.images(pictures))
        media = []
        for kind, (_, path) in shown:
            if kind == "image":
                media.append(next(images))
            else:
                clip = self._clip(path, chosen, processor.read_clip)
                frames = self._controlled(clip.frames, index)
                media.append(processor.clip(dataclasses.replace(clip, frames=frames)))
        return media

    def _picture(self, kind: MediaKind, path: str, chosen: dict[str, Any], index: int) -> Picture:
        """An image, or a clip as a grid of its frames."""
        if kind == "image":
            read_image: Any = functools.partial(self.processor.read_image, path)
            return self._cache.get(path, read_image) if self.processor.keeps_images else read_image()
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
        choice = {"rule": spec.data.frame_sampling, "fps": spec.data.fps, "folder_fps": spec.data.folder_fps}
        return {**choice, "span": record.span, "seed": seed, "short_video": spec.data.short_video}

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
        if spec.data.prompt_tokenizer is None:
            return {}
        if record is None:
            return {"prompt_ids": np.zeros(spec.data.prompt_length, np.int32), "prompt_cut": np.zeros(0, bool)}
        first = self._another(record, index).turns[0] if spec.control == "shuffled_prompt" else record.turns[0]
        text = scored_text(bare(first), first.options, spec.data.clip_text)
        ids, cut = scoring_tokenizer(spec.data.prompt_tokenizer, spec.data.prompt_length)(text)
        return {"prompt_ids": ids, "prompt_cut": np.ones(int(cut), bool)}

    def _another(self, record: Record, index: int) -> Record:
        """The next record that asks in other words; itself where none does."""
        for step in range(1, len(self.records)):
            try:
                other = self.records[(index + step) % len(self.records)]
            except BadSampleError:
                continue
            if bare(other.turns[0]) != bare(record.turns[0]):
                return other
        return record


_TIMED_SECONDS = 99.99


_NO_TOKENS = conversation.Tokens(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, bool))


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
            of_clip = 1 if spec.data.clips == "grid" else spec.frames_per_video
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
