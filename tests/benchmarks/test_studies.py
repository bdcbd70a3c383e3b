"""The studies behind the docs' tables run to their end, are not run twice, and print every arm; on next to no data."""

import sys

import pytest

from benchmarks import free_video_llm as guided_study
from benchmarks import t2vid as pages_study
from configs import free_video_llm, t2vid

pytestmark = pytest.mark.slow

NOTHING = {"train_arrangements": 0, "train_clips": 0, "heldout_arrangements": 0, "heldout_clips": 0}
STORIES = {
    **NOTHING, "train_stories": 40, "heldout_stories": 4, "heldout_long_stories": 4, "train_story_texts": 40,
    "train_long_texts": 30, "train_events": 40,
}  # fmt: skip
SEARCHES = {**NOTHING, "heldout_searches": 8, "search_size": 64}


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
        (guided_study, free_video_llm, SEARCHES, ["guided 513", "uniform 1026", "FreeVA D1", "IG-VLM"], ("rare",)),
    ],
    ids=["t2vid", "free_video_llm"],
)
def test_a_study(study, recipe, data, arms, questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLVM_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(recipe, "get_config", shrunk(recipe.get_config, data))
    monkeypatch.setattr(sys, "argv", ["study", f"--workdir={tmp_path / 'study'}", "--seeds", "0", "--only", *arms])
    study.main()
    table = capsys.readouterr().out
    for arm in arms:
        assert f"| {arm} |" in table
    assert all(word in table for word in questions)
    results = sorted((tmp_path / "study" / "results").iterdir())
    assert len(results) == len(arms) and next((tmp_path / "study").glob("*.png")).stat().st_size > 10_000
    untrained = [path for path in results if path.stem.startswith(("zero-shot", "guided"))]
    assert untrained and all("majority" not in path.read_text() for path in untrained)  # no training answers
    written = [path.stat().st_mtime_ns for path in results]
    study.main()
    assert [path.stat().st_mtime_ns for path in results] == written
