"""A checkpoint's own tokenizer, chat template and image preprocessing, as transformers has them, without torch."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from vlvm_jax import families
from vlvm_jax.config import FrameFit, ImageLayout
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.files import read_json
from vlvm_jax.data.images import anyres
from vlvm_jax.data.images.anyres import Layout, Size
from vlvm_jax.data.images.image_rules import Frames, Picture, Settings, SquareRule
from vlvm_jax.data.images.squares import to_square
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.media.frames import Clip
from vlvm_jax.data.prompt import conversation, templates, time_instruction
from vlvm_jax.data.prompt.checkpoint_template import HFTemplate
from vlvm_jax.data.prompt.conversation import Expansion, Message, Prompt, Template, Tokens
from vlvm_jax.data.prompt.tokenizer_files import chat_template, checkpoint_tokenizer
from vlvm_jax.data.record import MediaKind, Turn
from vlvm_jax.data.sample.assemble import Medium, Sample, assemble
from vlvm_jax.errors import InputError
from vlvm_jax.families.base import Pieces, StockFamily

_UNKNOWN_RATE = 24  # frames per second that transformers assumes of frames given without their times


def load_processor(
    directory: str,
    tokenizer: str | None = None,
    *,
    chat_template: str = "checkpoint",
    image_layout: ImageLayout = "single",
    image_tokens: int | None = None,
    video_tokens: Sequence[int] | None = None,
    time_instruction: bool = False,
    frame_fit: FrameFit = "auto",
) -> "Processor":
    """The processor of a local directory in Hugging Face format, its image settings tried out.

    Args:
      directory: holds `config.json` and `preprocessor_config.json` or `processor_config.json`: a VLM of one of
        the `families`, or a bare tower.
      tokenizer: directory or file of the tokenizer and the chat template, where that is another one.
      chat_template: "checkpoint", or a name in `templates.TEMPLATES`.
      image_layout: `anyres` cuts images as transformers' class of the family does, `single` shows each as one square.
      image_tokens: visual tokens of an image that is not cut, or of each tile of Idefics3 and SmolVLM; default: as many
        as the checkpoint's own class has.
      video_tokens: `video_tokens[n]` of a clip of n frames; default: as many as the checkpoint's own class has.
      time_instruction: a sentence with its times follows every clip, see `prompt.time_instruction`.
      frame_fit: how frames, and images that are not cut, become squares: `auto` as the checkpoint says, else by
        `squares.to_square`.

    Raises:
      InputError: something is missing, of an unknown family, or cannot end in uint8 squares of the tower's size.
    """
    counts = None if video_tokens is None else tuple(video_tokens)
    options = chat_template, image_layout, image_tokens, counts, time_instruction, frame_fit
    processor = Processor(str(directory), tokenizer, *options)
    processor.check()
    return processor


class Processor:
    """What is read is read when it is first needed, and not carried along when the processor is pickled.

    Build it with `load_processor`.
    """

    keeps_images = False  # at their own size they would fill the cache

    def __init__(
        self,
        directory: str,
        tokenizer: str | None,
        chat_template: str,
        image_layout: ImageLayout,
        image_tokens: int | None,
        video_tokens: tuple[int, ...] | None,
        time_instruction: bool,
        frame_fit: FrameFit,
    ):
        self.directory, self.tokenizer_path, self.chat_template = directory, tokenizer or directory, chat_template
        self.image_layout: ImageLayout = image_layout
        self._image_tokens, self._video_tokens = image_tokens, video_tokens
        self.time_instruction = time_instruction
        self.frame_fit: FrameFit = frame_fit

    def __reduce__(self):
        given = self.directory, self.tokenizer_path, self.chat_template, self.image_layout
        return Processor, (*given, self._image_tokens, self._video_tokens, self.time_instruction, self.frame_fit)

    # --- what the directory says ---------------------------------------------------------------------------------

    @functools.cached_property
    def settings(self) -> Settings:
        return families.read_settings(self.directory)

    @functools.cached_property
    def rule(self) -> SquareRule:
        return families.image_rule(self.settings)

    @property
    def family(self) -> StockFamily:
        return families.of_settings(self.settings)

    @property
    def image_size(self) -> int:
        return self.settings.tower.image_size

    @property
    def image_mean(self) -> tuple[float, float, float]:
        return self.rule.statistics[0]

    @property
    def image_std(self) -> tuple[float, float, float]:
        return self.rule.statistics[1]

    @property
    def side(self) -> int:
        """Patches along a side of the tower's grid."""
        return self.image_size // self.settings.tower.patch_size

    @property
    def taps(self) -> int:
        """P of `visual_index`; 0 where visual tokens are simply the frames' own in order."""
        return self.rule.taps if self.image_layout == "anyres" else 0

    @property
    def slots(self) -> int:
        """S: the slots of a frame that `visual_index` counts, its patches and the newline."""
        return self.side**2 + 1

    @property
    def own_tokens(self) -> int:
        """Visual tokens of one square in the checkpoint's own class."""
        return (self.side // self.family.joined_patches(self.settings.config)) ** 2

    @property
    def image_tokens(self) -> int:
        """Visual tokens of an image that is not cut, or of each tile of Idefics3 and SmolVLM."""
        return self.own_tokens if self._image_tokens is None else self._image_tokens

    def video_tokens(self, num_frames: int) -> int:
        """Visual tokens of a clip."""
        if self._video_tokens is None:
            per_frame, newline = self._own_video_tokens
            return num_frames * per_frame + newline
        if num_frames >= len(self._video_tokens):
            raise InputError(f"a clip of {num_frames} frames; at most {len(self._video_tokens) - 1} are provided for")
        return self._video_tokens[num_frames]

    @property
    def _own_video_tokens(self) -> tuple[int, int]:
        """Tokens per frame and at the end of a clip in the checkpoint's own class."""
        if self.settings.clip_tokens is not None:
            return self.settings.clip_tokens
        return self.family.clip_tokens(self.settings.config, self.side, self.own_tokens)

    def _tokens_per_frame(self) -> tuple[int, int]:
        """The same as the adapter has them, which must treat every frame alike."""
        if self._video_tokens is None:
            return self._own_video_tokens
        newline = self._video_tokens[0]
        per_frame = self._video_tokens[min(1, len(self._video_tokens) - 1)] - newline
        expected = tuple(count * per_frame + newline for count in range(len(self._video_tokens)))
        if expected != self._video_tokens or newline > int(not self.family.clips_are_images):
            which = "image_layout anyres" if self.taps else self.family.name
            raise InputError(
                f"config.model.adapter: clips take {self._video_tokens} tokens for 0, 1, 2, ... frames; {which} needs "
                "the same number for every frame"
            )
        return per_frame, newline

    def check(self) -> None:
        """Reads the image settings and tries them out, and checks that the numbers of tokens suit the layout."""
        if self.time_instruction and self.settings.says_times:
            raise InputError(
                "config.data.time_instruction: this checkpoint says its clips' times in words of its own "
                "(add_time_instruction); leave it off"
            )
        if self.time_instruction and self.family.stamps_frames:
            raise InputError(
                f"config.data.time_instruction: {self.family.name} writes every frame's time already; leave it off"
            )
        if not self.rule.taps or self.image_layout == "single":
            return
        own, (per_frame, newline) = self.side**2, self._tokens_per_frame()
        has_newline = self._image_tokens == own + 1 or newline
        if self._image_tokens is not None and not (self._image_tokens in (own, own + 1) and has_newline):
            raise InputError(
                f"config.data.image_layout: anyres needs all {own} patches of an image and a newline; the adapter "
                f"gives {self._image_tokens} tokens; use the `frames` adapter with a newline, or image_layout single"
            )
        if per_frame > own:
            raise InputError(f"config.model.adapter: {per_frame} tokens per frame of {own} patches")

    @property
    def cuts_images(self) -> bool:
        """Whether an image's size decides what it becomes."""
        return self.image_layout == "anyres"

    # --- pixels --------------------------------------------------------------------------------------------------

    def frames(self, frames: Sequence[Picture]) -> Frames:
        """Frames of a clip, uint8 [T, S, S, 3]; see the classes of `image_rules` for each family's way."""
        return self.rule.frames(frames) if self.frame_fit == "auto" else self._fitted(frames)

    def _fitted(self, pictures: Sequence[Picture]) -> Frames:
        return np.stack([to_square(p, self.image_size, self.frame_fit, self.image_mean) for p in pictures])

    def read_image(self, path: str) -> Picture:
        """One image at its own size."""
        return video.open_image(path)

    def read_clip(self, path: str, count: int, **options) -> Clip:
        """At most `count` frames of a file or folder; options and errors of `media.frames.decode_clip`."""
        return video.decode_clip(path, count, lambda pixels: self.frames([pixels])[0], **options)

    def images(self, images: Sequence[Picture]) -> list[Medium]:
        """The images of one sample."""
        if not images:
            return []
        alone = len(images) == 1
        if self.image_layout == "single":
            squares = self.rule.whole(images) if self.frame_fit == "auto" else self._fitted(images)
            frames = [square[None] for square in squares]
        else:
            frames = self.rule.tiles(images)
        media = []
        for image, squares in zip(images, frames, strict=True):
            expansion, layout = self.image_plan(_size(image), alone)
            media.append(Medium("image", squares, expansion, layout))
        return media

    def clip(self, clip: Clip) -> Medium:
        """A clip whose frames are ready."""
        expansion, layout = self.clip_plan(len(clip.frames), clip.times, clip.duration)
        return Medium("video", clip.frames, expansion, layout, clip.times)

    # --- what a medium's placeholder becomes ---------------------------------------------------------------------

    def image_plan(self, size: Size, alone: bool) -> tuple[Expansion, Layout | None]:
        """What an image of this height and width takes in the prompt; `alone`: it is the only one of its sample.

        Raises:
          BadSampleError: the image is too narrow to be cut.
        """
        try:
            cut = self.rule.cut(size, alone) if self.image_layout == "anyres" else None
        except ValueError as error:
            raise BadSampleError("narrow", str(error)) from None
        if cut is not None and cut.layout is not None:
            return self._expansion((len(cut.layout),)), cut.layout
        grid = (0, 0) if cut is None else cut.grid
        return self._expansion(self.family.image_pieces(self.tokenizer, grid, self.image_tokens)), None

    def clip_plan(
        self, num_frames: int, times: Sequence[float] | None = None, duration: float | None = None
    ) -> tuple[Expansion, Layout | None]:
        """What a clip takes in the prompt; the times of its frames, in seconds, matter where they are written out."""
        kind: MediaKind = "video"
        if times is None:
            times = [number / _UNKNOWN_RATE for number in range(num_frames)]
        if self.family.clips_are_images:
            per_frame, _ = self._tokens_per_frame()
            pieces = self.family.clip_pieces(self.tokenizer, times, duration, per_frame)
            return self._expansion(pieces, note=self._note(times, duration)), None
        expansion = self._expansion((self.video_tokens(num_frames),), kind, note=self._note(times, duration))
        if not self.taps:
            return expansion, None
        per_frame, newline = self._tokens_per_frame()
        return expansion, anyres.in_order(num_frames, per_frame, self.side**2, newline=bool(newline), taps=self.taps)

    def _note(self, times: Sequence[float], duration: float | None) -> str:
        if self.settings.says_times:
            return time_instruction.write_llava_video(times, duration)
        return time_instruction.write(times, duration) if self.time_instruction else ""

    def _expansion(self, pieces: Pieces, kind: MediaKind = "image", note: str = "") -> Expansion:
        if self.settings.around is not None:
            before, after = self.settings.around
            pieces = (before, *pieces, after)
        return Expansion(pieces, self._visual_tokens_of(self.tokenizer)[kind], note)

    # --- text ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer. One that has no token for an image gets one, which no prompt shows as an id."""
        return self._tokenizer_and_size[0]

    @functools.cached_property
    def _tokenizer_and_size(self) -> tuple[Any, int]:
        """The tokenizer, and how many tokens are really its own."""
        tokenizer = checkpoint_tokenizer(self.tokenizer_path)
        size = len(tokenizer)
        for token in self._visual_tokens_of(tokenizer).values():
            if token not in tokenizer.get_vocab():
                tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)])
        return tokenizer, size

    @functools.cached_property
    def backend(self) -> Tokenizer:
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return backend

    def _named(self, tokenizer: Any, kind: MediaKind) -> str:
        """The family's token for a kind of medium, found where transformers' processors look for it."""
        given = self.family.token(tokenizer, kind) or self.settings.processor.get(f"{kind}_token")
        return given or f"<{kind}>"

    def _visual_tokens_of(self, tokenizer: Any) -> dict[MediaKind, str]:
        """What stands for one visual token of each kind."""
        of_clips: MediaKind = "video" if self.family.has_video else "image"
        return {"image": self._named(tokenizer, "image"), "video": self._named(tokenizer, of_clips)}

    @functools.cached_property
    def template(self) -> Template:
        """The chat template.

        Raises:
          InputError: it is to be the checkpoint's, which has none.
        """
        for mark in self.settings.around or ():
            if mark not in self.tokenizer.get_vocab():
                raise InputError(
                    f"{self.settings.where}: mm_use_im_start_end puts {mark} around images, which is no token of "
                    f"{self.tokenizer_path}; copy the tokenizer's files of the checkpoint there"
                )
        if self.chat_template != "checkpoint":
            return templates.get_template(self.chat_template, self.backend)
        template, where = chat_template(Path(self.tokenizer_path).expanduser(), self.tokenizer)
        return HFTemplate(
            self.tokenizer,
            template,
            where=where,
            image_token=self._named(self.tokenizer, "image"),
            video_token=self._named(self.tokenizer, "video") if self.family.writes_clips else None,
            video_template=self.family.clip_template,
        )

    @functools.cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, by `generation_config.json` and the tokenizer."""
        stated = read_json(Path(self.directory).expanduser() / "generation_config.json").get("eos_token_id")
        listed = stated if isinstance(stated, list) else [stated]
        return tuple(sorted({token for token in (*listed, self.tokenizer.eos_token_id) if token is not None}))

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids, with special tokens if asked for."""
        if special:
            return self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def encode(
        self,
        turns: Sequence[Turn],
        expansions: Sequence[int | Expansion],
        kinds: Sequence[MediaKind],
        *,
        loss_on: str = "answer",
        system: str = "",
    ) -> Tokens:
        """Token ids of a conversation whose i-th placeholder is a medium of `kinds[i]` and becomes `expansions[i]`."""
        return self.tokenize(self.template.conversation(turns, kinds, system=system), expansions, loss_on=loss_on)

    def tokenize(self, prompt: Prompt, expansions: Sequence[int | Expansion], *, loss_on: str = "answer") -> Tokens:
        """Token ids of a prompt that the template wrote, whose i-th placeholder becomes `expansions[i]`."""
        return self._known(conversation.tokenize(prompt, expansions, self.backend, loss_on=loss_on))

    def _known(self, tokens: Tokens) -> Tokens:
        """Ids that only this tokenizer has, of placeholders it was given, are 0."""
        tokens.ids[tokens.media_mask & (tokens.ids >= self._tokenizer_and_size[1])] = 0
        return tokens

    def sample(
        self,
        prompt: str | Sequence[Message],
        images: Sequence[Picture | str] = (),
        videos: Sequence[Clip | Sequence[Picture]] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> Sample:
        """What the model reads before it answers, not padded; see `sample.assemble` for the arrays.

        Args:
          prompt: messages for the chat template, whose content is a list of parts ({"type": "text", "text": ...},
            {"type": "image"}, {"type": "video"}) or text with `<image>` and `<video>`; or a string that is a prompt
            already, in which the same placeholders stand for the media.
          images: pictures or files, in the order of the prompt.
          videos: from `read_clip`, or frames as they are.

        Raises:
          InputError: the prompt shows other media than were given.
          BadSampleError: an image cannot be used.
        """
        if isinstance(prompt, str):
            shown = self.template.written(prompt)
        else:
            shown = self.template.prompt(prompt, add_generation_prompt=add_generation_prompt)
        for kind, given in (("image", images), ("video", videos)):
            if shown.kinds.count(kind) != len(given):
                raise InputError(
                    f"the prompt shows {shown.kinds.count(kind)} {kind}s and {len(given)} were given; write <{kind}> "
                    f'or {{"type": "{kind}"}} once for each'
                )
        pictures = [video.open_image(image) if isinstance(image, str) else image for image in images]
        clips = [clip if isinstance(clip, Clip) else self._untimed(clip) for clip in videos]
        waiting = {"image": iter(self.images(pictures)), "video": map(self.clip, clips)}
        media = [next(waiting[kind]) for kind in shown.kinds]
        return self.assemble(self.tokenize(shown, [m.expansion for m in media]), media)

    def _untimed(self, frames: Sequence[Picture]) -> Clip:
        return Clip(self.frames(frames), tuple(number / _UNKNOWN_RATE for number in range(len(frames))))

    def assemble(self, tokens: Tokens, media: Sequence[Medium]) -> Sample:
        """The arrays of one sample."""
        return assemble(tokens, media, self.image_size, slots=self.slots, taps=self.taps)


def _size(image: Picture) -> Size:
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
