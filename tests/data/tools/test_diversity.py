"""The picture of how instructions spread."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from support.recipes import ROOT, environment

from vlvm_jax.data.tools import diversity, prepare
from vlvm_jax.errors import InputError

ASKED = {
    "captions": ["describe the video in detail", "give a detailed caption of the video", "what does the video show"],
    "papers": ["which method does the paper propose", "list the limitations of the paper", "who wrote the paper"],
}


def source(folder, name, questions, count=30):
    records = [
        {"id": str(i), "conversations": [{"from": "human", "value": f"{questions[i % len(questions)]} {i % 7}"},
                                         {"from": "gpt", "value": "this"}]}
        for i in range(count)
    ]  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(records))
    return str(folder / f"{name}.json")


def test_questions_are_the_first_without_placeholders(tmp_path):
    said = [("human", "<image>\n What\nis it?"), ("gpt", "x"), ("human", "And that?"), ("gpt", "y")]
    record = {"image": "i.png", "conversations": [{"from": who, "value": text} for who, text in said]}
    (tmp_path / "a.json").write_text(json.dumps([record, {"image": "x"}, record]))
    assert diversity.questions(prepare.open_records([str(tmp_path / "a.json")]), 9, 0) == ["What is it?"] * 2
    many = prepare.open_records([source(tmp_path, "b", ASKED["papers"])])
    drawn = diversity.questions(many, 10, 0)
    assert len(drawn) == 10 and drawn == diversity.questions(many, 10, 0) != diversity.questions(many, 10, 1)


def test_two_kinds_of_instructions_lie_apart(tmp_path):
    texts = [f"{text} {i % 5}" for name in ASKED for i in range(20) for text in ASKED[name]]
    how, vectors = diversity.embed(texts, "tfidf", "")
    assert how == "TF-IDF" and vectors.shape[0] == 120
    points = diversity.project(vectors, "tsne", 0)
    assert np.array_equal(points, diversity.project(vectors, "tsne", 0))
    near = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(120)
    same = (near.argmin(1) < 60) == (np.arange(120) < 60)
    assert same.mean() > 0.95


def test_the_command_writes_points_and_picture(tmp_path):
    paths = [source(tmp_path, name, ASKED[name]) for name in ASKED]
    out = tmp_path / "new" / "d.png"
    command = [sys.executable, "-m", "vlvm_jax.data", "diversity", *(f"--data={path}" for path in paths)]
    command += [f"--out={out}", "--embed=tfidf", "--samples=20"]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "40 instructions of 2 sources, embedded by TF-IDF, projected by tsne" in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert len(rows) == 40 and {row["source"] for row in rows} == {"captions.json", "papers.json"}
    assert rows[0].keys() == {"source", "x", "y", "instruction"} and rows[0]["x"] != rows[1]["x"]


def test_what_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"or take --embed=tfidf; run: pip install 'vlvm_jax\[diversity\]'"):
        diversity.embed(["a"], "sentence", "m")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="umap-learn"):
        diversity.project(np.ones((9, 3), np.float32), "umap", 0)
    with pytest.raises(InputError, match="4 instructions; a picture needs 5 or more"):
        diversity.project(np.ones((4, 3), np.float32), "tsne", 0)
    with pytest.raises(InputError, match="too few words"):
        diversity.embed(["word", "word"], "tfidf", "")
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(InputError, match=r"pip install 'vlvm_jax\[diversity\]'"):
        diversity.embed(["a b", "c d"], "tfidf", "")


def test_names_in_the_legend():
    assert diversity.short_names(["a/x.json", "b/y.json"]) == ["x.json", "y.json"]
    assert diversity.short_names(["a/x.json", "b/x.json"]) == ["a/x.json", "b/x.json"]
