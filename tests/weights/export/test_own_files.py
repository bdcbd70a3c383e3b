"""A model that started from no checkpoint goes out with all that transformers needs to ask it; so does its CLIP."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.recipes import ROOT, environment

from vlvm_jax import families
from vlvm_jax.data.images.squares import to_square
from vlvm_jax.data.prompt.conversation import PLACEHOLDER
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.recipes._bases import SMALL
from vlvm_jax.weights.hf import clip_source

QUESTION = "red circle color ?"
FEW = {f"train_{name}": 8 for name in ("arrangements", "sets", "signs", "sheets", "timeless_texts")}
FEW |= {f"heldout_{name}": 8 for name in ("arrangements", "sets", "signs", "singles")}


def call(data_root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(data_root), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def trained(folder: Path, data_root: Path, preset: str, **few: int) -> Path:
    few = {f"data.embedded.{name}": count for name, count in few.items()}
    settings = few | {"data.embedded.train_singles": 80, "data.workers": 0, "tensorboard": False}
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    config = f"--config=configs/base.py:{preset},scale=0.001"
    call(data_root, "vlvm_jax.train", config, f"--workdir={folder}/run", *overrides)
    return folder / "run"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, data_root) -> Path:
    folder = tmp_path_factory.mktemp("image")
    run = trained(folder, data_root, "tiny", **FEW)
    said = call(data_root, "vlvm_jax.convert", "export", str(run), f"{folder}/out", "--dtype=bfloat16")
    assert "class: llava" in said and "greedy answers equal" in said
    assert (folder / "out" / "run_card.json").read_bytes() == (run / "run_card.json").read_bytes()
    return folder / "out"


@pytest.mark.slow
def test_transformers_asks_it_as_it_was_trained(exported):
    processor = transformers.AutoProcessor.from_pretrained(exported)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    assert prompt == TEMPLATES["bare"].prompt(asked).text
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    vision = SMALL.vision
    expected = (np.asarray(image) / 255 - vision.image_mean) / vision.image_std
    np.testing.assert_allclose(inputs.pixel_values[0].numpy().transpose(1, 2, 0), expected, atol=1e-5)
    token = processor.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    assert (inputs.input_ids == token).sum() == 64
    model = transformers.AutoModelForImageTextToText.from_pretrained(exported)
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    said = json.loads(
        call(exported, "vlvm_jax.generate", f"--checkpoint={exported}", f"--image={saved(image, exported)}",
             f"--prompt={QUESTION}", "--max_new_tokens=3", "--json")
    )  # fmt: skip
    theirs = processor.decode(answer[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert said["text"].split() == theirs.split()


def saved(image: Image.Image, folder: Path) -> Path:
    file = folder.parent / "image.png"
    image.save(file)
    return file


@pytest.mark.slow
def test_the_clip_of_an_adapter_goes_out_alone(tmp_path, data_root):
    run = trained(tmp_path, data_root, "clip")
    said = call(data_root, "vlvm_jax.convert", "export", str(run), f"{tmp_path}/out", "--format=clip")
    assert "cosines" in said
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words("red circle")["input_ids"][0] == words.convert_tokens_to_ids("<s>")
    ours, theirs = (clip_source.open_clip(str(path), "SRC") for path in (run, tmp_path / "out"))
    assert clip_source.sizes(ours).text == clip_source.sizes(theirs).text
    for path in clip_source.clip_shapes(clip_source.sizes(theirs)):
        np.testing.assert_array_equal(ours.read(path), theirs.read(path))
    assert torch.isfinite(model.logit_scale)
    refused = subprocess.run(
        [sys.executable, "-m", "vlvm_jax.convert", "export", str(tmp_path / "out"), f"{tmp_path}/no", "--format=clip"],
        cwd=ROOT, env=environment(data_root), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert refused.returncode == 2 and "error: " in refused.stderr and not (tmp_path / "no").exists()


@pytest.mark.parametrize("fit", ["auto", "crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(70, 40), (40, 70), (64, 64)])
def test_pictures_become_squares_as_transformers_makes_them(fit, size, tmp_path):
    """Within what bicubic scaling in other steps rounds to."""
    vision = SMALL.vision.model_copy(update={"image_size": 32})
    config = {"vision_feature_select_strategy": "full"}
    made = families.stock("llava").made_files(vision, fit, config, PLACEHOLDER)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(made["preprocessor_config.json"]))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    rows, columns = np.mgrid[: size[1], : size[0]]
    picture = np.stack([rows * 3, columns * 3, (rows + columns) % 256], -1).clip(0, 255).astype(np.uint8)
    theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = to_square(picture, 32, fit, vision.image_mean) / 255
    difference = np.abs(theirs * vision.image_std + vision.image_mean - ours) * 255
    assert difference.mean() < 0.6 and np.quantile(difference, 0.99) < 4
