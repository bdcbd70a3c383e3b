"""Every adapter over every family: it fills as many tokens as it says, or one line names the setting that does not fit.

And training: each adapter over one family, each family with one adapter.
"""

import json
import pkgutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from support import families, guided, hf
from support.small import DATA

from vlvm_jax.config import Config, ModelConfig, build, to_json
from vlvm_jax.data.embedded import words
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import final
from vlvm_jax.inference.loading import load
from vlvm_jax.inference.requests import Request
from vlvm_jax.models import adapters
from vlvm_jax.models.adapters import build_adapter
from vlvm_jax.models.vision import VisionTower
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.weights.sources import open_source

MODELS = (
    "llava clip llama", "llava siglip qwen3 tied", "llava_next odd-grid llama gqa1", "llava_next_video average",
    "llava_onevision odd-grid shrink", "smolvlm remainder tied", "idefics3 rounded-positions", "internvl qwen2",
    "internvl qwen3 tied gqa1",
)  # fmt: skip
# What the checkpoints here are too small for by default, and the CLIP that one of them needs.
CLIP = guided.CLIP | {"vision": guided.VISION | {"image_size": 16, "patch_size": 4}}
OPTIONS: dict[str, dict[str, Any]] = {
    "weighted_sampler": {"num_tokens": 3},
    "spatiotemporal": {"temporal": "linear"},
    "slow_fast": {"slow_path": {"num_frames": 2}, "fast_path": {"grid": [2, 2]}},
    "prompt_guided": {
        "prompt_path": {"num_frames": 1},
        "uniform_path": {"num_frames": 1},
        "fast_path": {"grid": [2, 2]},
        "clip": CLIP,
    },
}  # fmt: skip
REFUSED = (  # options for which a connector has to map single features
    ("spatiotemporal", "temporal", "same"),
    ("frames", "pool_place", "before_connector"),
    ("weighted_sampler", "placement", "before_connector"),
)
FRAMES = 3


def found() -> list[str]:
    """By their place; `patch_words` is for towers that learn without a decoder."""
    names = [module.name for module in pkgutil.iter_modules(adapters.__path__)]
    return [name for name in names if not name.startswith("_") and name not in ("base", "patch_words")]


def config_of(folder: Path, adapter: str, options: dict[str, Any]) -> ModelConfig:
    source = open_source(str(folder), "base")
    assert source.vision and source.decoder and source.connector
    return build(
        ModelConfig,
        {
            "vision": to_json(source.vision),
            "decoder": to_json(source.decoder),
            "adapter": {"name": adapter, "options": options, "connector": to_json(source.connector)},
            "dtype": "float32",
            "init_from": str(folder),
        },
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("adapter", found())
def test_it_fills_as_many_tokens_as_it_says(checkpoints, adapter, name):
    """An image and a clip in one row."""
    config = config_of(checkpoints(name), adapter, OPTIONS.get(adapter, {}))
    made = hf.fill(lambda: build_adapter(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    tower = hf.fill(lambda: VisionTower(config.vision, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    expected = made.num_image_tokens() + made.num_video_tokens(FRAMES)
    layout = guided.clips([FRAMES], before=1, room=expected)
    size = config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (1, FRAMES + 1, size, size, 3), dtype=np.uint8)
    features = guided.encode_media(made, tower, pixels)
    out = guided.call(made, features, layout, guided.question() if made.needs_prompt else None)
    assert int(out.valid.sum()) == expected > 0
    assert out.tokens.shape[-1] == config.decoder.hidden_size and bool(jnp.isfinite(out.tokens).all())


@pytest.mark.parametrize(("adapter", "option", "value"), REFUSED)
@pytest.mark.parametrize("name", ["llava clip llama", "smolvlm remainder tied", "internvl qwen3 tied gqa1"])
def test_what_makes_no_sense_is_refused_in_one_line(checkpoints, name, adapter, option, value):
    """Connectors that join patches map no single feature."""
    pool = {"pool": "average"} if adapter == "frames" else {}
    config = config_of(checkpoints(name), adapter, {option: value, **pool})

    def make():
        return nnx.eval_shape(lambda: build_adapter(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))

    if not config.adapter.connector.shuffles:
        assert make().num_video_tokens(FRAMES) > 0
        return
    with pytest.raises(InputError, match=rf"config\.model\.adapter\.options\.{option}: ") as caught:
        make()
    assert "\n" not in str(caught.value)


TRAINED = {
    "internvl sampled": ("internvl", families.internvit(attention_bias=True), families.qwen2, "weighted_sampler"),
    "internvl3.5 with a temporal branch": ("internvl", families.internvit(), families.qwen3, "spatiotemporal"),
    "qwen3 on two paths": ("llava", families.siglip(), families.qwen3, "slow_fast"),
    "onevision pooled as llava-video": ("llava_onevision", families.siglip(), families.qwen2, "frames"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_it_trains_and_answers(case, data_root, monkeypatch, tmp_path):
    family, tower, decoder, adapter = TRAINED[case]
    size = words.ROOM + 6
    placeholder = "image_token_index" if family in families.LLAVA_FAMILIES else "image_token_id"
    families.vlm(family, tower, decoder(vocab_size=size), **{placeholder: size - 1}).save_pretrained(tmp_path / "base")
    words.tokenizer().save(str(tmp_path / "base" / "tokenizer.json"))
    options = OPTIONS.get(adapter, {"pool": "average", "newline": "all", "newline_place": "row"})
    stage = {
        "name": "video", "data": [{"path": f"{{embedded}}/train_{kind}.json"} for kind in ("clips", "arrangements")],
        "steps": 2, "batch_size": 8, "frames": 2 * FRAMES, "video_frames": FRAMES, "length": 288, "log_every": 1,
        "trainable": {"adapter/**": 0.01, "decoder/**": 0.01}, "schedule": "constant",
        "pack": not adapters._class(adapter).one_clip,
    }  # fmt: skip
    data = {"embedded": DATA, "tokenizer": "{decoder}", "chat_template": "bare", "workers": 0}
    model = to_json(config_of(tmp_path / "base", adapter, options))
    config = build(Config, {"name": "matrix", "model": model, "data": data, "stages": [stage], "tensorboard": False})
    monkeypatch.setenv("VLVM_JAX_DATA", str(data_root))
    run = tmp_path / "run"
    summary = stages.run(config, epath.Path(run), StopSignal(), final.evaluate)
    assert summary["stages"][0]["compilations"] == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, second = (line["loss"] for line in lines if "loss" in line)
    assert second < first and np.isfinite(second)
    clip = next(data_root.rglob("heldout_clips/*.mp4"))
    (answer,) = load(str(run)).answer([Request("1", (("video", str(clip)),), "how many ?")])
    tokens = nnx.eval_shape(lambda: build_adapter(config.model, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    assert answer.text is not None and answer.visual_tokens == tokens.num_video_tokens(FRAMES)
