"""The whole way: a LLaVA checkpoint, trained here by the FTFV recipe, answered from in PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from support.hf import randomize
from support.hf_checkpoints import checkpoint
from support.recipes import ROOT, environment

from vlvm_jax.data.sample.processor import load_processor

pytestmark = pytest.mark.slow

QUESTION = "which way does it move ?"


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """A tiny LLaVA-1.5 with tokenizer, template and processor, as on the hub."""
    folder = checkpoint(tmp_path_factory.mktemp("llava"), "llava", "llama_like")
    config = transformers.AutoConfig.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    config.image_token_index = words.convert_tokens_to_ids("<image>")
    config.vision_config.num_hidden_layers = 4
    model = transformers.LlavaForConditionalGeneration(config)
    randomize(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, llava, recipe_data, data_root) -> tuple[Path, Path]:
    """(run, export) of the recipe over the checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    stages = [f"--config.stages[{i}].{key}" for i in range(3) for key in ("batch_size=8", "frozen_dtype=float32")]
    recipe = f"llava-1.5-7b,base={llava},data={recipe_data},tokens=4,frames=4,length=256,video_fraction=1"
    train = [
        "-m", "vlvm_jax.train", f"--config=configs/ftfv.py:{recipe}", f"--workdir={folder}/run", *stages,
        "--config.data.workers=0", "--config.model.dtype=float32", "--config.tensorboard=False",
    ]  # fmt: skip
    call(train, data_root)
    output = call(["-m", "vlvm_jax.convert", "export", f"{folder}/run", f"{folder}/export"], data_root)
    assert "rung 4" in output and "greedy answers equal" in output
    return folder / "run", folder / "export"


def call(arguments: list[str], data_root: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(data_root) | variables, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_every_stage_trained_from_the_checkpoint(exported):
    summary = json.loads((exported[0] / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["align", "pretrain", "instruct"]
    assert all(stage["compilations"] == 1 and stage["steps"] >= 2 for stage in summary["stages"])
    assert summary["stages"][2]["visual_tokens_per_sample"] == {"image": 16, "video": 16}


def test_parts_that_never_trained_are_the_checkpoints(exported, llava):
    """The embedding of the tower, bit for bit, after three stages and two conversions."""
    from vlvm_jax.weights.sources import open_source

    ours, theirs = open_source(str(exported[0]), "run"), open_source(str(llava), "base")
    path = "encoder/position_embedding"
    import jax

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {path: jax.ShapeDtypeStruct(ours.shapes[path].shape, np.float32, sharding=device)}
    assert np.array_equal(ours.load(wanted)[path], theirs.load(wanted)[path])


ANSWERS = """
import sys
import numpy as np, torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
folder, clips = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
answers, logits = [], []
for clip in np.load(clips):
    inputs = model.prepare_inputs(tokenizer, PROMPT, videos=[clip])
    ids = inputs["input_ids"][0]
    with torch.no_grad():
        logits.append(model(**inputs).logits[0].numpy())
    answers.append(model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, len(ids):])
assert "jax" not in sys.modules and "vlvm_jax" not in sys.modules
np.savez("results.npz", ids=ids, answers=torch.stack(answers), logits=np.stack(logits))
"""


def test_a_fresh_process_with_torch_alone_answers_the_same(exported, llava, recipe_data, data_root, tmp_path):
    run, export = exported
    processor = load_processor(str(llava))
    records = json.loads((recipe_data / "VideoChatGPT/videochatgpt.json").read_text())[:3]
    folder = recipe_data / "VideoChatGPT/videos"
    clips = np.stack([processor.read_clip(str(folder / record["video"]), 4).frames for record in records])
    np.save(tmp_path / "clips.npy", clips)
    prompt = f"USER: <video>\n{QUESTION} ASSISTANT:"
    script = tmp_path / "answers.py"
    script.write_text(ANSWERS.replace("PROMPT", repr(prompt)))
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(export), str(tmp_path / "clips.npy")], cwd=tmp_path,
        env={**os.environ, **home}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = np.load(tmp_path / "results.npz")
    answers, logits = ours(run, clips, theirs["ids"])
    np.testing.assert_array_equal(theirs["answers"], answers)
    assert np.abs(logits).max() > 0.5, "nothing to compare"
    np.testing.assert_allclose(theirs["logits"], logits, atol=1e-4, rtol=0)


def ours(run: Path, clips: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy answers of the trained parameters here and logits of every position, for the same token ids."""
    import jax
    import jax.numpy as jnp

    from vlvm_jax.models import decoding
    from vlvm_jax.models import params as params_lib
    from vlvm_jax.models.batch import Batch
    from vlvm_jax.models.params import Model
    from vlvm_jax.weights.sources import Stored, open_source

    source = open_source(str(run), "run")
    assert isinstance(source, Stored) and source.config is not None
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(a.shape, np.float32, sharding=device) for p, a in source.shapes.items()}
    params = params_lib.split(source.load(wanted), {})
    model = Model(source.config.model)
    greedy = jax.jit(lambda params, batch: decoding.generate(model.bind(params), batch, 12))

    @jax.jit
    def forward(params, batch):
        bound = model.bind(params)
        return bound.decoder.logits(bound(batch)[0])

    places = transformers.AutoTokenizer.from_pretrained(run / "hf").convert_tokens_to_ids("<video>")
    rows = jnp.broadcast_to(ids, (len(clips), len(ids)))
    marked = rows == places
    assert (marked.sum(1) == 4 * 4).all()
    batch = Batch(
        frames=jnp.asarray(clips),
        media=jnp.ones((len(clips), 4), jnp.int32),
        is_video=jnp.ones((len(clips), 4), bool),
        token_ids=jnp.where(marked, 0, rows),
        media_mask=marked,
        positions=jnp.broadcast_to(jnp.arange(len(ids)), rows.shape),
        segment_ids=jnp.ones_like(rows),
        loss_mask=jnp.zeros_like(marked),
    )
    with jax.default_matmul_precision("highest"):
        answers, _ = greedy(params, batch)
        return np.asarray(answers), np.asarray(forward(params, batch))


def test_the_export_is_asked_here_as_the_run_is(exported, recipe_data, data_root, tmp_path):
    """It holds how frames are taken and prepared, the chat template and the length of answers; so does its import."""
    run, export = exported
    call(["-m", "vlvm_jax.convert", "import", str(export), f"{tmp_path}/imported"], data_root)
    clip = next((recipe_data / "VideoChatGPT/videos").iterdir())
    answers = []
    for asked in (run, export, tmp_path / "imported"):
        question = [f"--checkpoint={asked}", f"--video={clip}", f"--prompt={QUESTION}", "--max_new_tokens=6"]
        told = json.loads(call(["-m", "vlvm_jax.generate", *question, "--json"], data_root))
        answers.append({key: value for key, value in told.items() if not key.startswith("seconds_")})
    assert answers[1] == answers[0] and answers[2] == answers[0]
