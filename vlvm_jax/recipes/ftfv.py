"""FTFV-LVLM (arXiv 2406.08024): an image LVLM made a video LVLM with a weighted token sampler and staged training.

    --config=ftfv[:preset[,key=value...]]

Presets: `tiny` (default; embedded data, any machine), `llava-1.5-7b`, `vicuna-7b` (CLIP-L/14-224 and
Vicuna-7B, a connector of its own), `smolvlm2-256m`, `internvl3-1b`, `internvl3-8b` and `internvl3.5-4b`.

Keys:
  base             a checkpoint to start from in the preset's place: a hub id, a directory in Hugging Face format, an
                   import, a run. All sizes are taken from it.
  video_strategy   where video enters: S1 stage instruct (default), S2 pretrain and instruct, S3 a stage after instruct.
  video_fraction   share of the video records used, in (0, 1].
  sampler          reading of the weighted token sampler (vlvm_jax/models/adapters/_samplers.py), or a control.
  tokens           K, tokens per video frame.
  frames           T, frames per clip.
  length           L, tokens per sample (not tiny).
  lora             rank of LoRA in the decoder; 0 (default) trains all of it. Alpha is twice the rank.
  stages           which stages to train, joined by + (default: all), as stages=instruct. The others' data is not
                   needed; the run says what each stage then starts from.
  scale            multiplies every stage's steps (tiny).
  seed, data       seed; root folder of the annotation files (not tiny).

What the paper's public text says, what is borrowed from neighbours and what is our reading: docs/ftfv.md.
"""

from typing import Any

from ml_collections import ConfigDict

from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._common import (
    CLIP_TEXT,
    EMBEDDED,
    IMAGE_CAPTION,
    PATCHES,
    entry,
    full_run,
    full_stage,
    llava_instruct,
    llava_pretrain,
    parse_arg,
    tiny_run,
    tiny_stage,
)

PRESETS = ("tiny", "llava-1.5-7b", "vicuna-7b", "smolvlm2-256m", *bases.INTERNVL3)
STRATEGIES = ("S1", "S2", "S3")

ALIGN = {"adapter/connector/**": 1e-3}
LAST_THREE = "encoder/layers/[-3:]/**"
TEMPORAL_RATE = 3e-2  # of a vector a frame that begins at zero beside tokens as large as words


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(
        arg,
        PRESETS,
        base="",
        video_strategy="S1",
        video_fraction=0.0,
        sampler="soft_slots",
        tokens=0,
        frames=8,
        length=2048,
        lora=0,
        scale=1.0,
        seed=0,
        data="data",
        stages="",
    )
    if options.video_strategy not in STRATEGIES:
        raise InputError(f"--config: video_strategy={options.video_strategy!r}; there are {', '.join(STRATEGIES)}")
    if not 0 <= options.video_fraction <= 1:
        raise InputError(f"--config: video_fraction={options.video_fraction} is not in (0, 1]")
    if preset == "tiny" and options.base:
        raise InputError(f"--config: base={options.base!r} needs one of the presets {', '.join(PRESETS[1:])}, not tiny")
    return tiny(options) if preset == "tiny" else full(preset, options)


