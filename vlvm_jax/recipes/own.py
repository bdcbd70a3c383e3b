"""Your own clips: one stage that fine-tunes a checkpoint, every frame's tokens to the decoder as they are.

    --config=own:preset[,key=value...]

Presets: `smolvlm2-256m`, `llava-1.5-7b` (576 tokens a frame: take pool=2), `internvl3-1b`, `internvl3-8b`,
`internvl3.5-4b` (256 a frame), `llava-video-7b` (182 a frame, pooled as it was trained). What can be a source:
docs/your_data.md.

Keys:
  data             required to train: an annotation file, a folder of shards, a mixture's YAML ...; `+` between several.
  base             a checkpoint in the preset's place: a hub id, a directory in Hugging Face format, an import, a run.
  frames           T, frames per clip.
  length           L, tokens per sample.
  pool             side of the squares of frame tokens that are averaged; 0 (default) does with frames what the preset's
                   checkpoint does: of most it keeps all.
  rows             samples per step.
  epochs           times through the data.
  rate             learning rate; 0 (default) is 2e-5, with LoRA 2e-4.
  lora             rank of LoRA in the decoder; 0 (default) trains all of it. Alpha is twice the rank.
  validation       share of the clips that are set aside (default 0.05, at least 4 of them; 0 for none): what they say
                   is not learned but asked ten times, and the checkpoint with the lowest loss on it is the result.
  seed             of the order.
"""

from typing import Any

from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._common import entry, full_run, full_stage, parse_arg

PRESETS = ("smolvlm2-256m", "llava-1.5-7b", *bases.INTERNVL3, "llava-video-7b")
LEAST = 4  # clips of a source that are set aside


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(
        arg,
        PRESETS,
        data="",
        base="",
        frames=8,
        length=2048,
        pool=0,
        rows=8,
        epochs=1.0,
        rate=0.0,
        lora=0,
        validation=0.05,
        seed=0,
    )
    if not 0 <= options.validation <= 0.5:
        raise InputError(f"--config: validation={options.validation} is not in [0, 0.5]")
    aside = {"held_out": options.validation, "held_out_clips": LEAST} if options.validation else {}
    paths = options.data.split("+")
    learned, rate = ("decoder/**/lora_*", 2e-4) if options.lora else ("decoder/**", 2e-5)
    stage = full_stage(
        options,
        "own",
        [entry(path, **aside) for path in paths],
        options.rows,
        {"adapter/**": 2e-5, learned: options.rate or rate},
        epochs=options.epochs,
        frames=options.frames,
        length=options.length,
        **({"validation": [entry(path, **aside, side="held_out") for path in paths], "best": "loss"} if aside else {}),
    )
    base = bases.base(preset, options.base)
    pooled = {"pool": "average", "pool_stride": options.pool}
    return full_run(
        f"own-{preset}",
        base,
        adapter={"name": "frames", "options": pooled if options.pool else dict(base.frame_options)},
        stages=[stage],
        seed=options.seed,
        lora=options.lora,
    )
