"""What somebody with an export does, in a process that has only torch and transformers: run as a script by a test."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(jobs: Path) -> None:
    warnings.simplefilter("error")
    transformers.utils.logging.disable_progress_bar()
    for directory in json.loads(jobs.read_text()):
        folder = Path(directory)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, output_loading_info=True, dtype=torch.float32
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not loading[kind], f"{directory}: {kind} {loading[kind]}"
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        out = {}
        for name, prompt, media in read_cases(folder):
            inputs = model.prepare_inputs(tokenizer, prompt, **media)
            with torch.no_grad():
                out[f"{name}/logits"] = model(**inputs).logits[0].numpy()
            length = inputs["input_ids"].shape[1]
            out[f"{name}/ids"] = inputs["input_ids"][0].numpy()
            greedy = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            out[f"{name}/greedy"] = greedy[0, length:].numpy()
            answer = model.chat(tokenizer, prompt, max_new_tokens=4, **media)
            said = [*greedy[0, length:].tolist(), tokenizer.eos_token_id]
            said = said[: said.index(tokenizer.eos_token_id)]
            assert answer == tokenizer.decode(said, skip_special_tokens=True).strip(), name
            several = model.generate(**inputs, max_new_tokens=2, do_sample=True, top_k=1, num_return_sequences=2)
            assert several.tolist() == greedy[:, : several.shape[1]].tolist() * 2, name
        np.savez(folder / "results.npz", **out)
    loaded = {name.split(".")[0] for name in sys.modules}
    assert not loaded & {"jax", "flax", "vlvm_jax"}, loaded & {"jax", "flax", "vlvm_jax"}


def read_cases(folder: Path):
    arrays = np.load(folder / "media.npz")
    for case in json.loads((folder / "cases.json").read_text()):
        media = {kind: [arrays[key] for key in case[kind]] for kind in ("images", "videos")}
        yield case["name"], case["prompt"], media


if __name__ == "__main__":
    main(Path(sys.argv[1]))
