"""RED-VILLM (arXiv 2404.11865): a temporal branch plugged in beside an image model's connector.

    --config=red_villm[:preset[,key=value...]]

Presets: `tiny` (default; embedded data, any machine), `llava-1.5-7b`, `llava-v1-7b` (Video-ChatGPT's setting: 224
pixels, one affine map), `qwen2-7b` (a resampler connector, aligned from the start, and a decoder that speaks
Chinese), `internvl3-1b`, `internvl3-8b` and `internvl3.5-4b`.

Keys:
  base             a checkpoint to start from in the preset's place: a hub id, a directory in Hugging Face format, an
                   import, a run. All sizes are taken from it.
  train            what learns from clips: aligners (default; of tiny: decoder), lora (with them), decoder (with them).
  init             of the temporal connector: copy (default) of the image connector, or random.
  temporal         same, linear or shared; see vlvm_jax/models/adapters/spatiotemporal.py. By default same, or linear
                   where the image connector joins several patches, as InternVL's does.
  join             time_first (default), space_first, add, space_only, time_only.
  video_fraction   share of the video records used, in (0, 1].
  language         of the video instructions: en (default), zh, both.
  frames           T, frames per clip.
  rank             of LoRA. Alpha is twice the rank.
  stages           which stages to train, joined by + (default: all), as stages=instruct. The others' data is not
                   needed; the run says what each stage then starts from.
  scale            multiplies every stage's steps (tiny).
  seed, data       seed; root folder of the annotation files (not tiny).

What public text says of the paper, what is borrowed from neighbours and what is our reading: docs/red_villm.md.
"""

from typing import Any

from ml_collections import ConfigDict

from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._bases import Base
from vlvm_jax.recipes._common import (
    CLIP_TEXT,
    EMBEDDED,
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

PRESETS = ("tiny", "llava-1.5-7b", "llava-v1-7b", "qwen2-7b", *bases.INTERNVL3)
TRAIN = ("aligners", "lora", "decoder")
FILES: dict[str, tuple[str, ...]] = {"en": ("VideoInstruct100K.json",), "zh": ("VideoInstruct100K_zh.json",)}
FILES["both"] = (*FILES["en"], *FILES["zh"])
ALIGNERS = "adapter/**"


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(
        arg,
        PRESETS,
        base="",
        train="",
        init="copy",
        temporal="",
        join="time_first",
        video_fraction=1.0,
        language="en",
        frames=0,
        rank=64,
        scale=1.0,
        seed=0,
        data="data",
        stages="",
    )
    for key, choices in {"train": ("", *TRAIN), "init": ("copy", "random"), "language": tuple(FILES)}.items():
        if options[key] not in choices:
            raise InputError(f"--config: {key}={options[key]!r}; there are {', '.join(filter(None, choices))}")
    if not 0 < options.video_fraction <= 1:
        raise InputError(f"--config: video_fraction={options.video_fraction} is not in (0, 1]")
    if preset == "tiny" and (options.base or options.train == "lora"):
        raise InputError(f"--config: base and train=lora need one of the presets {', '.join(PRESETS[1:])}, not tiny")
    return tiny(options) if preset == "tiny" else full(preset, options)


def tiny(options: Any) -> ConfigDict:
    """The system in minutes, from the image model in the package over the embedded data.

    The temporal connector begins and clips are learned. The paper's decoder knows words of time and order before it
    sees a clip; this one has only read about single images, so by default it learns them with the aligners.
    """
    frames, fraction = options.frames or 8, options.video_fraction
    clips = [
        entry(f"{EMBEDDED}/train_clips.json", fraction=fraction),
        {**entry(f"{EMBEDDED}/train_arrangements.json"), "fraction": 0.1},
    ]
    trained = [ALIGNERS] if options.train == "aligners" else [ALIGNERS, "decoder/**"]
    visual = PATCHES + frames  # at most
    video = tiny_stage(
        options,
        "video",
        clips,
        600,
        dict.fromkeys(trained, 1e-3),
        frames=frames,
        visual=visual,
        text=CLIP_TEXT,
        copied=_copied(options, bases.EMBEDDED),
    )
    return tiny_run(
        "red-villm-tiny",
        adapter=_adapter(options, bases.EMBEDDED),
        stages=[video],
        frames=frames,
        visual=visual,
        seed=options.seed,
        only=options.stages,
    )


def full(preset: str, options: Any) -> ConfigDict:
    """The system at real size, on Video-ChatGPT's instructions under `data`.

    Borrowed, as nothing is public: of Video-ChatGPT (aligners alone) rate 2e-5, batch 32, 3 epochs, warm-up 3%, cosine,
    length 2048, its frame rule; of LLaVA-1.5 the rate 2e-5, batch 128 and one epoch with the decoder; of Qwen-VL's LoRA
    rank 64, batch 128, rate 1e-5. T=100 is a survey's word. Alpha twice the rank is ours, as is all that is learned of
    the `qwen2-7b` preset's connector before clips: LLaVA-1.5's two image stages.
    """
    root, train, base = options.data, options.train or "aligners", bases.base(preset, options.base)
    aligned = preset != "qwen2-7b" or bool(options.base)
    decoder = {"aligners": {}, "lora": {"decoder/**/lora_*": 1e-5}, "decoder": {"decoder/**": 2e-5}}[train]
    videos = [
        entry(
            f"{root}/VideoInstruct/{file}", media_root=f"{root}/VideoInstruct/videos", fraction=options.video_fraction
        )
        for file in FILES[options.language]
    ]
    stages = []
    if not aligned:
        connector = "adapter/connector/**"
        learned = {"decoder/**/lora_*": 2e-4} if train == "lora" else {"decoder/**": 2e-5}
        stages += [
            full_stage(options, "align", [llava_pretrain(root)], 256, {connector: 1e-3}),
            full_stage(options, "images", [llava_instruct(root)], 128, {connector: 2e-5, **learned}),
        ]
    rows, epochs = (32, 3.0) if train == "aligners" else (128, 1.0)
    stages.append(
        full_stage(
            options,
            "video",
            videos,
            rows,
            {ALIGNERS: 2e-5, **decoder},
            frames=options.frames or 100,
            epochs=epochs,
            copied=_copied(options, base),
        )
    )
    return full_run(
        f"red-villm-{preset}-{train}",
        base,
        adapter=_adapter(options, base),
        stages=stages,
        seed=options.seed,
        only=options.stages,
        lora=options.rank if train == "lora" else 0,
        frame_sampling="video_chatgpt",
    )


def _adapter(options: Any, base: Base) -> dict[str, Any]:
    return {"name": "spatiotemporal", "options": {"join": options.join, "temporal": _temporal(options, base)}}


def _temporal(options: Any, base: Base) -> str:
    """What aligns the time features: a connector that joins several patches cannot map the mean of a frame's."""
    return options.temporal or ("linear" if base.connector.shuffles else "same")


def _copied(options: Any, base: Base) -> dict[str, str]:
    """The temporal connector begins as a copy where there is one of the image connector's kind."""
    alike = _temporal(options, base) == "same" and options.init == "copy"
    return {"adapter/temporal_connector": "adapter/connector"} if alike else {}