def tiny(options: Any) -> ConfigDict:
    """The recipe's stages in minutes, from the image model in the package over the embedded data.

    That model has been through what `align` and `pretrain` teach; both are short here.
    """
    fraction, strategy = options.video_fraction or 1.0, options.video_strategy
    video = entry(f"{EMBEDDED}/train_clips.json", fraction=fraction)
    video_captions = {**video, "path": f"{EMBEDDED}/train_clips_captions.json"}
    images = entry(f"{EMBEDDED}/train_arrangements.json")
    captions = entry(f"{EMBEDDED}/train_arrangements_captions.json")

    def stage(name, data, steps, trainable, lr, **kwargs):
        rates = dict.fromkeys(trainable, lr)
        if "adapter/**" in trainable:
            rates["adapter/temporal_embedding"] = TEMPORAL_RATE
        return tiny_stage(options, name, data, steps, rates, **kwargs)

    tokens = options.tokens or (PATCHES if options.sampler == "none" else 9)
    visual = max(options.frames * tokens, PATCHES)
    clips = {"frames": options.frames, "visual": visual}
    connector = "adapter/connector/**"
    stages = [stage("align", [captions], 40, [connector], 5e-4, rows=16, text=IMAGE_CAPTION)]
    if strategy == "S2":
        stages.append(
            stage("pretrain", [images, captions, video_captions], 60, [LAST_THREE, "adapter/**"], 2e-4, **clips)
        )
    else:
        stages.append(stage("pretrain", [images, captions], 40, [LAST_THREE, connector], 2e-4))
    if strategy == "S3":
        stages.append(stage("instruct", [images], 100, [connector, "decoder/**"], 5e-4))
    mixed = [video, {**images, "fraction": 0.1}]
    name = "video" if strategy == "S3" else "instruct"
    stages.append(stage(name, mixed, 600, ["adapter/**", "decoder/**"], 1e-3, text=CLIP_TEXT, **clips))
    sampler = {
        "reading": options.sampler,
        "num_tokens": tokens,
        "prior": "learned_grid",
        "temporal_embed": "learned",
    }
    return tiny_run(
        f"ftfv-tiny-{strategy}",
        adapter={"name": "weighted_sampler", "options": sampler},
        stages=stages,
        frames=options.frames,
        visual=visual,
        seed=options.seed,
        only=options.stages,
    )


def full(preset: str, options: Any) -> ConfigDict:
    """The recipe at real size, on data in the LLaVA format under `data`.

    Sourced: the stages and what they freeze, Vicuna-7B. Borrowed (LLaMA-VID's scripts): rates 1e-3 and 2e-5, batches
    256 and 128, warm-up 3%, cosine, length 2048. Inferred: the rates of `pretrain`, T=8, K=32, and which sets a 10%
    share is taken of. LoRA's rate 2e-4 is LLaVA-1.5's.
    """
    root, strategy = options.data, options.video_strategy
    fraction = options.video_fraction or 0.1
    align, images = llava_pretrain(root), llava_instruct(root)
    video_text = entry(f"{root}/Valley/valley.json", media_root=f"{root}/Valley/videos", fraction=fraction)
    video = entry(f"{root}/VideoChatGPT/videochatgpt.json", media_root=f"{root}/VideoChatGPT/videos", fraction=fraction)

    def stage(name, data, rows, trainable, **kwargs):
        return full_stage(options, name, data, rows, trainable, length=options.length, **kwargs)

    clips = {"frames": options.frames}
    decoder = {"decoder/**/lora_*": 2e-4} if options.lora else {"decoder/**": 2e-5}
    everything = {"adapter/**": 2e-5, **decoder}
    stages = [stage("align", [align], 256, ALIGN)]
    if strategy == "S2":
        stages.append(stage("pretrain", [images, video_text], 256, {LAST_THREE: 1e-5, "adapter/**": 1e-4}, **clips))
    else:
        stages.append(stage("pretrain", [images], 256, {LAST_THREE: 1e-5, "adapter/connector/**": 1e-4}))
    if strategy == "S3":
        stages.append(stage("instruct", [images], 128, {"adapter/connector/**": 2e-5, **decoder}))
        stages.append(stage("video", [{**images, "fraction": 0.1}, video], 128, everything, **clips))
    else:
        stages.append(stage("instruct", [images, video], 128, everything, **clips))
    sampler = {"reading": options.sampler, "num_tokens": options.tokens or 32}
    return full_run(
        f"ftfv-{preset}-{strategy}",
        bases.base(preset, options.base),
        adapter={"name": "weighted_sampler", "options": sampler},
        stages=stages,
        seed=options.seed,
        only=options.stages,
        lora=options.lora,
    )
