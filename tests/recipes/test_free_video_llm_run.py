"""The tiny recipe from end to end, shortened: its evaluation and controls, then it answers without any data set."""

import json
import subprocess
import sys

import pytest
from PIL import Image
from support.recipes import ROOT, environment

pytestmark = pytest.mark.slow

CONFIG = "--config=configs/free_video_llm.py"
CLIPS = 48
TOKENS = 8 * 28 + 32


def python(data, module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment(data), capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir and the folder with the data."""
    root = tmp_path_factory.mktemp("free_video_llm")
    python(
        root / "data", "vlvm_jax.train", CONFIG, f"--workdir={root}/run", "--config.tensorboard=False",
        "--config.data.workers=0", f"--config.data.embedded.heldout_searches={CLIPS}",
    )  # fmt: skip
    (folder,) = (root / "data").glob("shapes-*")
    return root / "run", folder


def test_nothing_is_trained_and_the_controls_are_asked(run):
    workdir, folder = run
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["stages"] == [] and not list(folder.glob("train_*"))
    found = summary["eval"]["searches"]
    assert found["questions"] == CLIPS
    assert set(found["controls"]) == {"blank_video", "shuffled_prompt"}
    assert set(found["by_type"]) == {"rare_color", "rare_shape", "small_color", "small_shape"}
    assert found["accuracy"] > found["controls"]["blank_video"]["accuracy"]


def test_it_answers_with_the_files_of_its_models(run, tmp_path):
    _, folder = run
    (tmp_path / "questions.txt").write_text("cross color ?\nred shape ?\n")
    clip = folder / "media" / "heldout_searches" / "000000.mp4"
    out = python(
        tmp_path / "no data set is made here", "vlvm_jax.generate", CONFIG, f"--video={clip}",
        f"--questions={tmp_path}/questions.txt", "--json", f"--show={tmp_path}/sheet.png",
    )  # fmt: skip
    assert not (tmp_path / "no data set is made here").exists()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["visual_tokens"] for answer in answers] == [TOKENS] * 2
    for answer in answers:
        picked = answer["picked"]
        assert sorted(picked["prompt_idx"]) == picked["prompt_idx"] and len(set(picked["prompt_idx"])) == 3
        assert picked["uniform_idx"] == [0, 6, 12, 19, 25] and picked["fast_idx"] == list(range(32))
        assert [box[2:] for box in picked["prompt_boxes"]] == [[7, 4]] * 3
    assert answers[0]["picked"]["frame_scores"] != answers[1]["picked"]["frame_scores"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and min(sheet.size) > 500


def test_answers_are_right_where_the_recipe_s_evaluation_says_so(run, tmp_path):
    """One decodes, the other does not."""
    workdir, folder = run
    python(
        tmp_path / "data", "vlvm_jax.evaluate", "--checkpoint=embedded", CONFIG, f"--output={tmp_path}/out",
        f"--questions={folder}/heldout_searches.json", f"--media={folder}", "--match=exact", "--control=blank_video",
        "--control=shuffled_prompt",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = json.loads((workdir / "summary.json").read_text())["eval"]["searches"]
    assert found["by_type"] == pytest.approx(expected["by_type"]) and found["accuracy"] > 0
    assert set(found["controls"]) == {"blank_video", "shuffled_prompt"}
    lines = {}
    for name in ("predictions", "predictions_shuffled_prompt"):
        text = (tmp_path / "out" / f"{name}.jsonl").read_text()
        lines[name] = {line["id"]: line for line in map(json.loads, text.splitlines())}
    own, swapped = lines.values()
    assert len(own) == len(swapped) == CLIPS
    scores = [(own[name]["picked"]["frame_scores"], swapped[name]["picked"]["frame_scores"]) for name in own]
    assert all(one != other for one, other in scores)  # another question guides, the same is asked
    assert all(own[name]["question"] == swapped[name]["question"] for name in own)
