"""Records of `embedded.stories` with their files: clips, single images, texts, and texts to draw pages from."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlvm_jax.data.embedded import scenes, stories
from vlvm_jax.data.embedded.files import Split, conversation, write_mp4
from vlvm_jax.data.embedded.stories import Story

_EVENTS = {
    "story": (3, 6),
    "long_story": (8, 12),
    "story_text": (1, 16),
    "long_text": (6, 16),
    "event": (1, 1),
    "words": (1, 1),
}
_ASKED = 3  # questions about a story as text
WRITERS = tuple(_EVENTS)


def write(path: Path, split: Split, index: int, *, size: int, fps: int, seed: int) -> dict[str, Any]:
    """One record of a split, its file written.

    Clips to learn from ask one question each, as texts for pages do, and types take turns; held-out ones ask one of
    each type. A story as text is asked some of different types, and is to be told back, in any order.
    """
    kind = split.kinds[0]
    rng = np.random.default_rng([seed, split.number, index])
    shortest, longest = _EVENTS[kind]
    if kind == "story_text" and index % 2:  # half of them short, to begin with
        longest = 4
    story = stories.draw_story(rng, shortest, longest, held_out=split.held_out)
    name = f"{split.name}/{index:06d}"
    if kind in ("long_text", "words"):
        return {"id": name, "context": story.text, **_asked(story, kind, index, rng)}
    if kind == "story_text":
        return _text(name, story, rng)
    if kind == "event":
        Image.fromarray(stories.render(story, size)[0]).save(path / "media" / f"{name}.png", compress_level=1)
        said = conversation([(scenes.CAPTION_PROMPTS["image"], story.text)])
        return {"id": name, "image": f"media/{name}.png", "conversations": said, "types": ["event"]}
    write_mp4(path / "media" / f"{name}.mp4", stories.render(story, size), fps)
    asked = stories.questions(story, rng)
    if not split.held_out:
        asked = [_of_type(asked, index)]
    return {
        "id": name,
        "video": f"media/{name}.mp4",
        "combination": story.text,
        "conversations": conversation([(q.question, q.answer) for q in asked]),
        "types": [q.type for q in asked],
        "caption": conversation([(scenes.CAPTION_PROMPTS["video"], story.text)]),
    }


def _of_type(asked: list[scenes.Question], index: int) -> scenes.Question:
    """The question of the type whose turn it is, or of the next one that there is."""
    types = stories.TYPES[index % len(stories.TYPES) :] + stories.TYPES
    return next(question for kind in types for question in asked if question.type == kind)


def _asked(story: Story, kind: str, index: int, rng: np.random.Generator) -> dict[str, str]:
    if kind == "words":
        return {"question": scenes.CAPTION_PROMPTS["image"], "answer": story.text}
    question = _of_type(stories.questions(story, rng), index)
    return {"question": question.question, "answer": question.answer}


def _text(name: str, story: Story, rng: np.random.Generator) -> dict[str, Any]:
    asked = stories.questions(story, rng)[:_ASKED]
    told = scenes.Question("told", scenes.CAPTION_PROMPTS["video"], story.text)
    asked.insert(int(rng.integers(len(asked) + 1)), told)
    first, *later = [(q.question, q.answer) for q in asked]
    said = conversation([(f"{story.text}\n{first[0]}", first[1]), *later], media=0)
    return {"id": name, "conversations": said, "types": [q.type for q in asked]}
