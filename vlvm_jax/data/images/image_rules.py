"""How a family turns images and video frames into squares of its tower's size, by its checkpoint's own settings.

The work is done by transformers' PIL image processors (no torch), stopped before rescaling and normalising: what comes
out is uint8, and (pixels / 255 - image_mean) / image_std, done on the device, is what transformers would have given.
"""

import dataclasses
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlvm_jax.data.files import read_json, transformers_config
from vlvm_jax.data.images import anyres, stills
from vlvm_jax.data.images.anyres import Layout, Size
from vlvm_jax.errors import InputError, brief

Picture = Image.Image | np.ndarray  # an array is [H, W, 3] uint8
Frames = UInt8[np.ndarray, "n S S 3"]

REQUIRED = "the package transformers, from 5.23 on"
PROCESSORS = (
    "CLIPImageProcessor",
    "SiglipImageProcessor",
    "LlavaImageProcessor",
    "LlavaNextImageProcessor",
    "LlavaOnevisionImageProcessor",
    "Idefics3ImageProcessor",
    "SmolVLMImageProcessor",
    "GotOcr2ImageProcessor",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a checkpoint directory says of its preprocessing.

    Attributes:
      config: transformers' config of the model.
      image: settings of the image processor, from `image_file`.
      video: settings of the video processor; where the checkpoint has none of its own, those of images.
      processor: the rest of `processor_config.json`.
      frames: settings of the image processor for frames of clips, if these are not treated as in the family.
      clip_tokens: visual tokens of a frame of a clip and at the clip's end, if these are not the family's.
      around: tokens before and after every image and clip in the prompt.
      says_times: whether a sentence with its frames' times follows every clip, in LLaVA-Video's words.
    """

    directory: Path
    config: Any
    image: dict[str, Any]
    image_file: str
    video: dict[str, Any]
    processor: dict[str, Any]
    frames: dict[str, Any] | None = None
    clip_tokens: tuple[int, int] | None = None
    around: tuple[str, str] | None = None
    says_times: bool = False

    @property
    def tower(self) -> Any:
        return getattr(self.config, "vision_config", self.config)

    @property
    def where(self) -> str:
        return f"{self.directory}/{self.image_file}"


def read_files(folder: Path, stands_for: str | None = None) -> Settings:
    """Reads `config.json` and the processors' files of a directory in the layout of a transformers class.

    Raises:
      InputError: what has to be in it is not, or cannot be used.
    """
    try:
        config = transformers_config(folder, stands_for)
    except ImportError as error:
        raise InputError(f"config.data.processor needs {REQUIRED} ({brief(error)})") from None
    return read_processors(folder, config)


def read_processors(folder: Path, config: Any) -> Settings:
    """Reads the processors' files of a directory.

    Args:
      config: transformers' of the model whose processors they are.

    Raises:
      InputError: there are none.
    """
    processor = read_json(folder / "processor_config.json")
    image, file = processor.get("image_processor"), "processor_config.json"
    if image is None:
        image, file = read_json(folder / "preprocessor_config.json"), "preprocessor_config.json"
    if not image:
        raise InputError(f"{folder}: no preprocessor_config.json; images cannot be prepared as this checkpoint expects")
    video = processor.get("video_processor") or read_json(folder / "video_preprocessor_config.json") or image
    return Settings(folder, config, image, file, video, processor)


class PixelProcessor:
    """One of transformers' PIL image processors, giving uint8 squares of one size.

    Args:
      kind: name of its class, with or without the ending `Fast` or `Pil`.
      settings: as in `preprocessor_config.json`.
      size: pixels of the side, which the settings have to lead to.
      where: the settings' file, for messages.
    """

    def __init__(self, kind: str, settings: dict[str, Any], size: int, where: str):
        _check_settings(settings, where)
        self.settings, self.size, self.where = settings, size, where
        kept = {key: value for key, value in settings.items() if not key.endswith("_type")}
        off = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": True}
        try:
            self.processor = _class(kind, where)(**{**kept, **off})
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: transformers cannot use these settings ({brief(error)})") from None

    def __call__(self, images: Sequence[Picture], *, together: bool = False) -> Frames:
        """All squares of all images, in order.

        Args:
          together: tells OneVision that these are several images of one sample.
        """
        pictures = [Image.fromarray(image) if isinstance(image, np.ndarray) else stills.rgb(image) for image in images]
        pixels = self.processor.preprocess([pictures] if together else pictures)["pixel_values"]
        squares = [np.asarray(square) for square in _flat(pixels)]
        if any(square.shape != (3, self.size, self.size) or square.dtype != np.uint8 for square in squares):
            shapes = sorted({f"{square.dtype} {square.shape[1]}x{square.shape[2]}" for square in squares})
            raise InputError(
                f"{self.where}: these settings give images of {', '.join(shapes)}; the tower takes uint8 "
                f"{self.size}x{self.size} (vision_config.image_size)"
            )
        return np.ascontiguousarray(np.stack(squares).transpose(0, 2, 3, 1))


def _flat(nested: Any) -> list:
    """Arrays [3, H, W] out of whatever nesting a processor returns."""
    if np.ndim(nested[0]) == 2:
        return [nested]
    return [square for part in nested for square in _flat(part)]


def _check_settings(settings: dict[str, Any], where: str) -> None:
    for key in ("do_resize", "do_rescale"):
        if settings.get(key) is False:
            raise InputError(
                f"{where}: {key} is false; the device takes uint8 images of one size, which it divides by 255"
            )
    factor = settings.get("rescale_factor")
    if factor is not None and not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise InputError(f"{where}: rescale_factor is {factor}; the device divides by 255")


def _class(kind: str, where: str) -> type:
    name = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name not in PROCESSORS:
        raise InputError(f"{where}: image_processor_type {kind!r} is not supported; there are {', '.join(PROCESSORS)}")
    try:
        return getattr(importlib.import_module("transformers"), f"{name}Pil")
    except (ImportError, AttributeError) as error:
        raise InputError(f"config.data.processor needs {REQUIRED} ({brief(error)})") from None


@dataclasses.dataclass(frozen=True)
class Cut:
    """How an image of some size is cut: into how many frames, where its tokens come from, rows and columns of tiles."""

    frames: int
    layout: Layout | None = None
    grid: Size = (0, 0)


class SquareRule:
    """LLaVA-1.5, CLIP, SigLIP: every image and every frame is one square, by the image processor's settings."""

    taps = 0

    def __init__(self, settings: Settings, default: str = "CLIPImageProcessor"):
        self.size = settings.tower.image_size
        self._images = PixelProcessor(_kind(settings.image, default), settings.image, self.size, settings.where)
        self._frames = self._images

    @property
    def statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation per channel, of pixels from 0 to 1."""
        processor = self._images.processor
        if self._images.settings.get("do_normalize") is False:
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return _channels(processor.image_mean), _channels(processor.image_std)

    def frames(self, frames: Sequence[Picture]) -> Frames:
        """Of a clip, one square each."""
        return self._frames(frames)

    def take_frames(self, processor: PixelProcessor) -> None:
        """Sets the processor for frames of clips."""
        self._frames = processor

    def whole(self, images: Sequence[Picture]) -> Frames:
        """Images that are not to be cut, one square each."""
        return self._images(images)

    def tiles(self, images: Sequence[Picture]) -> list[Frames]:
        """Images as transformers' processor cuts them, each into as many squares as `cut` says."""
        return [self._images([image]) for image in images]

    def cut(self, size: Size, alone: bool) -> Cut:
        """How `tiles` cuts an image of this height and width; `alone`: it is the only one of its sample."""
        del size, alone
        return Cut(1)


class TileRule(SquareRule):
    """LLaVA-NeXT and later: a squashed square of the whole image, and tiles of a canvas.

    With `video`, frames of clips go the way of the class's video processor; without, they are squashed like the whole
    image. (transformers resizes frames with torchvision, which rounds differently from PIL: most pixels are equal, few
    differ by more than 1 of 255.)

    Args:
      processor: the class of the image processor, if the settings do not name one.
      taps: patches that a visual token is put together from, at most.
      most: tiles' worth of tokens that an image has at most.
      pads_several: several images in one sample are not cut, but padded to a square in the mean colour.
      video: settings of the processor for frames of clips.
    """

    def __init__(
        self,
        settings: Settings,
        processor: str,
        *,
        taps: int = 1,
        most: int | None = None,
        pads_several: bool = False,
        video: dict[str, Any] | None = None,
    ):
        config, tower = settings.config, settings.tower
        super().__init__(settings, processor)
        self.side = tower.image_size // tower.patch_size
        self.taps, self.max_tiles, self.pads_several = taps, most, pads_several
        self.pinpoints = [list(pinpoint) for pinpoint in self._images.processor.image_grid_pinpoints]
        if self.pinpoints != [list(pinpoint) for pinpoint in config.image_grid_pinpoints]:
            raise InputError(f"{settings.where}: image_grid_pinpoints are not those of config.json")
        if any(edge % self.size for pinpoint in self.pinpoints for edge in pinpoint):
            raise InputError(
                f"{settings.where}: image_grid_pinpoints are not multiples of the tower's image_size {self.size}"
            )
        squash = {"size": {"height": self.size, "width": self.size}, "resample": self._images.processor.resample}
        self._whole = PixelProcessor("SiglipImageProcessor", squash, self.size, settings.where)
        self._frames = self._whole
        if video is not None:
            where = f"{settings.directory}: video processor"
            self._frames = PixelProcessor("CLIPImageProcessor", video, self.size, where)

    def whole(self, images: Sequence[Picture]) -> Frames:
        return self._whole(images)

    def tiles(self, images: Sequence[Picture]) -> list[Frames]:
        if self.pads_several and len(images) > 1:
            return [square[None] for square in self._images(images, together=True)]
        return super().tiles(images)

    def cut(self, size: Size, alone: bool) -> Cut:
        if self.pads_several and not alone:
            return Cut(1, anyres.in_order(1, self.side**2, self.side**2, newline=True, taps=self.taps))
        layout = anyres.tiled(size, self.pinpoints, self.size, self.side, taps=self.taps, max_tiles=self.max_tiles)
        return Cut(anyres.num_tiles(size, self.pinpoints, self.size), layout)


class SplitRule(SquareRule):
    """Idefics3, SmolVLM: tiles of the enlarged image (unless `do_image_splitting` is off) and, last, the whole image
    squashed. Frames of clips are never cut.

    Args:
      processor: the class of the image processor, if the settings do not name one.
      video: settings of the processor for frames of clips, if they differ from those of images.
    """

    def __init__(self, settings: Settings, processor: str, *, video: dict[str, Any] | None = None):
        self.size = settings.tower.image_size
        kind, image = _kind(settings.image, processor), {**settings.image, "do_pad": False}
        self._images = PixelProcessor(kind, image, self.size, settings.where)
        self.splits = self._images.processor.do_image_splitting
        self.longest = self._images.processor.size.longest_edge
        if not self.longest:
            raise InputError(f"{settings.where}: size has no longest_edge, from which the tiles of an image follow")
        self._whole = PixelProcessor(kind, {**image, "do_image_splitting": False}, self.size, settings.where)
        self._frames = self._whole
        if video is not None:
            frame = {**video, "do_pad": False, "do_image_splitting": False}
            self._frames = PixelProcessor(kind, frame, self.size, f"{settings.directory}: video processor")

    def whole(self, images: Sequence[Picture]) -> Frames:
        return self._whole(images)

    def cut(self, size: Size, alone: bool) -> Cut:
        del alone
        rows, columns = anyres.split_grid(size, self.longest, self.size) if self.splits else (0, 0)
        return Cut(1 + rows * columns, grid=(rows, columns))


class CanvasRule(SquareRule):
    """InternVL: tiles of a canvas of the shape nearest to the image's and, last, the whole image squashed; an image of
    one tile is that alone. Frames of clips are never cut.

    Args:
      video: settings of the processor for frames of clips.
    """

    def __init__(self, settings: Settings, processor: str, *, video: dict[str, Any]):
        kind = _kind(settings.image, processor)
        self.size = settings.tower.image_size
        self._images = PixelProcessor(kind, {**settings.image, "crop_to_patches": True}, self.size, settings.where)
        self._whole = PixelProcessor(kind, {**settings.image, "crop_to_patches": False}, self.size, settings.where)
        frames = {**video, "crop_to_patches": False}
        self._frames = PixelProcessor(kind, frames, self.size, f"{settings.directory}: video processor")

    def whole(self, images: Sequence[Picture]) -> Frames:
        return self._whole(images)

    def cut(self, size: Size, alone: bool) -> Cut:
        del alone
        processor = self._images.processor
        tiles = processor.get_number_of_image_patches(*size)
        if tiles == 1:
            return Cut(1)
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

        columns, rows = get_optimal_tiled_canvas(
            tuple(size), (self.size, self.size), processor.min_patches, processor.max_patches
        )
        return Cut(tiles, grid=(rows, columns))


def of_frames(rule: SquareRule, settings: Settings) -> SquareRule:
    """The rule with the settings' own processor for frames of clips, if they have one."""
    if settings.frames is not None:
        kind = _kind(settings.frames, "CLIPImageProcessor")
        rule.take_frames(PixelProcessor(kind, settings.frames, rule.size, settings.where))
    return rule


def video_settings(settings: Settings) -> dict[str, Any]:
    """What of the video processor's settings the processor for frames takes."""
    keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor")
    return {key: settings.video[key] for key in keys if settings.video.get(key) is not None}


def _kind(settings: dict[str, Any], default: str) -> str:
    return settings.get("image_processor_type") or settings.get("feature_extractor_type") or default


def _channels(value: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, Sequence) else [value] * 3
    return red, green, blue


def max_tiles(ratio: str, directory: Path) -> int:
    """Tiles' worth of tokens that an image has at most, by OneVision's `vision_aspect_ratio`."""
    most = anyres.max_tiles(ratio)
    if most is None:
        raise InputError(
            f"{directory}/config.json: vision_aspect_ratio is {ratio!r}; expected 'anyres_max_<number>', a number from "
            "1 on"
        )
    return most
