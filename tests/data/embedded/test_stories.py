"""Stories: what is true of them, that clips and texts tell the same, and that answers can be found by reading alone."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlvm_jax.data.embedded import scenes, shapes, stories
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.media.frames import decode_frames

OPTIONS = shapes.ShapesOptions(
    train_arrangements=0, train_clips=0, heldout_arrangements=0, heldout_clips=0, train_stories=24, heldout_stories=6,
    heldout_long_stories=6, train_story_texts=12, train_long_texts=24, train_events=12,
)  # fmt: skip
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def answer_by_reading(text, question):
    """The answer to a question, found in the story's words alone."""
    words = text.split()
    events = [tuple(words[i : i + 3]) for i in range(0, len(words), 3)]
    things = [f"{color} {shape}" for color, shape, _ in events]
    asked = question.removesuffix(" ?").split()
    if asked[0] in ("after", "before"):
        place = things.index(" ".join(asked[1:]))
        return things[place + (1 if asked[0] == "after" else -1)]
    if asked == ["what", "first"]:
        return things[0]
    if asked[-1] == "first":
        first, second = " ".join(asked[:-1]).split(" or ")
        return min(first, second, key=things.index)
    if asked[-1] == "column":
        return events[things.index(" ".join(asked[:-1]))][2]
    assert asked[:2] == ["how", "many"]
    return ("empty", *scenes.NUMBERS)[sum(shape == asked[2] for _, shape, _ in events)]


@given(rng=rngs, lengths=st.tuples(st.integers(1, 16), st.integers(1, 16)).map(sorted), held_out=st.booleans())
@settings(max_examples=60, deadline=None)
def test_stories_and_their_questions(rng, lengths, held_out):
    story = stories.draw_story(rng, *lengths, held_out=held_out)
    assert lengths[0] <= len(story.events) <= lengths[1]
    assert len({event.thing for event in story.events}) == len(story.events)
    assert stories.is_held_out(story) is held_out
    asked = stories.questions(story, rng)
    kinds = [question.type for question in asked]
    assert len(set(kinds)) == len(kinds) and {"first", "column"} <= set(kinds) <= set(stories.TYPES)
    assert ("after" in kinds) == (len(story.events) > 1)
    known = set(embedded_words.VOCABULARY)
    for question in asked:
        assert question.answer == answer_by_reading(story.text, question.question)
        assert set(f"{question.question} {question.answer} {story.text}".split()) <= known


@given(rng=rngs)
@settings(max_examples=10, deadline=None)
def test_a_clip_shows_each_event_for_its_frames(rng):
    story = stories.draw_story(rng, 2, 5, held_out=False)
    frames = stories.render(story, 48)
    assert frames.shape == (sum(story.holds), 48, 48, 3) and frames.dtype == np.uint8
    ends = np.cumsum(story.holds)
    for event, start, end in zip(story.events, ends - story.holds, ends, strict=True):
        assert np.all(frames[start:end] == frames[start])
        column = scenes.COLUMNS.index(event.column)
        middle = frames[start, 22:26, 16 * column + 6 : 16 * column + 10].reshape(-1, 3).astype(int)
        assert np.abs(middle - scenes.COLORS[event.color]).max(axis=1).min() < 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes.ensure(OPTIONS, tmp_path_factory.mktemp("data"))


def records(folder, name):
    text = (folder / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def turns(record):
    said = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
    return list(zip(said[::2], said[1::2], strict=True))


@pytest.mark.parametrize(
    ("name", "lengths", "each"),
    [("train_stories", (3, 6), 1), ("heldout_stories", (3, 6), 0), ("heldout_long_stories", (8, 12), 0)],
)
def test_clips_on_disk(folder, name, lengths, each):
    found = records(folder, f"{name}.json")
    told = records(folder, f"{name}_captions.json")
    for record, caption in zip(found, told, strict=True):
        text = record["combination"]
        assert lengths[0] <= len(text.split()) / 3 <= lengths[1]
        assert turns(caption) == [("what happens ?", text)] and caption["video"] == record["video"]
        assert len(record["types"]) == (each or len(turns(record)))
        assert all(answer == answer_by_reading(text, question) for question, answer in turns(record))
    frames = decode_frames(str(folder / found[0]["video"]), 100).frames
    assert len(frames) >= 2 * len(found[0]["combination"].split()) / 3


def test_types_take_turns_where_one_question_is_asked(folder):
    for name in ("train_stories.json", "train_long_texts.jsonl"):
        found = records(folder, name)
        kinds = [record["types"][0] for record in found] if "types" in found[0] else []
        assert set(kinds) in (set(), set(stories.TYPES))


def test_texts_to_read_and_to_draw(folder):
    for record in records(folder, "train_long_texts.jsonl"):
        assert 6 <= len(record["context"].split()) / 3 <= 16
        assert record["answer"] == answer_by_reading(record["context"], record["question"])
    for record in records(folder, "train_event_words.jsonl"):
        assert record["answer"] == record["context"] and len(record["context"].split()) == 3
    for record in records(folder, "train_story_texts.json"):
        said = turns(record)
        text, _, first = said[0][0].partition("\n")
        said[0] = first, said[0][1]
        assert said.count(("what happens ?", text)) == 1 and "video" not in record
        said.remove(("what happens ?", text))
        assert all(answer == answer_by_reading(text, question) for question, answer in said)


def test_no_clip_is_told_in_training(folder):
    held = {r["combination"] for n in ("heldout_stories", "heldout_long_stories") for r in records(folder, f"{n}.json")}
    told = {r["combination"] for r in records(folder, "train_stories.json")}
    told |= {r["context"] for r in records(folder, "train_long_texts.jsonl")}
    told |= {turns(r)[0][0].partition("\n")[0] for r in records(folder, "train_story_texts.json")}
    assert not held & told
