"""Long texts to samples: what is written reads back, is the same every time, and nothing half-written stays."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import long_texts
from support.recipes import ROOT, environment

from vlvm_jax import storage
from vlvm_jax.config import MixtureEntry
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.media import frames
from vlvm_jax.data.pages import draw, filters
from vlvm_jax.data.sources import shards
from vlvm_jax.data.sources.mixture import read_mixture
from vlvm_jax.data.sources.text_pages import TextPages
from vlvm_jax.data.tools import prepare, synthesize
from vlvm_jax.data.tools.synthesize import Job
from vlvm_jax.errors import InputError, Interrupted

OPTIONS = TextPages(chunk_tokenizer="whitespace", layout_engine="basic")


def run(job, workers=0):
    plan = synthesize.make_plan(job)
    synthesize.run(plan, workers, lambda done, note: None)
    return synthesize.finish(plan, "1.2.3")


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def media(path):
    """Of every record of a source: kind, pixels of all its media, first question and answer."""
    found = []
    for record in read_mixture([MixtureEntry(path=str(path))], 0):
        pixels = [
            np.asarray(frames.open_image(name)) if kind == "image" else frames.read_clip(name, 99, 448)
            for kind, name in record.media
        ]
        found.append((record.id, record.kind, pixels, record.turns[0].question, record.turns[0].answer))
    return found


def expected(source, shown_as):
    (entry,) = [MixtureEntry(path=source, format="text_pages", pages=OPTIONS.model_dump() | {"shown_as": shown_as})]
    texts = read_mixture([entry], 0).parts[0].source.texts
    for index in range(len(texts)):
        yield texts.triplet(index), draw.render_pages(texts.triplet(index).context, OPTIONS).pages


@pytest.mark.parametrize("format", ["llava", "array_record"])
@pytest.mark.parametrize("shown_as", ["images", "video", "text"])
def test_what_is_written_reads_back(tmp_path, format, shown_as):
    source = long_texts.write(tmp_path / "t.jsonl", 6)
    options = OPTIONS.model_copy(update={"shown_as": shown_as})
    report = run(Job((source,), str(tmp_path / "out"), format, options=options, per_part=4))
    assert report.counts == {"texts": 6, "kept": 6, "pages": 13, "overflowed": 0, "boxes": 0} and not report.dropped
    found = media(report.path)
    for (name, kind, pixels, question, answer), (triplet, pages) in zip(found, expected(source, shown_as), strict=True):
        assert answer == triplet.answer and name == f"{int(triplet.id):05d}"
        if shown_as == "text":
            assert (kind, pixels, question) == ("text", [], f"{triplet.context}\n\n{triplet.question}")
            continue
        assert kind == {"images": "image", "video": "video"}[shown_as]
        shown = np.stack(pixels) if shown_as == "images" else pixels[0]
        assert np.array_equal(shown, pages)
        assert question == "<image>\n" * len(pixels) + triplet.question
    if format == "array_record":
        assert list(prepare.damaged(str(tmp_path / "out"))) == []
    elif shown_as == "images":
        record = json.loads((tmp_path / "out" / "data.json").read_text())[2]
        assert record["image"] == [f"pages/00002/{page:05d}.png" for page in range(3)]
        assert record["conversations"][0]["value"].count("<image>\n") == 3


def test_texts_that_are_kept_are_drawn_on_the_fly(tmp_path):
    source = long_texts.write(tmp_path / "t.jsonl", 9)
    limits = filters.filters(max_images=2)
    texts = run(Job((source,), str(tmp_path / "texts"), "triplets", options=OPTIONS, limits=limits))
    files = run(Job((source,), str(tmp_path / "files"), options=OPTIONS, limits=limits))
    assert texts.counts == files.counts and texts.counts["kept"] == 5 and texts.dropped == {"too_many_pages": 4}
    flown = read_mixture([MixtureEntry(path=texts.path, format="text_pages", pages=OPTIONS.model_dump())], 0)
    for record, (name, _, pixels, question, answer) in zip(flown, media(files.path), strict=True):
        assert (record.id, record.turns[0].question, record.turns[0].answer) == (name, question, answer)
        for (_, path), page in zip(record.media, pixels, strict=True):
            assert np.array_equal(np.asarray(frames.open_image(path)), page)


def test_what_is_dropped_is_counted_and_listed(tmp_path):
    embedded_words.tokenizer().save(str(tmp_path / "tokenizer.json"))
    lines = [
        {"context": "word " * 10, "question": "what ?", "answer": "it"},
        {"context": "word " * 1000, "question": "what ?", "answer": "it"},
        {"context": "word " * 400, "question": "what " * 60, "answer": "it"},
        {"context": "word", "question": "what " * 9, "answer": "it"},
        {"context": "word", "question": "what <video> ?", "answer": "it"},
        {"context": "永遠", "question": "what ?", "answer": "it"},
        {"context": " ", "question": "what ?", "answer": "it"},
        {"context": "internationalization " * 115 + "é", "question": "what ?", "answer": 3},
        {"context": "internationalization " * 115, "question": "what ?", "answer": "it"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    limits = filters.filters(max_images=8, tokens_per_image=10, max_total_tokens=90, max_question_words=9)
    job = Job((str(tmp_path / "t.jsonl"),), str(tmp_path / "out"), options=OPTIONS, limits=limits)
    with pytest.raises(InputError, match="give --tokenizer=DIR"):
        synthesize.make_plan(job)
    report = run(Job(job.sources, job.output, options=OPTIONS, limits=limits, tokenizer=str(tmp_path)))
    assert report.dropped == {
        "too_many_pages": 1, "too_many_tokens": 1, "long_question": 1, "tag": 1, "no_glyphs": 1, "empty": 1,
        "bad_record": 1,
    }  # fmt: skip
    assert (report.counts["kept"], report.counts["pages"], report.counts["overflowed"]) == (2, 2, 1)
    listed = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [entry["cause"] for entry in listed] == [
        "too_many_pages", "too_many_tokens", "long_question", "tag", "no_glyphs", "bad_record",
    ]  # fmt: skip
    assert listed[-1]["source"].endswith("t.jsonl: record 7") and "'answer' must be a text" in listed[-1]["detail"]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["counts"]["kept"] == 2 and card["vlvm_jax"] == "1.2.3" and card["filters"]["max_images"] == 8
    assert card["made_with"]["font_sha256"] == draw.provenance(OPTIONS)["font_sha256"]
    assert card["sources"][0]["left_out"] == {"empty": 1} and card["options"]["chunk_size"] == 115


def test_nothing_kept_is_an_error(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"context": "永遠", "question": "q", "answer": "a"}))
    with pytest.raises(
        InputError, match=r"every text was dropped \(1 no_glyphs\); the last: font Liberation.* lacks 2"
    ):
        run(Job((str(tmp_path / "t.jsonl"),), str(tmp_path / "out"), options=OPTIONS))


@pytest.mark.parametrize("format", synthesize.FORMATS)
def test_workers_and_stops_change_nothing(tmp_path, format):
    sources = (long_texts.write(tmp_path / "t.jsonl", 7), long_texts.write(tmp_path / "u.jsonl", 4, words=60))
    job = Job(sources, str(tmp_path / "out"), format, options=OPTIONS, per_part=3)

    def stop(done, note):
        if done >= 5:
            raise Interrupted("enough")

    plan = synthesize.make_plan(job)
    with pytest.raises(Interrupted):
        synthesize.run(plan, 0, stop)
    assert [synthesize.whole(plan, index) is not None for index in range(plan.parts)] == [True, False, False, False]
    assert not (tmp_path / "out" / synthesize.RESULTS[format]).exists()
    assert not list((tmp_path / "out").rglob(f".*{storage.PARTIAL}"))
    notes = []
    plan = synthesize.make_plan(job)
    synthesize.run(plan, 2, lambda done, note: notes.append((done, note)))
    assert notes[0] == (3, "3 were there") and notes[-1][0] <= 11
    synthesize.finish(plan, "v")
    before = contents(tmp_path / "out")
    assert synthesize.run(plan, 0, lambda done, note: None) == 0  # nothing is drawn again
    plan = synthesize.make_plan(Job(sources, str(tmp_path / "other"), format, options=OPTIONS, per_part=3))
    synthesize.run(plan, 0, lambda done, note: None)
    synthesize.finish(plan, "v")
    assert contents(tmp_path / "other") == before
    with pytest.raises(InputError, match=r"holds what was made with other settings \(options: "):
        synthesize.make_plan(
            Job(sources, job.output, format, options=TextPages(**{**OPTIONS.model_dump(), "margin": 9}), per_part=3)
        )


def test_a_rerun_after_kill_9_makes_what_is_missing(tmp_path):
    source, out = long_texts.write(tmp_path / "t.jsonl", 24, words=300), tmp_path / "out"
    command = [
        sys.executable, "-m", "vlvm_jax.data", "synthesize", f"--source={source}", f"--out={out}", "--per_part=2",
        "--chunk_tokenizer=whitespace", "--layout_engine=basic", "--workers=2",
    ]  # fmt: skip
    settings = {"cwd": ROOT, "env": environment(tmp_path), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **settings) as process:
        while len(list((out / "parts").glob("*.json")) if out.exists() else []) < 2:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    time.sleep(1)  # workers that live on for a moment may add to it
    before = {file: file.stat().st_mtime_ns for file in (out / "parts").glob("0*.json")}
    assert 2 <= len(before) < 12 and not (out / "data.json").exists()
    (out / "parts" / f".00003.json.1{storage.PARTIAL}").write_text("{")  # what such an end may leave, or may not
    done = subprocess.run(command, check=True, **settings)
    assert "pages/s" in done.stdout and "kept" in done.stdout and "overflowed" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before
    run(Job((source,), str(tmp_path / "other"), options=OPTIONS, per_part=2))
    ours, other = contents(out), contents(tmp_path / "other")
    assert ours.keys() == other.keys()
    assert all(ours[name] == other[name] for name in ours if name != "card.json")


def test_a_shard_without_a_sample_reads_back(tmp_path):
    source = long_texts.write(tmp_path / "t.jsonl", 4)
    limits = filters.filters(max_images=1)
    report = run(Job((source,), str(tmp_path / "out"), "array_record", options=OPTIONS, limits=limits, per_part=1))
    assert len(media(report.path)) == 1 and len(shards.read_manifest(report.path).shards) == 4
