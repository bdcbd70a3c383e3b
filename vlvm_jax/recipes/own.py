"""Your own clips: one stage that fine-tunes a checkpoint, every frame's tokens to the decoder as they are.

    --config=own:preset[,key=value...]

Presets: `smolvlm2-256m`, `llava-1.5-7b` (576 tokens a frame: take pool=2). What can be a source: docs/your_data.md.

Keys:
  data             required to train: an annotation file, a folder of shards, a mixture's YAML ...; `+` between several.
  base             a checkpoint in the preset's place: a hub id, a directory in Hugging Face format, an import, a run.
  frames           T, frames per clip.
  length           L, tokens per sample.
  pool             side of the squares of frame tokens that are averaged; 0 (default) keeps all.
  rows             samples per step.
  epochs           times through the data.
  rate             learning rate; 0 (default) is 2e-5, with LoRA 2e-4.
  lora             rank of LoRA in the decoder; 0 (default) trains all of it. Alpha is twice the rank.
  seed             of the order.
"""

from typing import Any

from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._common import complete, entry, parse_arg

PRESETS = ("smolvlm2-256m", "llava-1.5-7b")


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(
        arg, PRESETS, data="", base="", frames=8, length=2048, pool=0, rows=8, epochs=1.0, rate=0.0, lora=0, seed=0
    )
    base = bases.base(preset, options.base)
    model = dict(base["model"])
    pool = {"pool": "average", "pool_stride": options.pool} if options.pool else {}
    adapter = {"name": "frames", "connector": model.pop("connector"), "options": pool}
    if options.lora:
        model["lora"] = {"rank": options.lora, "alpha": 2.0 * options.lora}
    rate = options.rate or (2e-4 if options.lora else 2e-5)
    stage = {
        "name": "own", "data": [entry(path) for path in options.data.split("+")], "epochs": options.epochs,
        "batch_size": options.rows, "frames": options.frames, "length": options.length, "pack": False,
        "trainable": {"adapter/**": 2e-5, ("decoder/**/lora_*" if options.lora else "decoder/**"): rate},
        "warmup_ratio": 0.03, "loss_chunks": 8, "frozen_dtype": "bfloat16", "seed": options.seed,
    }  # fmt: skip
    return complete(
        {
            "name": f"own-{preset}",
            "model": {
                **model, "adapter": adapter, "dtype": "bfloat16", "vision_remat": "full", "decoder_remat": "full",
            },
            "data": base["data"],
            "stages": [stage],
            "mesh": {"fsdp": -1, "data": 1},
            "checkpoint": {"save_every": 500, "keep": 2},
            "seed": options.seed,
        }
    )  # fmt: skip
