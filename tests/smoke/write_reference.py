"""Write what the newest releases are compared with, in an environment that has PyTorch.

usage: python tests/smoke/write_reference.py RUN FOLDER

RUN is a finished training run of `cases.TRAINING`. FOLDER gets a tiny checkpoint of each of `cases.FAMILIES` with the
logits and greedy answers of transformers' class (`FAMILY.npz`), a clip and a picture, and RUN with its export.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import cases
import jax
import numpy as np
import torch
import transformers
from support import tiny_checkpoints as tiny
from support.torch_inputs import inputs_of

from vlvm_jax.inference.loading import load

SIZE = (50, 70)


def main(run: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    tiny.clip(folder / "clip.mp4")
    tiny.picture(folder / "picture.png", *SIZE)
    for family in cases.FAMILIES:
        write_family(tiny.checkpoint(folder / family, family), family)
    shutil.copytree(run, folder / "run")
    export = [sys.executable, "-m", "vlvm_jax.convert", "export", str(folder / "run"), str(folder / "export")]
    subprocess.run(export, check=True)


def write_family(folder: Path, family: str) -> None:
    answering = load(str(folder), frames=cases.FRAMES)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for kind, request in cases.requests(folder.parent).items():
        sample = cases.sample_of(answering, request)
        inputs = inputs_of(answering, request, family, [SIZE] if kind == "image" else [])
        length = inputs["input_ids"].shape[1]
        with torch.no_grad():
            logits = theirs(**inputs).logits[0, :length].numpy()
            said = theirs.generate(
                **inputs, max_new_tokens=cases.NEW_TOKENS, do_sample=False,
                eos_token_id=list(answering.prompts.end_ids), pad_token_id=0,
            )[0, length:].tolist()  # fmt: skip
        found |= {
            f"{kind}/ids": sample["token_ids"],
            f"{kind}/frames": sample["frames"],
            f"{kind}/logits": logits,
            f"{kind}/said": [token for token in said if token not in answering.prompts.end_ids],
        }
    np.savez(folder.with_suffix(".npz"), **found)
    print(f"{family}: logits and answers of transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
