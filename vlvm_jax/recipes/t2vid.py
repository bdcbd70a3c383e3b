"""T2Vid (arXiv 2411.19951, later "Sparrow"): long texts drawn as pages, read like the frames of a video, in the mix.

    --config=t2vid[:preset[,key=value...]]

Presets: `tiny` (default; embedded data, an image model that reads its words made first, any machine), `idefics3-8b` (24
frames of 169 tokens, one of the paper's bases) and `smolvlm2-2.2b`. The paper's other base, MiniCPM-Llama3-V-2.5, is
not here: transformers has no class for it, and its weights have a licence of their own.

Keys:
  base      a checkpoint to start from in the preset's place: a hub id, a directory in Hugging Face format, an import, a
            run. All sizes are taken from it.
  arm       hybrid (default): captions and instructions of videos and pages, 1:1:1. video_only: videos alone, as many
            samples. pure_text: as hybrid, the texts as text. full_video: videos alone, all of them. zero_shot: nothing
            is trained after the image model.
  samples   of the mix, with full_video those of the whole.
  frames    T, frames per clip.
  pages     most pages a text may have.
  length    L, tokens per row (not tiny).
  loss_on   answer (default) or all_text, with which the released Idefics3 code trains.
  texts     files of long texts under `data`, joined by + (not tiny).
  epochs    over the mix.
  stages    which stages to train, joined by + (default: all), as stages=video. The others' data is not needed; the
            run says what each stage then starts from.
  scale     multiplies the steps of the image model's stage (tiny).
  seed, data   seed, which also draws the mix; root folder of the annotation files (not tiny).

What is the paper's, what its code's and what is our reading: docs/t2vid.md.
"""

from typing import Any

from ml_collections import ConfigDict

from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._common import EMBEDDED, complete, entry, full_run, full_stage, parse_arg, tiny_model, tiny_stage

PRESETS = ("tiny", "idefics3-8b", "smolvlm2-2.2b")
ARMS = ("hybrid", "video_only", "pure_text", "full_video", "zero_shot")
WHOLE = {"encoder/**": 5e-6, "adapter/**": 5e-6, "decoder/**": 5e-6}


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(
        arg,
        PRESETS,
        base="",
        arm="hybrid",
        samples=0,
        frames=0,
        pages=0,
        length=12288,
        loss_on="answer",
        texts="long_alpaca.jsonl+long_qlora.jsonl",
        epochs=0.0,
        scale=1.0,
        seed=0,
        data="data",
        stages="",
    )
    if options.arm not in ARMS:
        raise InputError(f"--config: arm={options.arm!r}; there are {', '.join(ARMS)}")
    return tiny(options) if preset == "tiny" else full(preset, options)


def shares(samples: int) -> tuple[int, int, int]:
    """Captions, instructions and texts of a hybrid mix: 2 videos to 1 text, as many captions as instructions, in
    thousands where there are that many (the paper's 100K are 66K and 34K)."""
    unit = 1000 if samples >= 3000 else 1
    video = samples // (3 * unit) * unit
    return video, video, samples - 2 * video


