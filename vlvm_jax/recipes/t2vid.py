"""T2Vid (arXiv 2411.19951, later "Sparrow"): long texts drawn as pages, read like the frames of a video, in the mix.

    --config=t2vid[:preset[,key=value...]]

Presets: `tiny` (default; embedded data, any machine), `idefics3-8b` (24 frames of 169 tokens, one of the paper's
bases), `smolvlm2-2.2b`, `internvl3-1b`, `internvl3-8b` and `internvl3.5-4b` (256 tokens a frame). The paper's other
base, MiniCPM-Llama3-V-2.5, is not here: transformers has no class for it, and its weights have a licence of their own.

Keys:
  base      a checkpoint to start from in the preset's place: a hub id, a directory in Hugging Face format, an import, a
            run. All sizes are taken from it.
  arm       hybrid (default): captions and instructions of videos and pages, 1:1:1. video_only: videos alone, as many
            samples. pure_text: as hybrid, the texts as text. full_video: videos alone, all of them. zero_shot (tiny):
            nothing is trained.
  samples   of the mix, with full_video those of the whole.
  frames    T, frames per clip.
  pages     most pages a text may have. By default 65, or fewer if so many do not fit a row.
  length    L, tokens per row (not tiny).
  loss_on   answer (default) or all_text, with which the released Idefics3 code trains.
  texts     files of long texts under `data`, joined by + (not tiny).
  epochs    over the mix.
  stages    which stages to train, joined by + (default: all), as stages=video. The others' data is not needed; the
            run says what each stage then starts from.
  seed, data   seed, which also draws the mix; root folder of the annotation files (not tiny).

What is the paper's, what its code's and what is our reading: docs/t2vid.md.
"""

from typing import Any

from ml_collections import ConfigDict

from vlvm_jax.data.embedded import arrangement_files
from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._common import (
    EMBEDDED,
    QUESTION,
    complete,
    entry,
    full_run,
    full_stage,
    parse_arg,
    tiny_data,
    tiny_model,
    tiny_stage,
)

PRESETS = ("tiny", "idefics3-8b", "smolvlm2-2.2b", *bases.INTERNVL3)
ARMS = ("hybrid", "video_only", "pure_text", "full_video", "zero_shot")
TEXT_ROOM = 1024  # tokens of a row for what is asked and said about pages
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
        seed=0,
        data="data",
        stages="",
    )
    if options.arm not in ARMS:
        raise InputError(f"--config: arm={options.arm!r}; there are {', '.join(ARMS)}")
    if preset == "tiny" and options.base:
        raise InputError(f"--config: base={options.base!r} needs one of the presets {', '.join(PRESETS[1:])}, not tiny")
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
PER_FRAME = 16  # tokens of a frame or page: of its 8 x 8 patches, every 2 x 2 become one
TEXT = 32  # tokens beside a clip: to tell six events takes the most
EVENT = 3  # words, one page of them
SAMPLES = {"full_video": 4000}  # 15% of it in the other arms


def tiny(options: Any) -> ConfigDict:
    """The recipe in minutes, from the image model in the package: stories of the embedded data, as clips and as pages.

    That model reads single pages and compares up to three images, but has never seen a clip. Clips to learn from show
    three to six events; texts have up to sixteen, the clips of the second test eight to twelve. Pages come as a clip,
    so that they are pooled as its frames are. The tower, which reads pages already, stays as it is, to save time.
    """
    frames = options.frames or FRAMES
    samples = options.samples or SAMPLES.get(options.arm, 600)
    model = tiny_model({"name": "frames", "options": {"pool": "average", "pool_stride": 2}})
    pages = {
        **arrangement_files.SIGN,
        "page_size": bases.EMBEDDED.vision.image_size,
        "chunk_size": EVENT,
        "shown_as": "text" if options.arm == "pure_text" else "video",
        "max_pages": options.pages or frames,
    }
    mixed = mix(
        options,
        entry(f"{EMBEDDED}/train_stories_captions.json"),
        entry(f"{EMBEDDED}/train_stories.json"),
        [entry(f"{EMBEDDED}/train_long_texts.jsonl", format="text_pages", pages=pages)],
        samples,
    )
    stage = tiny_stage(
        options,
        "video",
        mixed,
        None,
        dict.fromkeys(["adapter/**", "decoder/**"], 5e-4),
        frames=frames,
        visual=frames * PER_FRAME,
        text=TEXT,
        rows=4,
        schedule="log_warmup_cosine",
        final_lr_ratio=0.1,
        loss_on=options.loss_on,
        epochs=options.epochs or 3.0,
    )
    evals = [
        {
            "name": name,
            "data": [entry(f"{EMBEDDED}/{file}.json")],
            "batch_size": 32,
            "frames": frames,
            "length": frames * PER_FRAME + QUESTION,
        }
        for name, file in (("short", "heldout_stories"), ("long", "heldout_long_stories"))
    ]
    config = {
        "name": f"t2vid-tiny-{options.arm}",
        "model": model,
        "data": tiny_data(
            {"frame_sampling": "ends"},  # of up to `frames` pages none is left out, as the last one is by segments
            train_stories=2000,
            heldout_stories=60,
            heldout_long_stories=60,
            train_long_texts=2000,
        ),
        "stages": [] if options.arm == "zero_shot" else [stage],
        "evals": evals,
        "checkpoint": {"save_every": 200, "keep": 2},
        "seed": options.seed,
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
    from vlvm_jax.models.connector import num_tokens

    if options.arm == "zero_shot":
        raise InputError(
            "--config: arm=zero_shot trains nothing; ask the base itself: python -m vlvm_jax.evaluate --checkpoint=..."
        )
    root, frames, base = options.data, options.frames or 24, bases.base(preset, options.base)
    per_page = num_tokens(base.connector, base.vision)
    pages = options.pages or min(65, (options.length - TEXT_ROOM) // per_page)
    if pages < 1:
        raise InputError(f"--config: length={options.length} has no room for a page of {per_page} tokens and its text")
    captions = entry(f"{root}/ShareGemini/sharegemini.json", media_root=f"{root}/ShareGemini/videos")
    instructions = entry(f"{root}/VideoInstruct/VideoInstruct100K.json", media_root=f"{root}/VideoInstruct/videos")
    shown = {"shown_as": "text" if options.arm == "pure_text" else "images", "max_pages": pages}
    texts = [entry(f"{root}/long_texts/{file}", format="text_pages", pages=shown) for file in options.texts.split("+")]
    samples = options.samples or {"full_video": 200000}.get(options.arm, 30000)
    return full_run(
        f"t2vid-{preset}-{options.arm}",
        base,
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
