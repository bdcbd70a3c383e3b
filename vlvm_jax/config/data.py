"""Settings of data: what a stage takes of which files, how samples are prepared, how questions are put."""

from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from vlvm_jax.config.settings import FrozenDict, Settings

MAX_WORKERS = 1024  # processes that load samples

FrameRule = Literal["uniform", "fps", "segment", "segment_mid", "segment_start", "video_chatgpt", "ends"]
ShortVideo = Literal["formula", "identity"]
FrameFit = Literal["auto", "crop", "squash", "pad"]
ImageLayout = Literal["single", "anyres"]
ClipText = Literal["question", "question_and_options"]


class MixtureEntry(Settings):
    """A file of annotations, shards, a table or a mixture file (see `data.sources.mixture`) and how much of it to take.

    `path` may hold `{a,b}` and `*`; of a TFDS data set it is FOLDER@SPLIT. `format` is that of the records
    (a module of `data.sources.formats`) or of the files (`data.sources.mixture.CONTAINERS`), which check it; "auto" is
    what the first record and the names say. `media_root` is the folder of the media, by default the file's own.
    `fields` names the columns of tables: `{"video": "clip", "question": "text"}`. `pages` says how `text_pages` are
    drawn from long texts (`data.sources.text_pages.TextPages`).

    `media` keeps only image, video or text records, `types` only those with a question of one of these types.
    `fraction` takes that share of what is kept, `count` that many, drawn with the stage's seed; `repeat` takes what is
    drawn several times.

    `held_out` sets that share of the clips aside, and at least `held_out_clips` of them, and `side` says which of the
    two the entry takes. A hash of a clip's name decides, so it stays on its side when others are added.

    `weight` mixes the entries of a stage, which then all have one, in this ratio: an epoch holds one entry's records
    once and those of the others as often as it takes, at least once.
    """

    path: str
    format: str = "auto"
    media_root: str | None = None
    fields: Any = Field(default_factory=FrozenDict)
    pages: Any = Field(default_factory=FrozenDict)
    media: tuple[Literal["image", "video", "text"], ...] = ("image", "video", "text")
    types: tuple[str, ...] = ()
    fraction: float = Field(default=1.0, gt=0, le=1)
    count: PositiveInt | None = None
    repeat: PositiveInt = 1
    weight: PositiveFloat | None = None
    held_out: float = Field(default=0.0, ge=0, lt=1)
    held_out_clips: NonNegativeInt = 0
    side: Literal["training", "held_out"] = "training"

    @pydantic.field_validator("fields", mode="after")
    @classmethod
    def _freeze(cls, fields):
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields.values()):
            raise ValueError("fields must name a column for each key, as {'video': 'clip'}")
        return FrozenDict(fields)

    @pydantic.field_validator("pages", mode="after")
    @classmethod
    def _freeze_pages(cls, pages):
        if not isinstance(pages, Mapping):
            raise ValueError("pages must be options by name, as {'chunk_size': 115}")
        return FrozenDict(pages)

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.pages and self.format != "text_pages":
            raise ValueError("pages are drawn from texts: give format 'text_pages'")
        if self.weight is not None and self.repeat > 1:
            raise ValueError("weight already says how often; drop repeat")
        if self.count is not None and self.fraction < 1:
            raise ValueError("give one of fraction and count")
        if not self.held_out and (self.held_out_clips or self.side == "held_out"):
            raise ValueError("held_out: give the share of the clips that is set aside")
        return self


def all_weighted(data: tuple[MixtureEntry, ...]) -> tuple[MixtureEntry, ...]:
    without = [entry.path for entry in data if entry.weight is None]
    if 0 < len(without) < len(data):
        raise ValueError(f"weight: give all entries one, or none; {without[0]} has none")
    return data


