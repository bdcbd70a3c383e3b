"""Pages drawn while training reads them: the same as files, a sample's pages together, whatever the workers."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from support import long_texts
from support.specs import make_spec

from vlvm_jax.config import MixtureEntry, build
from vlvm_jax.data.batch.dataset import make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.media import containers
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.pages import draw
from vlvm_jax.data.sample.loader import SampleLoader
from vlvm_jax.data.sources.mixture import read_mixture
from vlvm_jax.data.sources.text_pages import TextPages, TextPagesFile
from vlvm_jax.errors import InputError

PAGES = {"chunk_tokenizer": "whitespace", "layout_engine": "basic"}


def entry(path, **pages):
    return MixtureEntry(path=str(path), format="text_pages", pages=PAGES | pages)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return long_texts.write(tmp_path_factory.mktemp("texts") / "of #1?" / "t.jsonl", 8)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    embedded_words.tokenizer().save(str(folder / "tokenizer.json"))
    return make_spec(
        length=60, frames=8, frames_per_video=8, image_size=448, image_tokens=3, video_tokens=tuple(range(0, 27, 3)),
        tokenizer=str(folder), chat_template="bare",
    )  # fmt: skip


def test_a_record_shows_all_pages_before_its_question(texts):
    found = TextPagesFile.open(texts, PAGES)
    assert len(found) == 8 and set(found.kinds) == {"image"}
    record = found[3]
    context = found.texts.triplet(3).context
    options = TextPages(**PAGES)
    assert len(record.media) == len(draw.chunk(context, options)) == 4
    assert record.turns[0].question == "<image>\n" * 4 + "what is 3 ?" and record.turns[0].answer == "it is 3"
    rendered = draw.render_pages(context, options)
    for (kind, path), pixels in zip(record.media, rendered.pages, strict=True):
        assert kind == "image" and np.array_equal(np.asarray(video.open_image(path)), pixels)
        assert video.image_size(path) == (448, 448)
    assert found[0].source == f"{texts}: record 0"


def test_pages_as_a_clip(texts):
    found = TextPagesFile.open(texts, PAGES | {"shown_as": "video"})
    assert set(found.kinds) == {"video"}
    ((kind, path),) = found[3].media
    clip = video.read_clip(path, 8, 448)
    pages = draw.render_pages(found.texts.triplet(3).context, TextPages(**PAGES)).pages
    assert kind == "video" and np.array_equal(clip, pages)
    assert len(containers.frame_names(path)) == 4 and found[3].turns[0].question.startswith("<image>\n")
    assert np.array_equal(video.read_clip(path, 2, 448), pages[[1, 3]])  # of a clip the frame rule takes what it takes


def test_the_same_text_as_text(texts):
    found = TextPagesFile.open(texts, PAGES | {"shown_as": "text"})
    record = found[3]
    assert set(found.kinds) == {"text"} and not record.media
    assert record.turns[0].question == f"{found.texts.triplet(3).context}\n\nwhat is 3 ?"


def test_it_travels_light_and_knows_itself(texts):
    found = TextPagesFile.open(texts, PAGES)
    data = pickle.dumps(found)
    assert len(data) < 4000 and pickle.loads(data)[5] == found[5]
    assert found.digest() == TextPagesFile.open(texts, PAGES).digest()
    assert found.digest() != TextPagesFile.open(texts, PAGES | {"chunk_size": 90}).digest()


def test_texts_of_too_many_pages_are_counted(texts):
    found = TextPagesFile.open(texts, PAGES | {"max_pages": 2})
    assert len(found[1].media) == 2
    with pytest.raises(BadSampleError, match=r"too_many_frames: .*record 3: 4 pages, more than max_pages 2"):
        found[3]


def test_records_that_are_none_are_bad(tmp_path):
    lines = [{"context": "永遠", "question": "q", "answer": "a"}, {"context": "x", "question": "q"}]
    lines += [{"context": "word", "question": "what <image> ?", "answer": "a"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = TextPagesFile.open(str(tmp_path / "t.jsonl"), PAGES)
    for index, said in enumerate(("LiberationSans-Regular.ttf lacks 2", "'answer' must be", "2 placeholders")):
        if index == 2:
            assert len(found[2].media) == 1  # one placeholder for one page may stand within the question
            continue
        with pytest.raises(BadSampleError, match=f"bad_record: .*{said}"):
            found[index]


def test_paths_that_lead_to_no_page(texts):
    path = TextPagesFile.open(texts, PAGES)[0].media[0][1]
    with pytest.raises(BadSampleError, match=r"corrupt: .*there is no such page among 1"):
        video.open_image(path.removesuffix("0") + "7")
    with pytest.raises(BadSampleError, match=r"corrupt: .*is not one file"):
        video.open_image(path.removesuffix("/0"))
    assert containers.frame_names(path) is None


@pytest.mark.parametrize(("pack", "workers"), [(False, 0), (True, 0), (True, 2)])
def test_the_pipeline_keeps_pages_together(texts, spec, workers, pack):
    """Each row has its sample's pages, all and in order, as if they had been read from files."""
    mixture = read_mixture([entry(texts)], 0)
    log = SkipLog(mixture, 0.0, path=None)
    batches = list(make_dataset(mixture, spec, rows=2, pack=pack, skip_log=log, seed=None, workers=workers))
    seen = []
    for batch in batches:
        for record, segments, frames, media in zip(
            batch["record"], batch["segment_ids"], batch["frames"], batch["media"], strict=True
        ):
            shown = frames[media > 0]
            done = 0
            for index in dict.fromkeys(record[segments > 0].tolist()):
                pages = draw.render_pages(mixture.parts[0].source.texts.triplet(index).context, TextPages(**PAGES))
                assert np.array_equal(shown[done : done + len(pages.pages)], pages.pages)
                done += len(pages.pages)
                seen.append(index)
            assert done == len(shown)
    assert sorted(seen) == list(range(8)) and log.summary() == {}
    if pack:
        assert sum(len(batch["record"]) for batch in batches) < 8