def mix(options: Any, captions: dict, instructions: dict, texts: list[dict], samples: int) -> list[dict]:
    """Entries of an arm, each with how many of its records are drawn.

    Args:
      captions, instructions, texts: entries; the texts are drawn in equal parts.
    """
    if options.arm in ("video_only", "full_video"):
        return [{**captions, "count": samples // 2}, {**instructions, "count": samples - samples // 2}]
    of_captions, of_instructions, of_texts = shares(samples)
    if of_texts < len(texts) or not of_captions:
        raise InputError(f"--config: samples={samples} are too few for a mix of videos and {len(texts)} files of texts")
    parts = [of_texts // len(texts) + (number < of_texts % len(texts)) for number in range(len(texts))]
    return [
        {**captions, "count": of_captions},
        {**instructions, "count": of_instructions},
        *({**text, "count": part} for text, part in zip(texts, parts, strict=True)),
    ]


# --- tiny --------------------------------------------------------------------------------------------------------

FRAMES = 16
LONGEST = 16  # events of a story, at most
SAMPLES = {"full_video": 6000}  # 15% of it in the other arms


def tiny(options: Any) -> ConfigDict:
    """A stand-in for the whole in minutes: stories of the embedded data set, as clips and as pages.

    The first stage makes the image model: it learns to read stories as text and questions about them, to say what a
    single picture shows and what a single page says. It has never seen two images together. The second stage is the
    recipe. Its clips show three to six events; texts have up to sixteen, the
    clips of the second test eight to twelve.
    """
    frames = options.frames or FRAMES
    captions = entry(f"{EMBEDDED}/train_stories_captions.json")
    instructions = entry(f"{EMBEDDED}/train_stories.json")
    pages = {
        "page_size": 48,
        "font_size": 13,
        "margin": 1,
        "chunk_size": 3,
        "chunk_tokenizer": "whitespace",
        "layout_engine": "basic",
    }
    shown = {"shown_as": "text" if options.arm == "pure_text" else "images", "max_pages": options.pages or LONGEST}
    texts = [entry(f"{EMBEDDED}/train_long_texts.jsonl", format="text_pages", pages={**pages, **shown})]
    whole = ["encoder/**", "adapter/**", "decoder/**"]
    stages = [
        tiny_stage(
            options,
            "image",
            [
                entry(f"{EMBEDDED}/train_story_texts.json"),
                entry(f"{EMBEDDED}/train_events.json"),
                entry(f"{EMBEDDED}/train_event_words.jsonl", format="text_pages", pages=pages),
            ],
            1500,
            dict.fromkeys(whole, 1e-3),
            frames=8,
            visual=100,
            rows=16,
        )
    ]
    samples = options.samples or SAMPLES.get(options.arm, 900)
    if options.arm != "zero_shot":
        video = tiny_stage(
            options,
            "video",
            mix(options, captions, instructions, texts, samples),
            1,
            dict.fromkeys(whole, 5e-4),
            frames=2 * frames,
            video_frames=frames,
            visual=100,
            rows=4,
            schedule="log_warmup_cosine",
            final_lr_ratio=0.1,
            loss_on=options.loss_on,
            epochs=options.epochs or 3.0,
        )
        stages.append({**video, "steps": None})
    evals = [
        {
            "name": name,
            "data": [entry(f"{EMBEDDED}/{file}.json")],
            "batch_size": 32,
            "frames": 2 * frames,
            "video_frames": frames,
            "length": 144,
        }
        for name, file in (("short", "heldout_stories"), ("long", "heldout_long_stories"))
    ]
    connector = {"kind": "pixel_shuffle", "scale_factor": 3}  # a frame becomes one token, as 4 patches do in Idefics3
    config = {
        "name": f"t2vid-tiny-{options.arm}",
        "model": {
            **tiny_model({"name": "frames", "connector": connector}),
            "vision_remat": "none",
            "decoder_remat": "none",
        },
        "data": {
            "embedded": {
                "train_images": 0,
                "train_videos": 0,
                "heldout_images": 0,
                "heldout_videos": 0,
                "train_stories": 3000,
                "heldout_stories": 60,
                "heldout_long_stories": 60,
                "train_story_texts": 16000,
                "train_long_texts": 3000,
                "train_events": 6000,
            },
            "tokenizer": f"{EMBEDDED}/tokenizer.json",
            "chat_template": "bare",
            "frame_sampling": "segment_mid",
            "cache_mb": 512,
        },
        "stages": stages,
        "evals": evals,
        "checkpoint": {"save_every": 200, "keep": 2},
        "seed": options.seed,
        "notes": ["`image` makes the image model that the recipe starts from; it is not the paper's."],
    }
    return complete(config, options.stages)


# --- real size ---------------------------------------------------------------------------------------------------


def full(preset: str, options: Any) -> ConfigDict:
    """The recipe at real size, over annotations and texts under `data`.

    Of the paper's code: everything trained at 5e-6, 64 samples a batch, one epoch, DeepSpeed's schedule with 3%
    warm-up and a floor of a tenth, weight decay 0.01, second beta 0.999 (Idefics3's; its MiniCPM runs differ from each
    other), 24 frames, at most 65 pages a text and 10,240 tokens, the loss on answers (its Idefics3 code: on all text).
    A row has room for the longest text and takes as many other samples as fit it, two clips for instance, where the
    paper's code pads: 32 rows are about its 64 samples.
    """
    if options.arm == "zero_shot":
        raise InputError(
            "--config: arm=zero_shot trains nothing; ask the base itself: python -m vlvm_jax.evaluate --checkpoint=..."
        )
    root, frames, pages = options.data, options.frames or 24, options.pages or 65
    captions = entry(f"{root}/ShareGemini/sharegemini.json", media_root=f"{root}/ShareGemini/videos")
    instructions = entry(f"{root}/VideoInstruct/VideoInstruct100K.json", media_root=f"{root}/VideoInstruct/videos")
    shown = {"shown_as": "text" if options.arm == "pure_text" else "images", "max_pages": pages}
    texts = [entry(f"{root}/long_texts/{file}", format="text_pages", pages=shown) for file in options.texts.split("+")]
    samples = options.samples or {"full_video": 200000}.get(options.arm, 30000)
    return full_run(
        f"t2vid-{preset}-{options.arm}",
        bases.base(preset, options.base),
        adapter={"name": "frames"},
        stages=[
            full_stage(
                options,
                "video",
                mix(options, captions, instructions, texts, samples),
                32,
                WHOLE,
                frames=max(frames, pages),
                video_frames=frames,
                length=options.length,
                pack=True,
                epochs=options.epochs or 1.0,
                schedule="log_warmup_cosine",
                final_lr_ratio=0.1,
                weight_decay=0.01,
                beta2=0.999,
                loss_on=options.loss_on,
            )
        ],
        seed=options.seed,
        only=options.stages,
        frame_sampling="segment_mid",
    )
