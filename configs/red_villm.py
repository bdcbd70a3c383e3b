"""RED-VILLM (arXiv 2404.11865): a temporal branch plugged in beside an image model's connector.

    --config=configs/red_villm.py[:preset[,key=value...]]

Presets: `tiny` (default; embedded data, an image model trained from scratch first, any machine), `llava-1.5-7b`,
`llava-v1-7b` (Video-ChatGPT's setting: 224 pixels, one affine map) and `qwen2-7b` (a resampler connector, aligned from
the start, and a decoder that speaks Chinese).

Keys:
  base             a checkpoint to start from in the preset's place: a hub id, a directory in Hugging Face format, an
                   import, a run. All sizes are taken from it.
  train            what learns from clips: aligners (default; of tiny: decoder), lora (with them), decoder (with them).
  init             of the temporal connector: copy (default) of the image connector, or random.
  temporal         same (default), linear or shared; see vlvm_jax/models/adapters/spatiotemporal.py.
  join             time_first (default), space_first, add, space_only, time_only.
  video_fraction   share of the video records used, in (0, 1].
  language         of the video instructions: en (default), zh, both.
  frames           T, frames per clip.
  rank             of LoRA. Alpha is twice the rank.
  scale            multiplies every stage's steps (tiny).
  seed, data       seed; root folder of the annotation files (not tiny).

What public text says of the paper, what is borrowed from neighbours and what is our reading: docs/red_villm.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import bases
from configs.common import complete, entry, parse_arg, tiny_model
from vlvm_jax.errors import InputError

PRESETS = ("tiny", "llava-1.5-7b", "llava-v1-7b", "qwen2-7b")
TRAIN = ("aligners", "lora", "decoder")
FILES: dict[str, tuple[str, ...]] = {"en": ("VideoInstruct100K.json",), "zh": ("VideoInstruct100K_zh.json",)}
FILES["both"] = (*FILES["en"], *FILES["zh"])
ALIGNERS = "adapter/**"


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(
        arg, PRESETS, base="", train="", init="copy", temporal="same", join="time_first", video_fraction=1.0,
        language="en", frames=0, rank=64, scale=1.0, seed=0, data="data",
    )  # fmt: skip
    for key, choices in {"train": ("", *TRAIN), "init": ("copy", "random"), "language": tuple(FILES)}.items():
        if options[key] not in choices:
            raise InputError(f"--config: {key}={options[key]!r}; there are {', '.join(filter(None, choices))}")
    if not 0 < options.video_fraction <= 1:
        raise InputError(f"--config: video_fraction={options.video_fraction} is not in (0, 1]")
    if preset == "tiny" and (options.base or options.train == "lora"):
        raise InputError(f"--config: base and train=lora need one of the presets {', '.join(PRESETS[1:])}, not tiny")
    return tiny(options) if preset == "tiny" else full(preset, options)


def tiny(options: Any) -> ConfigDict:
    """A stand-in for the whole system in minutes, over the embedded data.

    The system starts from an image model. Here the first stage makes one: tower, connector and decoder learn images.
    Then the temporal connector begins and clips are learned. The paper's decoder knows words of time and order before
    it sees a clip; this one has only read about single images, so by default it learns them with the aligners.
    """
    root, frames = "{embedded}", options.frames or 8
    images, captions = entry(f"{root}/train_images.json"), entry(f"{root}/train_images_captions.json")
    fraction = options.video_fraction
    videos = [
        entry(f"{root}/train_videos.json", fraction=fraction),
        entry(f"{root}/train_videos_captions.json", fraction=0.4 * fraction),
    ]

    def stage(name, data, steps, trainable, *, clips, rows, **kwargs):
        return {
            "name": name, "data": data, "steps": max(1, round(steps * options.scale)), "batch_size": rows,
            "frames": frames if clips else 1, "length": 96 if clips else 64,
            "trainable": dict.fromkeys(trainable, 1e-3), "warmup_ratio": 0.05, "beta2": 0.98, "weight_decay": 0.01,
            "final_lr_ratio": 0.02, "seed": options.seed, **kwargs,
        }  # fmt: skip

    whole = ["encoder/**", "adapter/connector/**", "decoder/**"]
    trained = [ALIGNERS] if options.train == "aligners" else [ALIGNERS, "decoder/**"]
    stages = [
        stage("image", [captions, images], 1200, whole, clips=False, rows=32),
        stage(
            "video", [*videos, {**images, "fraction": 0.05}], 2800, trained, clips=True, rows=16,
            copied=_copied(options),
        ),
    ]  # fmt: skip
    held_out = {"batch_size": 32, "frames": frames, "length": 64}
    return complete(
        {
            "name": "red-villm-tiny",
            "model": tiny_model(adapter=_adapter(options)),
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
            "notes": ["`image` makes the image model that the system starts from; it is not the paper's."],
        }
    )


def full(preset: str, options: Any) -> ConfigDict:
    """The system at real size, on Video-ChatGPT's instructions under `data`.

    Borrowed, as nothing is public: of Video-ChatGPT (aligners alone) rate 2e-5, batch 32, 3 epochs, warm-up 3%, cosine,
    length 2048, its frame rule; of LLaVA-1.5 the rate 2e-5, batch 128 and one epoch with the decoder; of Qwen-VL's LoRA
    rank 64, batch 128, rate 1e-5. T=100 is a survey's word. Alpha twice the rank is ours, as is all that is learned of
    the `qwen2-7b` preset's connector before clips: LLaVA-1.5's two image stages.
    """
    base = bases.base(preset, options.base)
    root, train = options.data, options.train or "aligners"
    aligned = preset != "qwen2-7b" or bool(options.base)
    model = dict(base["model"])
    adapter = {"connector": model.pop("connector"), **_adapter(options)}
    if train == "lora":
        model["lora"] = {"rank": options.rank, "alpha": 2.0 * options.rank}
    decoder = {"aligners": {}, "lora": {"decoder/**/lora_*": 1e-5}, "decoder": {"decoder/**": 2e-5}}[train]
    videos = [
        entry(
            f"{root}/VideoInstruct/{file}", media_root=f"{root}/VideoInstruct/videos", fraction=options.video_fraction
        )
        for file in FILES[options.language]
    ]

    def stage(name, data, rows, trainable, *, frames=1, epochs=1.0, **kwargs):
        return {
            "name": name, "data": data, "epochs": epochs, "batch_size": rows, "frames": frames, "length": 2048,
            "pack": False, "trainable": trainable, "warmup_ratio": 0.03, "loss_chunks": 8,
            "frozen_dtype": "bfloat16", "seed": options.seed, **kwargs,
        }  # fmt: skip

    stages = []
    if not aligned:
        captions = entry(
            f"{root}/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", media_root=f"{root}/LLaVA-Pretrain/images"
        )
        images = entry(f"{root}/LLaVA-Instruct/llava_v1_5_mix665k.json", media_root=f"{root}/LLaVA-Instruct/images")
        connector = "adapter/connector/**"
        learned = {"decoder/**/lora_*": 2e-4} if train == "lora" else {"decoder/**": 2e-5}
        stages += [
            stage("align", [captions], 256, {connector: 1e-3}),
            stage("images", [images], 128, {connector: 2e-5, **learned}),
        ]
    rows, epochs = (32, 3.0) if train == "aligners" else (128, 1.0)
    stages.append(
        stage(
            "video", videos, rows, {ALIGNERS: 2e-5, **decoder}, frames=options.frames or 100, epochs=epochs,
            copied=_copied(options),
        )
    )  # fmt: skip
    return complete(
        {
            "name": f"red-villm-{preset}-{train}",
            "model": {
                **model, "adapter": adapter, "dtype": "bfloat16",
                "vision_remat": "full", "decoder_remat": "full",
            },
            "data": {**base["data"], "frame_sampling": "video_chatgpt"},
            "stages": stages,
            "mesh": {"fsdp": -1, "data": 1},
            "checkpoint": {"save_every": 500, "keep": 2},
            "seed": options.seed,
        }
    )  # fmt: skip


def _adapter(options: Any) -> dict[str, Any]:
    return {"name": "spatiotemporal", "options": {"join": options.join, "temporal": options.temporal}}


def _copied(options: Any) -> dict[str, str]:
    """The temporal connector begins as a copy where there is one of the image connector's kind."""
    alike = options.temporal == "same" and options.init == "copy"
    return {"adapter/temporal_connector": "adapter/connector"} if alike else {}
