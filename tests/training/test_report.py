"""The closing picture and summary of a run whose names and questions are in any script and of any length."""

import io
import json
import warnings

import numpy as np
from etils.epath import Path
from PIL import Image

from vlvm_jax.pictures import Picture
from vlvm_jax.training import report

KIND, LONG = "颜色", "红 what ماذا 🎬 $x$ " * 600


def test_texts_of_any_script_and_length(tmp_path):
    result = {"questions": 1, "accuracy": 0.5, "by_type": {KIND: 0.5, LONG: 0.5}, "controls": {}}
    stage = {"name": KIND, "steps": 2, "first_loss": 2.0, "last_loss": 1.0, "seconds": 1.0, "compilations": 1}
    goodput = {"goodput": 1.0, "productive": 1.0, "wall": 1.0}
    summary = {"eval": {KIND: result}, "stages": [stage], "goodput": goodput, "skipped": {}, "cut_prompts": 0}
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of glyphs that are missing
        report.write(Path(tmp_path), summary, {KIND: [(1, 2.0), (2, 1.0)]}, [Picture(frames, None, LONG)])
    with Image.open(io.BytesIO((tmp_path / "summary.png").read_bytes())) as picture:
        assert picture.width < 2000 and picture.height < 1500
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text) == summary and KIND in text and LONG in text
