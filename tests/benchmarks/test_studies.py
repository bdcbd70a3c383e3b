"""The studies behind the docs' tables run to their end, are not run twice, and print every arm; on next to no data."""

import json
import sys

import pytest

from benchmarks import free_video_llm as guided_study
from benchmarks import red_villm as branch_study
from benchmarks import t2vid as pages_study
from configs import free_video_llm, red_villm, t2vid
from vlvm_jax.recipes._common import tiny_data

pytestmark = pytest.mark.slow

STORIES = tiny_data(train_stories=40, heldout_stories=4, heldout_long_stories=4, train_long_texts=30)["embedded"]
CLIPS = tiny_data(train_arrangements=40, train_clips=40, heldout_clips=8)["embedded"]
SEARCHES = tiny_data(heldout_searches=8)["embedded"]


def shrunk(get_config, data):
    """The recipe on that data, two steps a stage."""

    def made(arg):
        config = get_config(arg)
        config.data.embedded, config.data.workers = data, 0
        for stage in config.stages:
            stage.update({"steps": 2, "epochs": None, "batch_size": 8})
            for entry in stage.data:
                if entry.get("count"):
                    entry["count"] = 8
        for held_out in config.evals:
            held_out.batch_size = 8
        return config

    return made


@pytest.mark.parametrize(
    ("study", "recipe", "data", "arms", "questions"),
    [
        (pages_study, t2vid, STORIES, ["zero-shot", "15% hybrid", "15% pure text"], ("long", "short")),
        (branch_study, red_villm, CLIPS, ["frames", "red_villm", "10%"], ("temporal", "which")),
        (guided_study, free_video_llm, SEARCHES, ["guided 513", "uniform 1026", "FreeVA D1", "IG-VLM"], ("rare",)),
    ],
    ids=["t2vid", "red_villm", "free_video_llm"],
)
def test_a_study(study, recipe, data, arms, questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLVM_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(recipe, "get_config", shrunk(recipe.get_config, data))
    steps = ["--steps", "2"] if study is branch_study else []
    flags = [f"--workdir={tmp_path / 'study'}", *steps, "--seeds", "0", "--only", *arms]
    monkeypatch.setattr(sys, "argv", ["study", *flags])
    study.main()
    table = capsys.readouterr().out
    for arm in arms:
        assert f"| {arm} |" in table
    assert all(word in table for word in questions)
    results = sorted((tmp_path / "study" / "results").iterdir())
    assert len(results) == len(arms) and next((tmp_path / "study").glob("*.png")).stat().st_size > 10_000
    untrained = [result for path in results if not (result := json.loads(path.read_text()))["stages"]]
    assert bool(untrained) == (study is not branch_study)
    assert "majority" not in json.dumps(untrained)  # no training answers
    written = [path.stat().st_mtime_ns for path in results]
    study.main()
    assert [path.stat().st_mtime_ns for path in results] == written
