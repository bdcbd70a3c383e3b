"""Greedy answers over files, token by token, against `generate` of transformers' class of every imported family.

That prompts and pixels are transformers' own is tested in tests/data; here both models are given ours.
"""

import jax
import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
import transformers

from vlvm_jax.inference.answering import Answering, Decoding, Request
from vlvm_jax.inference.loading import load

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
    wide, tall = (("image", tiny.picture(folder / f"{size}.png", *size)) for size in ((50, 70), (90, 20)))
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
    inputs = inputs_of(answering, request, family)
    with torch.no_grad():
        said = theirs.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=list(answering.prompts.end_ids), pad_token_id=0
        )[0, inputs["input_ids"].shape[1] :].tolist()
    expected = [token for token in said if token not in answering.prompts.end_ids]
    assert len(set(expected)) > 2, "nothing to compare"
    assert answer.text == " ".join(map(str, expected))
    assert answer.new_tokens == len(said) and answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.finish == ("length" if len(expected) == NEW else "stop")


def inputs_of(answering: Answering, request: Request, family: str) -> dict[str, torch.Tensor]:
    """Our prompt and pixels as the class takes them."""
    prompts, vision = answering.prompts, answering.engine.model.config.vision
    media = prompts.media(request)
    sample = prompts.sample(request, prompts.prompt(request), media)
    ids = torch.from_numpy(sample["token_ids"].astype(np.int64))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def pixels(frames):
        mean, std = np.asarray(vision.image_mean), np.asarray(vision.image_std)
        return torch.from_numpy(((frames / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))

    if not media:
        return inputs
    if media[0].kind == "video" and family in ("llava_next_video", "llava_onevision"):
        return inputs | {"pixel_values_videos": pixels(media[0].frames)[None]}
    if family == "llava":
        return inputs | {"pixel_values": torch.cat([pixels(medium.frames) for medium in media])}
    if family in ("idefics3", "smolvlm"):
        return inputs | {"pixel_values": torch.cat([pixels(medium.frames) for medium in media])[None]}
    tiles = [pixels(medium.frames) for medium in media]
    most = max(map(len, tiles))
    padded = [torch.cat([each, torch.zeros(most - len(each), *each.shape[1:])]) for each in tiles]
    sizes = [(50, 70), (90, 20)][: len(media)]
    inputs |= {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}
    return inputs | ({"batch_num_images": torch.tensor([len(media)])} if family == "llava_onevision" else {})
