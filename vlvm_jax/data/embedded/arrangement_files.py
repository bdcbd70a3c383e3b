"""Records of `embedded.arrangements` and `embedded.events`, and of words on pages, with their files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlvm_jax.data.embedded import arrangements, events, scenes, stories
from vlvm_jax.data.embedded.files import Split, conversation, in_held_out_share, write_mp4
from vlvm_jax.data.embedded.words import VOCABULARY
from vlvm_jax.data.pages import draw
from vlvm_jax.data.pages import layout as page_layout

_ASKED = 6  # questions about an arrangement, at most
_ROUNDS = 3  # of such questions in training, where every answer helps
_ASKED_OF_SETS = 7  # in training; more do not fit a row of the recipe `base` beside three images
PATCH_WORDS = len(arrangements.TRAITS) + 2  # and its row and column
_SIDE = 8  # of a grid: the base's patches
_THIRDS = [3 * (2 * number + 1) // (2 * _SIDE) for number in range(_SIDE)]  # in which the middle of a patch is
_PLACES = [
    *(scenes.ROWS[row] for row in _THIRDS for _ in range(_SIDE)),
    *(scenes.COLUMNS[column] for _ in range(_SIDE) for column in _THIRDS),
]
_OF_TEXTS = ("column", "count")  # types of questions about a story as text: none that asks what came when
_WORDS = 8  # of a sign, at most, if a page holds so many
_READ = "what does it say ?"
_READABLE = [word for word in VOCABULARY if word.isalpha() and word.islower()]  # without what a chat template writes
# A line is 16 pixels high, so patches cut all lines alike: with few pixels, reading is hard enough.
SIGN = {
    "font_size": 14,
    "margin": 0,
    "chunk_size": _WORDS,
    "chunk_tokenizer": "whitespace",
    "layout_engine": "basic",
    "vertical_align": "top",
    "line_advance": "font_metrics",
    "overflow": "new_page",
}


def write_arrangement(path: Path, split: Split, index: int, *, size: int, fps: int, seed: int) -> dict[str, Any]:
    """An image of things, with a conversation, a caption, a list of the things, and what covers each patch."""
    del fps
    rng = _rng(split, index, seed)
    drawn = arrangements.draw_arrangement(rng, held_out=split.held_out)
    name = _save(path, split, f"{index:06d}", arrangements.render(drawn, size))
    rounds = 1 if split.held_out else _ROUNDS
    asked = arrangements.questions(drawn, rng, _ASKED * rounds, rounds=rounds)
    grids = {trait: arrangements.grid(drawn, trait, _SIDE) for trait in arrangements.TRAITS}
    return {
        "id": f"{split.name}/{index:06d}",
        "image": name,
        "conversations": conversation([(q.question, q.answer) for q in asked]),
        "types": [q.type for q in asked],
        "caption": conversation([(scenes.CAPTION_PROMPTS["image"], drawn.caption)]),
        "listing": conversation([("what is where ?", arrangements.listing(drawn, rng))]),
        "patch": conversation([(" ".join([*grids.values(), *_PLACES]), "yes")]),
    }


def write_set(path: Path, split: Split, index: int, *, size: int, fps: int, seed: int) -> dict[str, Any]:
    """Two or three images with a question about all of them, in training several; types take turns."""
    del fps
    rng = _rng(split, index, seed)
    kind = arrangements.SET_TYPES[index % len(arrangements.SET_TYPES)]
    drawn = arrangements.draw_set(rng, kind, held_out=split.held_out, most=1 if split.held_out else _ASKED_OF_SETS)
    images = [
        _save(path, split, f"{index:06d}_{number}", arrangements.render(image, size))
        for number, image in enumerate(drawn.images)
    ]
    return {
        "id": f"{split.name}/{index:06d}",
        "image": images,
        "conversations": conversation([(q.question, q.answer) for q in drawn.questions], len(images)),
        "types": [q.type for q in drawn.questions],
    }


def write_sign(path: Path, split: Split, index: int, *, size: int, fps: int, seed: int) -> dict[str, Any]:
    """A page of words, to be read. No two pages of training and test have the same two words or more."""
    del fps
    rng = _rng(split, index, seed)
    options = draw.PageOptions.model_validate({**SIGN, "page_size": size})
    while True:
        words = [_READABLE[i] for i in rng.integers(len(_READABLE), size=int(rng.integers(1, _WORDS + 1)))]
        while len(pages := draw.lay_out(text := " ".join(words), options)) > 1:
            words.pop()
        if len(words) == 1 or in_held_out_share(text) == split.held_out:
            break
    name = _save(path, split, f"{index:06d}", np.asarray(draw.draw(pages[0], options).convert("RGB")))
    return {
        "id": f"{split.name}/{index:06d}",
        "image": name,
        "conversations": conversation([(_READ, text)]),
        "types": ["reading"],
        "patch": conversation(
            [(" ".join([*_words_at(pages[0], options) * len(arrangements.TRAITS), *_PLACES]), "yes")]
        ),
    }


def _words_at(page: page_layout.Page, options: draw.PageOptions) -> list[str]:
    """The word at each patch of a page, in reading order."""
    side, found = options.page_size // _SIDE, np.full((_SIDE, _SIDE), "empty", dtype=object)
    face, top = draw.font(options, page.font_size).face, page.top
    for line, advance in zip(page.lines, page.advances, strict=True):
        rows = slice(round(top / side), round((top + advance) / side))
        words = line.split()
        for number, word in enumerate(words):
            before = face.getlength("".join(f"{earlier} " for earlier in words[:number]))
            columns = slice(int(before // side), int((before + face.getlength(word)) // side) + 1)
            found[rows, columns] = word
        top += advance
    return list(found.ravel())


def write_timeless_text(path: Path, split: Split, index: int, *, size: int, fps: int, seed: int) -> dict[str, Any]:
    """A story as text, to be told back and asked about, but never about what came when: an image model reads too."""
    del path, size, fps
    rng = _rng(split, index, seed)
    story = stories.draw_story(rng, 1, 4 if index % 2 else stories.MOST, held_out=split.held_out)
    asked = stories.questions(story, rng, _OF_TEXTS)
    asked.insert(int(rng.integers(len(asked) + 1)), scenes.Question("told", _READ, story.text))
    first, *later = [(q.question, q.answer) for q in asked]
    said = conversation([(f"{story.text}\n{first[0]}", first[1]), *later], media=0)
    return {"id": f"{split.name}/{index:06d}", "conversations": said, "types": [q.type for q in asked]}


def write_clip(path: Path, split: Split, index: int, *, size: int, fps: int, seed: int) -> dict[str, Any]:
    """A clip with a conversation and a caption; kinds take turns.

    In training, the conversation ends with the caption, which would give answers after it away.
    """
    rng = _rng(split, index, seed)
    drawn = events.draw_clip(rng, events.KINDS[index % len(events.KINDS)], held_out=split.held_out)
    name = f"media/{split.name}/{index:06d}.mp4"
    write_mp4(path / name, events.render(drawn, size), fps)
    told = scenes.Question("told", scenes.CAPTION_PROMPTS["video"], events.caption(drawn))
    asked = events.questions(drawn, rng) if split.held_out else [*events.questions_to_learn(drawn, rng), told]
    return {
        "id": f"{split.name}/{index:06d}",
        "video": name,
        "combination": "/".join(drawn.combination),
        "conversations": conversation([(q.question, q.answer) for q in asked]),
        "types": [q.type for q in asked],
        "caption": conversation([(told.question, told.answer)]),
    }


def _rng(split: Split, index: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, split.number, index])


def _save(path: Path, split: Split, stem: str, pixels: np.ndarray) -> str:
    name = f"media/{split.name}/{stem}.png"
    Image.fromarray(pixels).save(path / name, compress_level=1)
    return name


WRITERS = {
    "arrangement": write_arrangement,
    "set": write_set,
    "sign": write_sign,
    "timeless_text": write_timeless_text,
    "clip": write_clip,
}
