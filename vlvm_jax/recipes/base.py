"""A small image model, and a small CLIP, from random parameters.

    --config=base[:preset[,key=value...]]

Presets: `tower`, which learns what is at each patch; `tiny` (default), that tower with a decoder; and `clip`, a pair of
towers that compare images with words. All learn from images of the embedded data alone, several together among them,
and nothing about time.

Keys:
  tower   of `tiny`: the run of the preset `tower` that it starts from (default: random parameters).
  scale   multiplies the steps.
  seed    of training.

What they are asked: docs/base.md.
"""

from typing import Any

from ml_collections import ConfigDict

from vlvm_jax.config import to_json
from vlvm_jax.data.embedded.arrangement_files import PATCH_WORDS
from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._common import EMBEDDED, complete, entry, every_option, parse_arg, tiny_stage

PRESETS = ("tiny", "tower", "clip")
SIZE = bases.SMALL.vision.image_size
RATE = 1.5e-3
IMAGES = 3  # of a set or a sheet, at most
SINGLES = {"train_singles": 10000, "search_size": SIZE, "sheet_images": IMAGES}


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(arg, PRESETS, tower="", scale=1.0, seed=0)
    if options.tower and preset != "tiny":
        raise InputError(f"--config: tower has no effect on {preset}")
    return {"tiny": image, "tower": tower, "clip": clip}[preset](options)


def tower(options: Any) -> ConfigDict:
    """The tower and the connector of `tiny`: they learn what is at each patch, and in which row and column it is."""
    adapter = {"name": "patch_words", "options": {"words": PATCH_WORDS}}
    patches = [entry(f"{EMBEDDED}/train_{name}_patches.json") for name in ("arrangements", "signs")]
    rows = {"batch_size": 48, "media": 1, "length": 400, "pack": False, "objective": "adapter"}
    trained = dict.fromkeys(["encoder/**", "adapter/**"], RATE)
    return run(
        "base-tower",
        options,
        adapter=adapter,
        data={"train_arrangements": 30000, "train_signs": 20000},
        stages=[tiny_stage(options, "patches", patches, 1500, trained, **rows)],
        prompt_tokenizer=f"{EMBEDDED}/prompt_tokenizer.json",
        prompt_length=PATCH_WORDS * bases.SMALL.vision.num_patches + 2,
    )


def image(options: Any) -> ConfigDict:
    """1.4 million parameters: first what is where, then everything that is asked.

    A list has many words to learn for the tokens of one image, a question has one.
    """

    def of(name: str, fraction: float = 1.0) -> dict[str, Any]:
        return {**entry(f"{EMBEDDED}/train_{name}.json"), "fraction": fraction}

    things = [
        of("arrangements_listings"),
        of("arrangements_captions", 0.2),
        of("arrangements", 0.3),
        of("signs", 0.5),
        of("singles", 0.3),
    ]
    everything = [
        of("arrangements"),
        of("arrangements_listings", 0.2),
        of("arrangements_captions", 0.1),
        of("sets"),
        of("signs", 0.5),
        of("singles"),
        of("sheets", 0.3),
        of("timeless_texts", 0.5),
    ]
    compared = [
        of("sets"),
        of("arrangements", 0.5),
        of("arrangements_listings", 0.1),
        of("signs", 0.3),
        of("singles", 0.5),
        of("sheets", 0.2),
        of("timeless_texts", 0.3),
    ]
    held_out = {"batch_size": 16, "frames": IMAGES, "length": 256}
    rows = {**held_out, "media": 1}
    whole = dict.fromkeys(["encoder/**", "adapter/**", "decoder/**"], RATE)
    slower = {"encoder/**": RATE / 3, "adapter/**": RATE / 1.5, "decoder/**": RATE / 1.5}
    return run(
        "base",
        options,
        adapter={"name": "frames"},
        data={
            "train_arrangements": 30000,
            "heldout_arrangements": 600,
            "train_sets": 24000,
            "heldout_sets": 800,
            "train_signs": 20000,
            "heldout_signs": 300,
            "train_timeless_texts": 3000,
            **SINGLES,
            "train_sheets": 10000,
            "heldout_singles": 300,
        },
        stages=[
            tiny_stage(options, "things", things, 1500, whole, schedule="constant", **rows),
            tiny_stage(options, "questions", everything, 9000, whole, **rows),
            tiny_stage(options, "comparisons", compared, 4000, slower, **{**rows, "length": 272}),
        ],
        evals=[
            {"name": name, "data": [entry(f"{EMBEDDED}/heldout_{name}.json")], **held_out}
            for name in ("arrangements", "sets", "signs", "singles")
        ],
    )


def clip(options: Any) -> ConfigDict:
    """220 thousand parameters that compare an image of one thing with its name, and with questions about it."""
    scorer = bases.SMALL_CLIP
    adapter = every_option({"name": "prompt_guided", "options": {"clip": to_json(scorer)}})
    pairs = [entry(f"{EMBEDDED}/train_singles_pairs.json")]
    rows = {"batch_size": 64, "media": 1, "length": 96, "pack": False, "objective": "adapter"}
    return run(
        "base-clip",
        options,
        adapter=adapter,
        data=SINGLES,
        stages=[tiny_stage(options, "clip", pairs, 2000, {"adapter/clip/**": RATE}, **rows)],
        prompt_tokenizer=f"{EMBEDDED}/prompt_tokenizer.json",
        prompt_length=scorer.text.max_position_embeddings,
    )


def run(
    name: str, options: Any, *, adapter: dict, data: dict, stages: list, evals: tuple | list = (), **settings: Any
) -> ConfigDict:
    start = {"init_from": {"encoder": options.tower, "connector": options.tower}} if options.tower else {}
    return complete(
        {
            "name": name,
            "model": bases.SMALL.model(adapter, dtype="float32", **start),
            "data": bases.SMALL.data(
                embedded={"size": SIZE, **data},
                tokenizer=f"{EMBEDDED}/tokenizer.json",
                cache_mb=1024,
                workers=1,
                **settings,
            ),
            "stages": stages,
            "evals": list(evals),
            "checkpoint": {"save_every": 500, "keep": 1},
            "seed": options.seed,
        }
    )
