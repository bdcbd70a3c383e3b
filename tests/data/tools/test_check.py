"""What `data check` finds: causes, lengths, figures, tables and the picture."""

import json

import pytest
from PIL import Image
from rich.console import Console
from support import user_folder
from support.recipes import small

from vlvm_jax.data.embedded import shapes
from vlvm_jax.data.embedded.shapes import ShapesOptions
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.sample import loader as loader_lib
from vlvm_jax.data.tools import check, check_report
from vlvm_jax.data.tools.check import Checker, MediumFacts
from vlvm_jax.data.tools.prepare import open_records
from vlvm_jax.samples import sample_spec


def examine(records, spec=None, workers=0):
    return check.examine(Checker(records, spec), range(len(records)), workers)


def recipe_spec(embedded, **changes):
    """Of the small recipe's last stage."""
    config = small()
    stage = config.stages[-1].model_copy(update=changes)
    folder = shapes.folder(ShapesOptions(**config.data.embedded), embedded)
    data = config.data.model_copy(update={"tokenizer": f"{folder}/tokenizer.json"})
    return sample_spec(config.model_copy(update={"data": data}), stage), folder


def test_every_kind_of_record_is_usable(tmp_path):
    findings = examine(open_records([str(user_folder.good(tmp_path))]))
    assert [finding.cause for finding in findings] == [""] * 8
    assert [finding.kind for finding in findings] == ["video"] * 2 + ["image"] * 2 + ["video"] * 3 + ["text"]
    assert findings[0].media == (MediumFacts("video", 64, 48, pytest.approx(2.0, abs=0.1)),)
    assert [medium.kind for medium in findings[4].media] == ["video", "video", "image"]
    assert findings[2].media == (MediumFacts("image", 90, 60),)
    assert findings[5].media == (MediumFacts("video", 80, 60),) == findings[6].media
    assert findings[7].characters == len("Nothing to see, what is two and two?Four.")


@pytest.mark.parametrize("workers", [0, 2])
def test_causes(tmp_path, workers):
    records = open_records([str(user_folder.bad(tmp_path, fill=20))])
    findings = examine(records, workers=workers)
    summary = check.summarise(findings, len(records), None)
    assert summary["causes"] == user_folder.BAD and (summary["checked"], summary["usable"]) == (26, 20)
    assert summary["kinds"] == {"video": 24, "unreadable": 2} and summary["media"]["video"] == 20
    assert [bad["record"] for bad in summary["bad"]] == list(range(6))
    assert "gone.mp4" in summary["bad"][0]["detail"] and "JSON" in summary["bad"][4]["detail"]
    assert "placeholder but neither" in summary["bad"][5]["detail"]
    assert json.loads(json.dumps(summary)) == summary


def test_lengths_and_drops_are_those_of_training(embedded):
    spec, folder = recipe_spec(embedded)
    records = open_records([str(folder / "heldout_clips.json"), str(folder / "heldout_arrangements.json")])
    findings = examine(records, spec)
    loader = loader_lib.SampleLoader(records, spec)
    samples = [loader.load(index) for index in range(len(records))]
    assert [finding.tokens for finding in findings] == [len(sample["token_ids"]) for sample in samples]
    assert [finding.visual for finding in findings] == [int(sample["media_mask"].sum()) for sample in samples]
    assert not any(finding.cause for finding in findings)
    middle = sorted(finding.tokens for finding in findings)[len(findings) // 2]
    tight, _ = recipe_spec(embedded, length=middle)
    loader = loader_lib.SampleLoader(records, tight)
    dropped = []
    for index in range(len(records)):
        try:
            loader.load(index)
        except BadSampleError as error:
            dropped.append((index, error.cause))
    tightly = examine(records, tight)
    assert dropped and dropped == [(finding.index, finding.cause) for finding in tightly if finding.cause]
    assert {cause for _, cause in dropped} == {"too_long"}
    assert [finding.tokens for finding in tightly] == [finding.tokens for finding in findings]
    summary = check.summarise(tightly, len(records), tight)
    assert summary["length"] == middle and summary["tokens"]["max"] == max(finding.tokens for finding in findings)
    assert sum(summary["histograms"]["tokens"]["counts"]) == len(records)


def test_too_many_media_for_a_row(tmp_path, embedded):
    spec, _ = recipe_spec(embedded)
    records = open_records([str(user_folder.good(tmp_path))])
    found = {finding.index: finding.cause for finding in examine(records, spec) if finding.cause}
    assert found[4] == "too_many_frames"  # two clips of eight frames and an image, for eight


def test_spreads():
    assert check.spread([]) is None
    found = check.spread(range(101))
    assert found == {"min": 0, "p25": 25, "median": 50, "p75": 75, "p99": 99, "max": 100, "sum": 5050}


def test_tables_and_picture(tmp_path, embedded):
    spec, folder = recipe_spec(embedded, length=60)
    records = open_records([str(user_folder.bad(tmp_path)), str(folder / "heldout_clips.json")])
    findings = examine(records, spec)
    summary = check.summarise(findings, len(records), spec)
    assert summary["causes"]["too_long"] > 0
    with (tmp_path / "table.txt").open("w") as file:
        check_report.show(summary, Console(file=file, width=200))
    text = (tmp_path / "table.txt").read_text()
    for said in (f"{len(records)} of {len(records)} records checked", "usable", "bad_record", "too_long", "no_video"):
        assert said in text
    assert "sample, tokens" in text and "gone.mp4" in text
    for name, content in (("full.png", findings), ("empty.png", findings[:1])):
        part = check.summarise(content, len(content), spec)
        check_report.draw(content, part, tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 500


def test_examples_of_a_cause_say_different_things():
    details = ["f: record 1: no list", "f: record 2: no list", "f: record 7: not JSON", "f: record 9: no list"]
    summary = {"bad": [{"cause": "bad_record", "detail": detail} for detail in details]}
    assert check_report.examples(summary, "bad_record") == [details[0], details[2]]


def test_clips_images_neither_empty_answers_and_respelled_names_are_counted(tmp_path):
    user_folder.clip(tmp_path / "a.mp4")
    Image.new("RGB", (64, 48)).save(tmp_path / "i.png")
    qa = {"question": "what ?", "answer": "a cat"}
    raw = [{"video": "A.MP4", **qa}, {"images": ["i.png"], **qa}, {**qa, "answer": " "}, {"video": "a.mp4", **qa}]
    (tmp_path / "n.json").write_text(json.dumps(raw))
    found = open_records([str(tmp_path / "n.json")])
    summary = check.summarise(examine(found), len(found), None)
    assert summary["kinds"] == {"video": 2, "image": 1, "text": 1} and summary["empty_answers"] == 1
    assert summary["respelled"] == {f"{tmp_path}/A.MP4": f"{tmp_path}/a.mp4"} and summary["usable"] == 4
    with (tmp_path / "table.txt").open("w") as file:
        check_report.show(summary, Console(file=file, width=1000))
    rows = [line.strip("│ \n").split("│") for line in (tmp_path / "table.txt").read_text().splitlines() if "│" in line]
    counts = {row[0].strip(): row[1].strip() for row in rows}
    kinds = {"with a clip": "2", "with an image, no clip": "1", "with neither": "1"}
    assert counts.items() >= {**kinds, "with an empty answer": "1", "media names respelled": "1"}.items()
