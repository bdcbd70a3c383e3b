"""Long texts as records whose images or clips are the texts' pages (T2Vid); `pages.paths` draws them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import PositiveInt

from vlvm_jax.config import build
from vlvm_jax.data import record
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.pages import draw, triplets
from vlvm_jax.data.pages.paths import DrawnText, clip_path, pages
from vlvm_jax.data.pages.triplets import Triplet, TripletFile
from vlvm_jax.data.record import KINDS, Name, Record, Source
from vlvm_jax.errors import InputError

ShownAs = Literal["images", "video", "text"]
_KIND = {"images": "image", "video": "video", "text": "text"}


class TextPages(DrawnText):
    """`pages` of a mixture's entry: how its texts are read, drawn and shown.

    `shown_as` `images` has a text's pages as images before the question, none left out; `video` as the frames of one
    clip, of which the stage takes what its frame rule and `video_frames` say; `text` has no pages at all: the text
    itself, an empty line and the question, the paper's pure-text arm (its prompt is not public; this is ours).

    Of a text with more pages than `max_pages` no sample is made.
    """

    shown_as: ShownAs = "images"
    max_pages: PositiveInt | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TextPagesFile(Source):
    """The texts of one file as records. Light to pickle: texts stay in the file.

    Raises where it reads a record: `too_many_frames` of one with more pages than `max_pages`, else `bad_record`.
    """

    path: str
    texts: TripletFile
    options: TextPages
    made_with: Mapping[str, Any]

    @classmethod
    def open(cls, path: str, options: Mapping[str, Any]) -> "TextPagesFile":
        """A file of texts, by its entry's `pages`.

        Raises:
          InputError: the options, the file or the font are at fault.
        """
        pages = build(TextPages, options, f"{path}: pages")
        draw.font(pages)
        draw.chunk("", pages)  # what tokenizes is installed
        return cls(path, triplets.read_triplets(path, pages), pages, draw.provenance(pages))

    @property
    def codes(self) -> UInt8[np.ndarray, "n"]:
        return np.full(len(self.texts), KINDS.index(_KIND[self.options.shown_as]), np.uint8)

    @property
    def types(self) -> list[tuple[str, ...]]:
        return [()] * len(self.texts)

    def digest(self) -> str:
        settings = json.dumps([self.options.model_dump(exclude={"font"}), self.made_with], sort_keys=True)
        return hashlib.sha256(f"{self.texts.sha256} {settings}".encode()).hexdigest()

    def read(self, index: int, where: str) -> Record:
        where = self.texts.where(index)
        triplet, options = self.texts.triplet(index), self.options
        if options.shown_as == "text":
            question = f"{triplet.context}\n\n{triplet.question}"
            return record.parse(_llava(triplet, question), where, index, _nowhere)
        start, end = map(int, self.texts.spans[index])
        path = clip_path(self.path, self.texts.layout, options, start, end)
        count = len(pages(path))
        if not count:
            raise InputError(f"{where}: its text has no words")
        if options.max_pages is not None and count > options.max_pages:
            raise BadSampleError("too_many_frames", f"{where}: {count} pages, more than max_pages {options.max_pages}")
        if options.shown_as == "video":
            raw, names = _llava(triplet, triplet.question) | {"video": "pages"}, [path]
        else:
            names = [f"{path}/{page}" for page in range(count)]
            raw = _llava(triplet, triplet.question) | {"image": [f"{page}" for page in range(count)]}
        return record.parse(raw, where, index, lambda number, _name: names[number])

    def __len__(self) -> int:
        return len(self.texts)


def _llava(triplet: Triplet, question: str) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": triplet.answer}]
    return {"id": triplet.id, "conversations": said}


def _nowhere(_number: int, name: Name) -> str:
    raise ValueError(f"a text has no medium {name!r}")