def test_pages_and_clips_mix_in_a_stage(texts, spec, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number * 90,) * 3).save(folder / f"{number}.png")
    said = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "it"}]
    (tmp_path / "a.json").write_text(json.dumps([{"video": "clip", "conversations": said}] * 4))
    mixture = read_mixture(
        [MixtureEntry(path=str(tmp_path / "a.json"), weight=2), entry(texts).model_copy(update={"weight": 1.0})], 3
    )
    assert mixture.kind_counts["image"] == 8 and mixture.kind_counts["video"] == 16
    loader = SampleLoader(mixture, spec)
    clip, pages = loader.load(0), loader.load(len(mixture) - 1)
    assert clip["is_video"].all() and not pages["is_video"].any()
    assert len(set(clip["media"])) == 1 and len(set(pages["media"])) == len(pages["media"])


def test_faults_of_an_entry(texts, tmp_path):
    for pages, said in (
        ({"chunk_sise": 9}, r"t\.jsonl: pages\.chunk_sise: unknown key; did you mean 'chunk_size'\?"),
        ({"shown_as": "sound"}, r"pages\.shown_as: "),
        ({"font": f"{tmp_path}/gone.ttf"}, r"font .*gone\.ttf: "),
    ):
        with pytest.raises(InputError, match=said):
            read_mixture([entry(texts, **pages)], 0)
    with pytest.raises(InputError, match="pages are drawn from texts: give format 'text_pages'"):
        build(MixtureEntry, {"path": texts, "pages": {"chunk_size": 9}}, "e")
    with pytest.raises(InputError, match=r"e\.pages: "):
        build(MixtureEntry, {"path": texts, "format": "text_pages", "pages": 3}, "e")
    found = build(MixtureEntry, {"path": texts, "format": "text_pages", "pages": {"chunk_size": 9}}, "e")
    assert hash(found) == hash(found.model_copy())


def test_every_option_that_decides_a_page_is_in_its_path(texts):
    """Workers have the path alone."""
    pages = {
        "chunk_size": 50, "page_size": 300, "font_size": 15, "margin": 11, "vertical_align": "top",
        "line_advance": "font_metrics", "overflow": "new_page", "font": str(draw.FONT),
        "max_missing_glyphs": 0.5, "rewrite_long_answer": False, "chunk_mode": "n_parts", "parts": 3,
    }  # fmt: skip
    found = TextPagesFile.open(texts, PAGES | pages)
    rendered = draw.render_pages(found.texts.triplet(3).context, TextPages(**PAGES | pages))
    assert len(found[3].media) == len(rendered.pages) > 4
    for (_, path), pixels in zip(found[3].media, rendered.pages, strict=True):
        assert np.array_equal(np.asarray(video.open_image(path)), pixels)
