"""The checkpoints in the package: what they hold, that transformers opens them and that they answer."""

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from vlvm_jax.data.embedded import arrangements
from vlvm_jax.errors import InputError
from vlvm_jax.inference import loading
from vlvm_jax.inference.requests import Decoding, Request
from vlvm_jax.weights.hf import hub
from vlvm_jax.weights.hf.clip_source import open_clip

HASHES = {  # of the weights; a change of them is another model, and another result of every recipe that starts from it
    "embedded": "d8db2d59bc300d174a769e6f7a5e03188ea5573e790585a4eabee793dc11fce9",
    "embedded-clip": "cdad5550eade6327ffca6b427ce1d5961b6cc648e7524aab76c5fda452ece9ce",
}
MOST = 8 << 20  # bytes, of all together
ASKED = 40


def folder(name: str) -> Path:
    return Path(hub.resolve(name, "test"))


def test_nothing_else_is_packaged():
    assert hub.packaged() == tuple(sorted(HASHES))


@pytest.mark.parametrize("name", HASHES)
def test_the_weights_are_those_that_were_trained(name):
    files = list(folder(name).glob("*.safetensors"))
    assert [file.name for file in files] == ["model.safetensors"]
    assert hashlib.sha256(files[0].read_bytes()).hexdigest() == HASHES[name]


def test_they_are_small_and_have_what_belongs_to_them():
    sizes = {name: sum(file.stat().st_size for file in folder(name).iterdir()) for name in HASHES}
    assert sum(sizes.values()) <= MOST
    for name in HASHES:
        there = {file.name for file in folder(name).iterdir()}
        assert {"config.json", "README.md", "LICENSE", "run_card.json", "tokenizer.json"} <= there, name
        assert "license: apache-2.0" in (folder(name) / "README.md").read_text(), name


def test_a_directory_of_the_same_name_is_given_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("embedded", "test") == folder("embedded")
    assert Path(hub.resolve("./embedded", "test")) == tmp_path / "embedded"
    with pytest.raises(InputError, match="one of the package's own: embedded, embedded-clip"):
        hub.resolve("embeded", "test")


@pytest.fixture(scope="module")
def asked():
    """Images that training never showed, each with a question."""
    rng, found = np.random.default_rng(5), []
    while len(found) < ASKED:
        drawn = arrangements.draw_arrangement(rng, held_out=True)
        question = arrangements.questions(drawn, rng, 1)[0]
        found.append((Image.fromarray(arrangements.render(drawn, 64)), question.question, question.answer))
    return found


def test_the_base_answers_here_and_in_transformers(asked, tmp_path):
    """The same words, and nearly all of them right."""
    answering = loading.load("embedded", dtype="float32")
    requests = []
    for number, (image, question, _) in enumerate(asked):
        image.save(file := tmp_path / f"{number}.png")
        requests.append(Request(str(number), (("image", str(file)),), question))
    ours = [answer.text for answer in answering.answer(requests, Decoding(max_new_tokens=4))]
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder("embedded"), dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(folder("embedded"))
    theirs = []
    for image, question, _ in asked:
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(said, add_generation_prompt=True)
        inputs = processor(images=[image], text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        theirs.append(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert ours == theirs
    assert np.mean([said == answer for said, (_, _, answer) in zip(ours, asked, strict=True)]) >= 0.9


def test_the_clip_opens_here_and_in_transformers():
    opened = open_clip("embedded-clip", "test")
    model, told = transformers.CLIPModel.from_pretrained(folder("embedded-clip"), output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) == sum(s.size for s in jax.tree.leaves(dict(opened.shapes)))
