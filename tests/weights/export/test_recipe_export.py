"""A recipe that trains nothing goes out with our PyTorch code, and answers there as it does here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from support import tiny_checkpoints
from support.recipes import ROOT, environment

from vlvm_jax.inference.loading import load
from vlvm_jax.inference.requests import Request

pytestmark = pytest.mark.slow
QUESTION = "what"


def call(data_root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment(data_root), capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    """Free Video-LLM over a LLaVA and a CLIP of random weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_checkpoints.checkpoint(folder / "llava", "llava", "llama_like", size=64)
    tiny_checkpoints.clip_model(folder / "clip", size=64)
    # CLIP's own class wants CLIP's vocabulary.
    (folder / "clip" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    parts = f"base={folder}/llava,clip={folder}/clip,budget=1026,frames=8"
    return f"configs/free_video_llm.py:llava-v1.6-vicuna-7b,{parts}"


def test_free_video_llm(tmp_path, data_root, recipe):
    there = [f"--config={recipe}", "--config.data.chat_template=checkpoint", "--config.model.dtype=float32"]
    said = call(data_root, "vlvm_jax.convert", "export", *there, f"{tmp_path}/out")
    assert "class: vlvm (rung 4)" in said and "greedy answers equal" in said
    clip = tiny_checkpoints.clip(tmp_path / "clip.mp4")
    asked = [f"--video={clip}", f"--prompt={QUESTION}", "--json", "--max_new_tokens=4"]
    answers = [
        json.loads(call(data_root, "vlvm_jax.generate", *source, *asked))
        for source in (there, [f"--checkpoint={tmp_path}/out"])
    ]
    before, after = ({k: v for k, v in answer.items() if not k.startswith("seconds")} for answer in answers)
    assert before == after and after["picked"]["prompt_idx"]

    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", trust_remote_code=True).float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    prompts, request = load(f"{tmp_path}/out").prompts, Request("1", (("video", clip),), QUESTION)
    (medium,) = prompts.media(request)
    prompt = prompts.prompt(request).text.replace("<image>", "<video>")  # with the recipe's words around the question

    # An import and a second export of it are asked in the same way.
    call(data_root, "vlvm_jax.convert", "import", f"{tmp_path}/out", f"{tmp_path}/imported")
    assert "class: vlvm (rung 4)" in call(
        data_root, "vlvm_jax.convert", "export", f"{tmp_path}/imported", f"{tmp_path}/again", "--noverify"
    )
    for folder in ("imported", "again"):
        answer = json.loads(call(data_root, "vlvm_jax.generate", f"--checkpoint={tmp_path}/{folder}", *asked))
        assert {key: answer[key] for key in after} == after

    words = model.chat(tokenizer, prompt, videos=[medium.frames], question=QUESTION, max_new_tokens=4)
    assert words.split() == after["text"].split()
    with pytest.raises(ValueError, match="by a question: give question="):
        model.chat(tokenizer, prompt, videos=[medium.frames])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{recipe},select=random", "frame_select: 'random' is drawn by JAX's generator"),
        ("configs/base.py", "starts from random parameters; train it"),
        ("configs/ftfv.py:llava-1.5-7b,base={base},length=512", "which training makes; train it"),
        ("configs/own.py:llava-1.5-7b,base={base},data=clips.jsonl,length=512", "trains own; train it"),
    ],
)
def test_what_cannot_go_out_is_said(tmp_path, data_root, recipe, config, said):
    config = config.format(recipe=recipe, base=recipe.split("base=")[1].split(",")[0])
    done = subprocess.run(
        [sys.executable, "-m", "vlvm_jax.convert", "export", f"--config={config}", f"{tmp_path}/out"], cwd=ROOT,
        env=environment(data_root), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
