"""FTFV-LVLM (arXiv 2406.08024): an image LVLM made a video LVLM with a weighted token sampler and staged training.

    --config=configs/ftfv.py[:preset[,key=value...]]

Presets: `tiny` (default; embedded data, from scratch, any machine), `llava-1.5-7b`, `vicuna-7b` (CLIP-L/14-224 and
Vicuna-7B, a connector of its own) and `smolvlm2-256m`.

Keys:
  base             a checkpoint to start from in the preset's place: a hub id, a directory in Hugging Face format, an
                   import, a run. All sizes are taken from it.
  video_strategy   where video enters: S1 stage instruct (default), S2 pretrain and instruct, S3 a stage after instruct.
  video_fraction   share of the video records used, in (0, 1].
  sampler          reading of the weighted token sampler (vlvm_jax/models/samplers.py), or a control.
  tokens           K, tokens per video frame.
  frames           T, frames per clip.
  length           L, tokens per sample (not tiny).
  lora             rank of LoRA in the decoder; 0 (default) trains all of it. Alpha is twice the rank.
  scale            multiplies every stage's steps (tiny).
  seed, data       seed; root folder of the annotation files (not tiny).

What the paper's public text says, what is borrowed from neighbours and what is our reading: docs/ftfv.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import bases
from configs.common import complete, entry, parse_arg, tiny_model
from vlvm_jax.errors import InputError

PRESETS = ("tiny", "llava-1.5-7b", "vicuna-7b", "smolvlm2-256m")
STRATEGIES = ("S1", "S2", "S3")

ALIGN = {"adapter/connector/**": 1e-3}
LAST_THREE = "encoder/layers/[-3:]/**"


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(
        arg, PRESETS, base="", video_strategy="S1", video_fraction=0.0, sampler="soft_slots", tokens=0, frames=8,
        length=2048, lora=0, scale=1.0, seed=0, data="data",
    )  # fmt: skip
    if options.video_strategy not in STRATEGIES:
        raise InputError(f"--config: video_strategy={options.video_strategy!r}; there are {', '.join(STRATEGIES)}")
    if not 0 <= options.video_fraction <= 1:
        raise InputError(f"--config: video_fraction={options.video_fraction} is not in (0, 1]")
    if preset == "tiny" and options.base:
        raise InputError(f"--config: base={options.base!r} needs one of the presets {', '.join(PRESETS[1:])}, not tiny")
    return tiny(options) if preset == "tiny" else full(preset, options)


def tiny(options: Any) -> ConfigDict:
    """Everything from scratch in minutes: the recipe's stages over the embedded data.

    The recipe starts from a pretrained tower and LLM. Here a first stage, `base`, stands in for them: it trains tower,
    adapter and decoder on images. The connector is then thrown away, and the three stages follow as they would between
    a finished tower and a finished decoder.
    """
    root = "{embedded}"
    fraction = options.video_fraction or 1.0
    video = entry(f"{root}/train_videos.json", fraction=fraction)
    video_captions = {**video, "path": f"{root}/train_videos_captions.json"}
    images = entry(f"{root}/train_images.json")
    captions = entry(f"{root}/train_images_captions.json")

    def stage(name, data, steps, trainable, *, clips, lr, rows=32, **kwargs):
        return {
            "name": name, "data": data, "steps": max(1, round(steps * options.scale)), "batch_size": rows,
            "frames": options.frames if clips else 1, "length": 96 if clips else 64,
            "trainable": dict.fromkeys(trainable, lr), "warmup_ratio": 0.05, "beta2": 0.98,
            "weight_decay": 0.01, "final_lr_ratio": 0.02, "seed": options.seed, **kwargs,
        }  # fmt: skip

    strategy = options.video_strategy
    pretrain = [LAST_THREE, "adapter/**" if strategy == "S2" else "adapter/connector/**"]
    pretrain_data = [images, captions]
    if strategy == "S2":
        pretrain_data.append(video_captions)
    stages = [
        stage(
            "base", [captions, images], 900, ["encoder/**", "adapter/connector/**", "decoder/**"], clips=False, lr=1e-3
        ),
        stage("align", [captions], 300, ALIGN, clips=False, lr=2e-3, reset=["adapter/connector/**"]),
        stage("pretrain", pretrain_data, 300, pretrain, clips=strategy == "S2", lr=5e-4),
    ]
    instruct = ["adapter/**", "decoder/**"]
    if strategy == "S3":
        stages.append(stage("instruct", [images], 800, ["adapter/connector/**", "decoder/**"], clips=False, lr=1e-3))
        mixed = [video, {**video_captions, "fraction": 0.4 * fraction}, {**images, "fraction": 0.05}]
        stages.append(stage("video", mixed, 2800, instruct, clips=True, lr=1e-3, rows=16))
    else:
        mixed = [video, {**video_captions, "fraction": 0.4 * fraction}, {**images, "fraction": 0.05}]
        stages.append(stage("instruct", mixed, 2800, instruct, clips=True, lr=1e-3, rows=16))
    model = tiny_model(
        adapter={
            "name": "weighted_sampler",
            "options": {
                "reading": options.sampler, "num_tokens": options.tokens or 4, "prior": "learned_grid",
                "prior_sigma": 0.6,
            },
        },
    )  # fmt: skip
    held_out = {"batch_size": 32, "frames": options.frames, "length": 64}
    return complete(
        {
            "name": f"ftfv-tiny-{strategy}",
            "model": model,
            "data": {
                "embedded": {
                    "train_images": 12000,
                    "train_videos": 4000,
                    "heldout_images": 200,
                    "heldout_videos": 240,
                    "seed": 0,
                },
                "tokenizer": f"{root}/tokenizer.json",
                "chat_template": "bare",
            },
            "stages": stages,
            "evals": [{"name": "videos", "data": [entry(f"{root}/heldout_videos.json")], **held_out}],
            "checkpoint": {"save_every": 200, "keep": 2},
            "seed": options.seed,
            "notes": [
                "`base` stands in for the pretrained tower and LLM that the recipe starts from; it is not the paper's."
            ],
        }
    )


def full(preset: str, options: Any) -> ConfigDict:
    """The recipe at real size, on data in the LLaVA format under `data`.

    Sourced: the stages and what they freeze, Vicuna-7B. Borrowed (LLaMA-VID's scripts): rates 1e-3 and 2e-5, batches
    256 and 128, warm-up 3%, cosine, length 2048. Inferred: the rates of `pretrain`, T=8, K=32, and which sets a 10%
    share is taken of. LoRA's rate 2e-4 is LLaVA-1.5's.
    """
    base = bases.base(preset, options.base)
    root = options.data
    fraction = options.video_fraction or 0.1
    align = entry(f"{root}/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", media_root=f"{root}/LLaVA-Pretrain/images")
    images = entry(f"{root}/LLaVA-Instruct/llava_v1_5_mix665k.json", media_root=f"{root}/LLaVA-Instruct/images")
    video_text = entry(f"{root}/Valley/valley.json", media_root=f"{root}/Valley/videos", fraction=fraction)
    video = entry(f"{root}/VideoChatGPT/videochatgpt.json", media_root=f"{root}/VideoChatGPT/videos", fraction=fraction)

    def stage(name, data, rows, trainable, *, clips):
        return {
            "name": name, "data": data, "epochs": 1.0, "batch_size": rows, "frames": options.frames if clips else 1,
            "length": options.length, "pack": False, "trainable": trainable, "warmup_ratio": 0.03, "loss_chunks": 8,
            "frozen_dtype": "bfloat16", "seed": options.seed,
        }  # fmt: skip

    strategy = options.video_strategy
    decoder = {"decoder/**/lora_*": 2e-4} if options.lora else {"decoder/**": 2e-5}
    last_three = {LAST_THREE: 1e-5, "adapter/**" if strategy == "S2" else "adapter/connector/**": 1e-4}
    stages = [
        stage("align", [align], 256, ALIGN, clips=False),
        stage(
            "pretrain", [images, video_text] if strategy == "S2" else [images], 256, last_three, clips=strategy == "S2"
        ),
    ]
    everything = {"adapter/**": 2e-5, **decoder}
    if strategy == "S3":
        stages.append(stage("instruct", [images], 128, {"adapter/connector/**": 2e-5, **decoder}, clips=False))
        stages.append(stage("video", [{**images, "fraction": 0.1}, video], 128, everything, clips=True))
    else:
        stages.append(stage("instruct", [images, video], 128, everything, clips=True))
    model = dict(base["model"])
    adapter = {
        "name": "weighted_sampler",
        "connector": model.pop("connector"),
        "options": {"reading": options.sampler, "num_tokens": options.tokens or 32},
    }
    if options.lora:
        model["lora"] = {"rank": options.lora, "alpha": 2.0 * options.lora}
    return complete(
        {
            "name": f"ftfv-{preset}-{strategy}",
            "model": {
                **model, "adapter": adapter, "dtype": "bfloat16", "vision_remat": "full", "decoder_remat": "full",
            },
            "data": base["data"],
            "stages": stages,
            "mesh": {"fsdp": -1, "data": 1},
            "checkpoint": {"save_every": 500, "keep": 2},
            "seed": options.seed,
        }
    )  # fmt: skip
