"""What prepares samples: the interface, and the plain way for models that were not imported with a processor."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlvm_jax.config import FrameFit
from vlvm_jax.data.images.anyres import Layout, Size
from vlvm_jax.data.images.squares import to_square
from vlvm_jax.data.media import frames as frames_lib
from vlvm_jax.data.media.frames import Clip
from vlvm_jax.data.prompt import conversation, templates, time_instruction
from vlvm_jax.data.prompt.conversation import Expansion, Prompt, Template, Tokens
from vlvm_jax.data.sample.assemble import Medium

Picture = Image.Image | np.ndarray  # an array is [H, W, 3] uint8


class SampleProcessor(Protocol):
    """How media become squares and prompts become token ids.

    Attributes:
      slots, taps: S and P of `visual_index`; zeros where there is none.
      cuts_images: whether an image's size decides what it becomes.
      keeps_images: whether `read_image` gives a square, worth keeping for the next epoch.
      template: how conversations are written.
      backend: the tokenizer, as the library tokenizers has it.
      eos_token_ids: tokens that end an answer, besides the template's own mark.
    """

    @property
    def slots(self) -> int: ...

    @property
    def taps(self) -> int: ...

    @property
    def cuts_images(self) -> bool: ...

    @property
    def keeps_images(self) -> bool: ...

    @property
    def template(self) -> Template: ...

    @property
    def backend(self) -> Any: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def read_image(self, path: str) -> Picture:
        """One image, at its own size or ready."""
        ...

    def images(self, images: Sequence[Picture]) -> list[Medium]:
        """The images of one sample."""
        ...

    def read_clip(self, path: str, count: int, **options: Any) -> Clip:
        """At most `count` frames of a file or folder; options and errors of `media.frames.decode_clip`."""
        ...

    def clip(self, clip: Clip) -> Medium:
        """A clip whose frames are ready."""
        ...

    def image_plan(self, size: Size, alone: bool) -> tuple[Expansion, Layout | None]:
        """What an image of this height and width takes in the prompt; `alone`: it is the only one of its sample."""
        ...

    def clip_plan(
        self, num_frames: int, times: Sequence[float] | None = None, duration: float | None = None
    ) -> tuple[Expansion, Layout | None]:
        """What a clip takes in the prompt; the times of its frames are in seconds."""
        ...

    def tokenize(self, prompt: Prompt, expansions: Sequence[int | Expansion], *, loss_on: str = "answer") -> Tokens:
        """Token ids of a prompt that the template wrote, whose i-th placeholder becomes `expansions[i]`."""
        ...

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids, with special tokens if asked for."""
        ...


class PlainProcessor:
    """One square for every image and frame, and a tokenizer with a template of this library.

    Args:
      tokenizer: directory or file.
      chat_template: a name in `templates.TEMPLATES`.
      size: of the squares.
      fit: how pictures become squares, see `squares.to_square`.
      mean: the tower's; the colour around padded pictures.
      image_tokens: visual tokens of an image.
      video_tokens: `video_tokens[n]` visual tokens of a clip of n frames.
      time_instruction: a sentence with its times follows every clip.
    """

    slots = taps = 0
    cuts_images = False
    keeps_images = True
    eos_token_ids: tuple[int, ...] = ()

    def __init__(
        self,
        tokenizer: str,
        chat_template: str,
        *,
        size: int,
        fit: FrameFit,
        mean: Sequence[float],
        image_tokens: int,
        video_tokens: Sequence[int],
        time_instruction: bool,
    ):
        self.tokenizer = tokenizer
        self.fit: FrameFit = fit
        self.chat_template, self.size, self.mean = chat_template, size, mean
        self.image_tokens, self.video_tokens, self.time_instruction = image_tokens, video_tokens, time_instruction

    @functools.cached_property
    def backend(self) -> Any:
        return conversation.load_tokenizer(self.tokenizer)

    @functools.cached_property
    def template(self) -> Template:
        return templates.get_template(self.chat_template, self.backend)

    def read_image(self, path: str) -> np.ndarray:
        return self._square(frames_lib.open_image(path))

    def images(self, images: Sequence[Picture]) -> list[Medium]:
        return [Medium("image", self._square(image)[None], Expansion((self.image_tokens,))) for image in images]

    def read_clip(self, path: str, count: int, **options: Any) -> Clip:
        return frames_lib.decode_clip(path, count, self._square, **options)

    def clip(self, clip: Clip) -> Medium:
        expansion, _ = self.clip_plan(len(clip.times), clip.times, clip.duration)
        return Medium("video", clip.frames, expansion, times=clip.times)

    def image_plan(self, size: Size, alone: bool) -> tuple[Expansion, Layout | None]:
        del size, alone
        return Expansion((self.image_tokens,)), None

    def clip_plan(
        self, num_frames: int, times: Sequence[float] | None = None, duration: float | None = None
    ) -> tuple[Expansion, Layout | None]:
        note = time_instruction.write(times or (), duration) if self.time_instruction else ""
        return Expansion((self.video_tokens[num_frames],), note=note), None

    def tokenize(self, prompt: Prompt, expansions: Sequence[int | Expansion], *, loss_on: str = "answer") -> Tokens:
        return conversation.tokenize(prompt, expansions, self.backend, loss_on=loss_on)

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        return self.backend.decode(list(token_ids), skip_special_tokens=not special)

    def _square(self, picture: Picture) -> np.ndarray:
        return to_square(picture, self.size, self.fit, self.mean)
