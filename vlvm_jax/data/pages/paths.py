"""Paths of pages: a long text's pages are drawn when they are read, and stored nowhere (T2Vid).

The path of a page names the file of texts, the options, the record's bytes in the file and the page:

    FILE?OPTIONS.text_pages#START-END/PAGE

Without PAGE it names the clip of all pages, in order. A page that is opened is a PNG file.
"""

import functools
import re
import urllib.parse

from vlvm_jax.data.pages import triplets
from vlvm_jax.data.pages.draw import PageFiles, PageOptions
from vlvm_jax.data.pages.triplets import TripletOptions

_PAGE = re.compile(r"(?P<file>.+)\?(?P<options>[^?#]*)\.text_pages#(?P<start>\d+)-(?P<end>\d+)(/(?P<page>\d+))?")


class DrawnText(PageOptions, TripletOptions):
    """How texts are read and drawn."""


def clip_path(file: str, layout: str, options: DrawnText, start: int, end: int) -> str:
    """The path of the clip of a text's pages; of the options it holds only those that differ from the defaults."""
    told = options.model_dump(include=set(DrawnText.model_fields), exclude_defaults=True) | {"layout": layout}
    query = urllib.parse.urlencode(sorted(told.items()), quote_via=urllib.parse.quote, safe="")
    return f"{file}?{query}.text_pages#{start}-{end}"


def stored(path: str) -> PageFiles | bytes | None:
    """What is drawn for a path: a text's pages, or one of them; None for the path of anything else.

    Raises:
      ValueError: there is no such page, or the file has changed.
      InputError: the font cannot be used.
    """
    match = _PAGE.fullmatch(path)
    if match is None:
        return None
    if match["page"] is None:
        return pages(path)
    drawn, number = pages(path.removesuffix(f"/{match['page']}")), int(match["page"])
    if number >= len(drawn):
        raise ValueError(f"there is no such page among {len(drawn)}")
    return drawn[number]


@functools.lru_cache(maxsize=64)  # a record is asked for its text and for each of its pages
def pages(path: str) -> PageFiles:
    """The pages of the text whose clip has this path."""
    match = _PAGE.fullmatch(path)
    assert match is not None
    options = DrawnText.model_validate(dict(urllib.parse.parse_qsl(match["options"])))
    assert options.layout != "auto"
    triplet = triplets.read_span(match["file"], int(match["start"]), int(match["end"]), options.layout, options)
    return PageFiles(triplet.context, options)
