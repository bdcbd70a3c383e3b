"""What a base family is: all that this library has to know about the checkpoints of one architecture.

A family is one file in this folder with a class `Family`, found by its place. There are three kinds, each with a class
to derive from: a bare tower (`_tower`), a bare decoder (`_decoder`) and a whole VLM (`_vlm`). Nothing outside this
folder compares a family's name: it reads an attribute of `Family` or calls a method. Nothing here imports jax.

The shortest example is `siglip.py`; of a VLM, `llava.py`.
"""

import abc
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from vlvm_jax.config import (
    AdapterConfig,
    AnswerConfig,
    ConnectorConfig,
    DataConfig,
    DecoderConfig,
    DType,
    FrameFit,
    FrameTokens,
    VisionConfig,
)
from vlvm_jax.data.files import read_json
from vlvm_jax.data.images.image_rules import Settings, SquareRule, read_files
from vlvm_jax.errors import InputError

Transform = Literal["same", "transpose", "patches"]
Pieces = tuple[str | int, ...]  # text, and numbers of visual tokens
Part = Literal["tower", "decoder", "head", "connector", "newline"]
CLIP_FOLDER = "clip"  # config, tokenizer and processors of a CLIP that an adapter holds
NAMED_TOWER_FOLDER = "mm_vision_tower"  # an import keeps files there of a tower that its checkpoint only names


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter.

    Attributes:
      tensor: its name in HF, `{i}` standing for the layer.
      path: its path here; layers are stacked on a leading axis.
      transform: `same`; `transpose` (HF keeps Linear weights as [out, in]); `patches` (a convolution [D, 3, P, P] that
        is a [P * P * 3, D] kernel here, in row, column, channel order).
      layers: how many layers there are, None for a parameter outside the stacks.
      outer: axes of size 1 that the tensor has before those of the parameter.
    """

    tensor: str
    path: str
    transform: Transform = "same"
    layers: int | None = None
    outer: int = 0

    def tensors(self) -> list[str]:
        return [self.tensor] if self.layers is None else [self.tensor.format(i=i) for i in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parts of a model stand on disk: the prefix of each. A part that is not named is not in the files."""

    name: str
    prefixes: Mapping[Part, str]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MediaTokens:
    """Ids that stand for visual tokens in a class's `input_ids`."""

    image: int
    video: int


@dataclasses.dataclass(frozen=True)
class Access:
    """How a family reaches what stands beside `config.json`.

    Attributes:
      tensors: the names of the checkpoint's tensors.
      fetch: downloads another checkpoint, named by hub id or directory; the second argument is the key that names it.
    """

    tensors: Callable[[], Iterable[str]]
    fetch: Callable[[str, str], Any]


