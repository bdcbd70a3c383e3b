"""Greedy answers over files, token by token, against `generate` of transformers' class of every imported family.

That prompts and pixels are transformers' own is tested in tests/data; here both models are given ours.
"""

import jax
import pytest
import torch
import transformers
from support import tiny_checkpoints as tiny
from support.torch_inputs import inputs_of

from vlvm_jax.inference.answering import Answering, Decoding, Request
from vlvm_jax.inference.loading import load

SIZES = [(50, 70), (90, 20)]  # height and width of the two pictures
NEW = 24  # more than are said in one go
CASES = [
    (family, kind)
    for family in ("llava", "llava_next", "llava_next_video", "llava_onevision", "idefics3", "smolvlm")
    for kind in ("text", "image", "images", "clip")
    if (family, kind) != ("llava_next", "clip")  # the class has no way to be shown one
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    clip = ("video", tiny.clip(folder / "clip.mp4"))
    wide, tall = (("image", tiny.picture(folder / f"{size}.png", *size)) for size in SIZES)
    return {"text": (), "image": (wide,), "images": (wide, tall), "clip": (clip,)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def load_both(family: str) -> tuple[Answering, torch.nn.Module]:
        if family not in made:
            folder = tiny.checkpoint(tmp_path_factory.mktemp(family), family)
            answering = load(str(folder), frames=4)
            answering.prompts.decode = lambda ids: " ".join(map(str, ids))
            theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
            made[family] = answering, theirs
        return made[family]

    return load_both


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_greedy_answers(pairs, files, family, kind):
    answering, theirs = pairs(family)
    request = Request("1", files[kind], "what is in the picture ?")
    with jax.default_matmul_precision("highest"):
        (answer,) = answering.answer([request], Decoding(max_new_tokens=NEW))
    inputs = inputs_of(answering, request, family, SIZES[: len(request.media)])
    with torch.no_grad():
        said = theirs.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=list(answering.prompts.end_ids), pad_token_id=0
        )[0, inputs["input_ids"].shape[1] :].tolist()
    expected = [token for token in said if token not in answering.prompts.end_ids]
    assert len(set(expected)) > 2, "nothing to compare"
    assert answer.text == " ".join(map(str, expected))
    assert answer.new_tokens == len(said) and answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.finish == ("length" if len(expected) == NEW else "stop")
