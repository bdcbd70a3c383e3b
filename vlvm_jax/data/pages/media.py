"""Long texts as pages that are drawn when they are read: no image is stored anywhere (T2Vid).

The path of a page names the file of texts, the options, the record's bytes in the file and the page:

    FILE?OPTIONS.text_pages#START-END/PAGE

and without PAGE the clip of all pages, in order. Opened, a page is a PNG file.
"""

import dataclasses
import functools
import hashlib
import json
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import PositiveInt

from vlvm_jax.config import build
from vlvm_jax.data import record
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.pages import draw, triplets
from vlvm_jax.data.pages.draw import PageFiles, PageOptions
from vlvm_jax.data.pages.triplets import Layout, Triplet, TripletFile, TripletOptions
from vlvm_jax.data.record import KINDS, Name, Record, Source
from vlvm_jax.errors import InputError

ShownAs = Literal["images", "video", "text"]
_KIND = {"images": "image", "video": "video", "text": "text"}
_PAGE = re.compile(r"(?P<file>.+)\?(?P<options>[^?#]*)\.text_pages#(?P<start>\d+)-(?P<end>\d+)(/(?P<page>\d+))?")


class TextPages(PageOptions, TripletOptions):
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
        found = build(TextPages, options, f"{path}: pages")
        draw.font(found)
        draw.chunk("", found)  # what tokenizes is installed
        return cls(path, triplets.read_triplets(path, found), found, draw.provenance(found))

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
        path = _path(self.path, self.texts.layout, options, start, end)
        count = len(_pages(path))
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


def _path(file: str, layout: Layout, options: TextPages, start: int, end: int) -> str:
    """Of the clip of a text's pages; only what differs from the defaults is in it."""
    told = options.model_dump(exclude_defaults=True, exclude={"shown_as", "max_pages"}) | {"layout": layout}
    query = urllib.parse.urlencode(sorted(told.items()), quote_via=urllib.parse.quote, safe="")
    return f"{file}?{query}.text_pages#{start}-{end}"


def stored(path: str) -> PageFiles | bytes | None:
    """What is drawn under a path: a text's pages, or one of them; None where the path is of no text.

    Raises:
      ValueError: there is no such page, or the file has changed.
      InputError: the font is at fault.
    """
    match = _PAGE.fullmatch(path)
    if match is None:
        return None
    if match["page"] is None:
        return _pages(path)
    pages, number = _pages(path.removesuffix(f"/{match['page']}")), int(match["page"])
    if number >= len(pages):
        raise ValueError(f"there is no such page among {len(pages)}")
    return pages[number]


@functools.lru_cache(maxsize=64)  # a record is asked for its text and for each of its pages
def _pages(path: str) -> PageFiles:
    match = _PAGE.fullmatch(path)
    assert match is not None
    options = TextPages.model_validate(dict(urllib.parse.parse_qsl(match["options"])))
    assert options.layout != "auto"
    triplet = triplets.read_span(match["file"], int(match["start"]), int(match["end"]), options.layout, options)
    return PageFiles(triplet.context, options)