class DataConfig(Settings):
    """What all stages share: the tokenizer, the chat template and how images and frames are prepared.

    `processor` is a directory in Hugging Face format whose image processor is used as transformers uses it, and with it
    the tokenizer; without one, images are scaled and cropped as CLIP's are. `chat_template` is the name of one of ours,
    or "checkpoint" for the one that lies by the tokenizer. `image_layout` `anyres` cuts images into tiles as the
    processor's family does; `single` shows them as one square. `time_instruction` has a sentence follow every clip with
    its duration and the times of the frames that are shown. `workers` are processes that load samples, 0 for threads of
    the training process; "auto" measures how long samples take. Where several processes share a machine, give a number.

    `frame_sampling` says which frames of a clip are taken (`data.media.frame_rules`): `uniform` midpoints of equal
    parts, `fps` what is on screen every 1/`fps` seconds (at midpoints of equal parts, if those are more than are asked
    for), `segment`, in training one drawn from each equal part, `segment_mid`, rounded midpoints (of Video-ChatGPT,
    SlowFast-LLaVA, Free Video-LLM and others; `video_chatgpt` takes no frame twice), `segment_start`, IG-VLM's first
    frames of parts, or `ends`, LLaVA-Video's equal steps from the first frame to the last. `short_video` `identity`
    takes each frame once of a clip of no more frames than are asked for, where `formula` has the rule repeat some. A
    clip kept as images has `folder_fps` frames a second where nothing else says.

    `frame_fit` says how frames, and images shown as one square, become squares: `crop` keeps the middle, `squash`
    scales both edges, `pad` adds the tower's mean colour, `auto` is what the processor does, and `crop` without one.
    `clips` `grid` shows a clip as one image of its frames (IG-VLM), which `image_layout` anyres cuts as others.

    `prompt_tokenizer` is the tokenizer of a CLIP text tower that a sample's first question goes to: a directory, a hub
    id, `{clip}` for that of `init_from.clip`, or a `tokenizer.json`. Its ids are cut and padded to `prompt_length`.
    `clip_text` says whether the options of a multiple-choice question go there too.

    `cache_mb` MiB of decoded clips and square images are kept by every loading process for the next epoch.
    """

    tokenizer: str
    chat_template: str = "vicuna_v1"
    processor: str | None = None
    image_layout: ImageLayout = "single"
    embedded: Any = None
    frame_sampling: FrameRule = "uniform"
    short_video: ShortVideo = "formula"
    fps: PositiveFloat = 1.0
    folder_fps: PositiveFloat = 1.0
    frame_fit: FrameFit = "auto"
    clips: Literal["frames", "grid"] = "frames"
    prompt_tokenizer: str | None = None
    prompt_length: PositiveInt = 77
    clip_text: ClipText = "question"
    time_instruction: bool = False
    workers: NonNegativeInt | Literal["auto"] = "auto"
    cache_mb: NonNegativeInt = 0
    max_bad_share: float = Field(default=0.01, ge=0, le=1)

    @pydantic.field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value):
        if value != "auto" and not str(value).isdigit():
            raise ValueError("give a number of processes, 0 or more, or 'auto'")
        if value != "auto" and int(value) > MAX_WORKERS:
            raise ValueError(f"more than {MAX_WORKERS} processes")
        return value

    @pydantic.field_validator("embedded", mode="after")
    @classmethod
    def _freeze(cls, options):
        return None if options is None else FrozenDict(options)

    @pydantic.model_validator(mode="after")
    def _check(self):
        for key, value in (("chat_template", "checkpoint"), ("image_layout", "anyres")):
            if getattr(self, key) == value and self.processor is None:
                raise ValueError(f"{key} {value!r} needs processor, the directory of a checkpoint")
        if self.clips == "grid" and self.time_instruction:
            raise ValueError("clips 'grid' shows an image, whose frames have no times; leave time_instruction off")
        return self


class AnswerConfig(Settings):
    """How a question about a clip is put when answers are generated.

    `frames` are taken of the clip; None: as many as the last stage takes. `prompt_template` is the name of a template
    in `data.prompt.answers`, a file ending in .txt, or text, with `{question}` and `{options}`; `append_question_mark`
    puts one after every question, also after one that has it (IG-VLM). `system` are instructions before it, None those
    of the chat template. The answer has to begin with `prefix`, where there are options with `options_prefix`, and has
    at most `max_new_tokens` tokens after it.
    """

    frames: PositiveInt | None = None
    prompt_template: str = "question"
    append_question_mark: bool = False
    system: str | None = None
    prefix: str = ""
    options_prefix: str = ""
    max_new_tokens: PositiveInt = 128