@dataclasses.dataclass(frozen=True)
class HFModel:
    """A checkpoint directory, read.

    Attributes:
      family: name of the family whose layouts its files have.
      hf_family: name of the family of the transformers class that it is or corresponds to.
      vision, decoder, connector: None for what the checkpoint does not have (bare towers and decoders).
      frame_tokens: what its class does with frames, where that can be said so.
      adapter: otherwise.
      has_newline: whether `image_newline` is among the tensors.
      tower_source: for checkpoints that leave the tower in its own repository, its id.
      raw: `config.json`, but for what names code.
    """

    directory: Path
    family: str
    hf_family: str
    vision: VisionConfig | None = None
    decoder: DecoderConfig | None = None
    connector: ConnectorConfig | None = None
    frame_tokens: FrameTokens = dataclasses.field(default_factory=FrameTokens)
    has_newline: bool = False
    tower_source: str | None = None
    adapter: AdapterConfig | None = None
    raw: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a model was trained to be asked.

    Attributes:
      frames: of a clip, None where that is not said.
      dtype: of the computation; likewise.
    """

    data: DataConfig
    answers: AnswerConfig = dataclasses.field(default_factory=AnswerConfig)
    frames: int | None = None
    dtype: DType | None = None


def own_data(directory: Path, tower: Path | None = None, **settings: Any) -> DataConfig:
    """Settings with which a checkpoint is asked in its own way.

    Args:
      tower: where the files of the tower are, if not in the directory.
      settings: that differ from the usual ones.
    """
    return DataConfig(
        tokenizer=str(directory),
        processor=str(tower or directory),
        chat_template="checkpoint",
        image_layout="anyres",
        **settings,
    )


@dataclasses.dataclass(frozen=True)
class Exported:
    """What goes out as a class.

    Attributes:
      connector, frame_tokens, tokens: None for a bare tower or decoder.
      has_head: SigLIP's pooling head is among the tensors.
      dtype: of the tensors.
    """

    vision: VisionConfig | None
    decoder: DecoderConfig | None
    connector: ConnectorConfig | None
    frame_tokens: FrameTokens | None
    tokens: MediaTokens | None
    has_head: bool
    dtype: str


class Family(abc.ABC):
    """One base family: how its checkpoints are read.

    Attributes:
      name: as an import's `model.json` and `convert export --format` have it: the class's model_type, if it is one.
      precedence: which of two families has a `config.json` that both claim: the one with the larger number.
      model_types: of the `config.json` files that are of this family.
      layouts: the on-disk layouts; an export has the first one.
      sees: whether it has a vision tower.
      carried: tensors that no model here uses but the transformers class wants back. They are kept beside the
        parameters and exported unchanged.
      auto_tokenizer: whether `AutoTokenizer` finds the tokenizer's class by the model's type.
    """

    name: ClassVar[str]
    precedence: ClassVar[int] = 0
    model_types: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[Layout, ...]]
    sees: ClassVar[bool] = True
    carried: ClassVar[re.Pattern | None] = None
    auto_tokenizer: ClassVar[bool] = True

    def claims(self, raw: Mapping[str, Any]) -> bool:
        """Whether a `config.json` is of this family."""
        return raw.get("model_type") in self.model_types

    def class_of(self, raw: dict[str, Any]) -> str:
        """The name of the family of the transformers class that a checkpoint is or corresponds to."""
        del raw
        return self.name

    @abc.abstractmethod
    def read(self, directory: Path, raw: dict[str, Any], access: Access) -> HFModel:
        """Reads a checkpoint's settings.

        Raises:
          InputError: a setting that this library cannot run exactly.
        """

    def dropped(self, model: HFModel) -> re.Pattern | None:
        """Tensors that neither this library nor the transformers class uses."""
        del model
        return None

    def own_clips(self, raw: dict[str, Any]) -> FrameTokens | None:
        """What the config says about clips, if it says so instead of the transformers class."""
        del raw
        return None

    def named_tower(self, directory: Path, raw: dict[str, Any]) -> Path | None:
        """Where the files of a tower are that the checkpoint only names, if they are on this machine."""
        del directory, raw
        return None

    def default_token_id(self, raw: Mapping[str, Any], kind: str) -> int | None:
        """The id of the token for `image` or `video` where the config leaves it to the class."""
        del raw, kind
        return None

    def settings(self, directory: Path, raw: dict[str, Any]) -> Settings:
        """What the directory says of its preprocessing.

        Raises:
          InputError: a file is missing or cannot be used.
        """
        return read_files(directory, self.class_of(raw))

    def preparation(self, directory: Path, raw: dict[str, Any]) -> Preparation | None:
        """How the model is asked, if the config says so beyond what the processors' files say.

        Raises:
          InputError: what it says cannot be used.
        """
        del directory, raw
        return None

    def tiling(self, raw: dict[str, Any], size: int) -> dict[str, Any]:
        """What a config says about images in tiles, in the keys of transformers' classes.

        Args:
          size: pixels of a tile's side.
        """
        del size
        return {key: raw[key] for key in ("image_grid_pinpoints", "vision_aspect_ratio") if raw.get(key)}

    def processor_files(
        self, directory: Path, stock: "StockFamily | None", config: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """The processors' files that an export needs and a checkpoint of this family does not have, by name.

        Args:
          stock: the family of the class that is exported; None for our own class.
          config: the export's `config.json`.
        """
        del directory, stock, config
        return {}


class StockFamily(Family):
    """A family with a transformers class of its own, which an export can be.

    Attributes:
      architecture: the transformers class.
      peft_prefixes: where the modules of each part stand in the class, for a LoRA that is exported as an adapter.
      has_newline: whether the class has an `image_newline`.
      has_video: whether the class has an input for clips and a token that stands for them; elsewhere frames are images.
      video_processor: the class's video processor.
      frame_tokens: what the class does with frames.
      taps: patches that a visual token of an image in tiles is put together from, at most.
      batched_images: whether `pixel_values` has an axis for the samples before that of their images.
      only_tiles: whether the class cuts every image into tiles and takes nothing else.
      writes_clips: whether the checkpoint's chat template knows clips.
      clips_are_images: whether the processor writes the frames of a clip out as images.
      stamps_frames: whether the processor writes the time of each frame into the prompt.
      note: what a user of an export has to know, for its card.
    """

    architecture: ClassVar[str]
    peft_prefixes: ClassVar[Mapping[str, str]] = {"decoder": "model"}
    has_newline: ClassVar[bool] = False
    has_video: ClassVar[bool] = False
    video_processor: ClassVar[str | None] = None
    frame_tokens: ClassVar[FrameTokens] = FrameTokens()
    taps: ClassVar[int] = 1
    batched_images: ClassVar[bool] = False
    only_tiles: ClassVar[bool] = False
    writes_clips: ClassVar[bool] = False
    clips_are_images: ClassVar[bool] = False
    stamps_frames: ClassVar[bool] = False
    note: ClassVar[str | None] = None

    def image_rule(self, settings: Settings) -> SquareRule:
        """How images and frames become squares of the tower's size."""
        return SquareRule(settings)

    def token(self, tokenizer: Any, kind: str) -> str | None:
        """The token that stands for an `image` or `video`, where transformers' processor looks for it in its tokenizer;
        None where that has none."""
        return getattr(tokenizer, f"{kind}_token", None)

    def joined_patches(self, config: Any) -> int:
        """The side of the squares of patches that become one token; `config` is transformers' of the model."""
        del config
        return 1

    def image_pieces(self, tokenizer: Any, grid: tuple[int, int], count: int) -> Pieces:
        """What the processor writes for an image in the prompt.

        Args:
          tokenizer: transformers' own.
          grid: rows and columns of the tiles before the whole image; (0, 0) for the whole image alone.
          count: visual tokens of each square.
        """
        del tokenizer, grid
        return (count,)

    def clip_pieces(self, tokenizer: Any, times: Sequence[float], duration: float | None, count: int) -> Pieces:
        """What the processor writes for a clip in the prompt, if it writes frames out as images.

        Args:
          times: of the frames, in seconds.
          duration: of the clip, in seconds, if it is known.
          count: visual tokens of each frame.
        """
        del duration
        return self.image_pieces(tokenizer, (0, 0), count) * len(times)

    @property
    def clip_template(self) -> str | None:
        """The chat template with which transformers replaces the checkpoint's own where there are clips."""
        return None

    def clip_tokens(self, config: Any, side: int, own: int) -> tuple[int, int]:
        """Visual tokens per frame, and at a clip's end, in the transformers class.

        Args:
          config: transformers' config of the model.
          side: patches along a side of the tower's grid.
          own: tokens of one square.
        """
        del config, side
        return own, 0

    @abc.abstractmethod
    def fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        """The fields of `config.json` that follow from what is exported."""

    def kept(self, base: dict[str, Any]) -> dict[str, Any]:
        """What an export of this family keeps of the `config.json` of the checkpoint that the model came from."""
        return base if base.get("model_type") == self.name else {}

    def image_processor(
        self, tower: dict[str, Any], size: int, pinpoints: list[list[int]] | None, padded: bool
    ) -> dict[str, Any]:
        """Settings of the class's image processor, built on those of the tower's own processor.

        Args:
          pinpoints: canvases of the classes that cut images into tiles.
          padded: whether images are made square by padding.
        """
        del size, pinpoints, padded
        return tower

    def made_files(
        self, vision: VisionConfig, fit: FrameFit, config: dict[str, Any], image_token: str
    ) -> dict[str, dict[str, Any]]:
        """The processors' files of an export that has no checkpoint behind it, by name; {} where that cannot be said.

        Args:
          fit: how pictures become squares.
          config: the export's `config.json`.
        """
        del vision, fit, config, image_token
        return {}


def settings_of(cls, where: str, **values):
    """A settings class filled with what a config says.

    Raises:
      InputError: a value cannot be run exactly.
    """
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        given = f" {values[key]!r}" if key in values else ""
        raise InputError(
            f"{where}: {key}{given} cannot be run exactly: {message}" if key else f"{where}: {message}"
        ) from None


def pixel_statistics(directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the image processor's file, None where there is no such file."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        values = read_json(directory / name)
        values = values.get("image_processor", values)
        if "image_mean" in values and "image_std" in values:
            return tuple(values["image_mean"]), tuple(values["image_std"])
    return None
