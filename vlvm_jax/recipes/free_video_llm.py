"""Free Video-LLM (arXiv 2410.10441): an image LVLM asked about clips without training; the question picks what it sees.

    --config=free_video_llm[:preset[,key=value...]]

Presets: `tiny` (default; the image model and the CLIP in the package, any machine), `llava-v1.6-vicuna-7b`,
`smolvlm2-256m` and `internvl3-8b`, and the baselines `slowfast-llava-7b`, `ig-vlm-7b` and `freeva-7b`. None trains
anything. `tiny` has held-out clips of the embedded data, about which `vlvm_jax.train` asks it; the others are for
`vlvm_jax.generate` and `vlvm_jax.evaluate`.

Keys:
  base        a checkpoint in the place of the preset's: a hub id, a directory in Hugging Face format, an import, a run.
              All sizes are taken from it.
  clip        the CLIP that compares frames with the question: a hub id or a directory. Its sizes are taken from it.
  budget      of tokens: 2648 (default), 1826, 1026, 513, or an ablation: 864, uniform_864, 1728, pool_513.
  setting     a setting string of the released code, in the place of budget.
  roi_layout  released (default) or corrected; see vlvm_jax/models/adapters/_regions.py.
  select      which frames the first path takes: prompt (default), uniform, change, random.
  variant     of freeva-7b: d1, d2 (default) or s1.
  frames      T, frames that are decoded.
  seed        of the held-out clips (tiny).

What is the released code's, what is second hand and what is our reading: docs/free_video_llm.md.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vlvm_jax.config import DType, InitFrom, to_json
from vlvm_jax.data.prompt.answers import PREFIXES
from vlvm_jax.errors import InputError
from vlvm_jax.recipes import _bases as bases
from vlvm_jax.recipes._bases import Base, Scorer
from vlvm_jax.recipes._common import EMBEDDED, QUESTION, complete, entry, every_option, parse_arg, tiny_data
from vlvm_jax.recipes._released import parse_setting

KEYS = {
    "base": "",
    "clip": "",
    "budget": "2648",
    "setting": "",
    "roi_layout": "released",
    "select": "prompt",
    "variant": "d2",
    "frames": 0,
    "seed": 0,
}
PRESETS = {  # and which of the keys each takes
    "tiny": ("budget", "roi_layout", "select", "seed"),
    "llava-v1.6-vicuna-7b": ("base", "clip", "budget", "setting", "roi_layout", "select", "frames"),
    "smolvlm2-256m": ("base", "clip", "setting", "roi_layout", "select", "frames"),
    "internvl3-8b": ("base", "clip", "setting", "roi_layout", "select", "frames"),
    "slowfast-llava-7b": ("base", "frames"),
    "ig-vlm-7b": ("base", "frames"),
    "freeva-7b": ("base", "variant", "frames"),
}
FREEVA = {"d1": (4, "concat"), "d2": (8, "spatial_1d_max_pool"), "s1": (4, "temporal_global_pool")}


def budget(prompt: int, uniform: int, alpha: float, fast: int = 0, **pool: Any) -> dict[str, Any]:
    """Paths of Free Video-LLM: frames that the question picks, uniform ones, both cropped alike, and small ones."""
    kept = {"pool": "spatial_1d_max_pool", **pool, "roi_alpha": alpha}
    return {
        "prompt_path": {**kept, "num_frames": prompt},
        "uniform_path": {**kept, "num_frames": uniform},
        "fast_path": {"num_frames": fast},
    }


# By their tokens with 576 patches a frame and 50 frames. The first two are the released code's; the others' counts are
# second hand, and what makes them is our reading.
BUDGETS = {
    "2648": budget(3, 5, 0.8, 50),
    "1826": budget(3, 3, 0.6, 50),
    "1026": budget(3, 3, 0.6),
    "513": budget(3, 0, 0.6),
    "864": budget(3, 0, 1.0),
    "uniform_864": budget(0, 3, 1.0),
    "1728": budget(3, 3, 1.0),
    "pool_513": budget(3, 0, 1.0, pool="adaptive_2d_pool", grid=[9, 19]),
}


def get_config(arg: str | None = None) -> Any:
    preset, options = parse_arg(arg, PRESETS, **KEYS)
    for key, default in KEYS.items():
        if options[key] != default and key not in PRESETS[preset]:
            raise InputError(f"--config: {key} has no effect on {preset}, which takes {', '.join(PRESETS[preset])}")
    if options.budget not in BUDGETS:
        raise InputError(f"--config: budget={options.budget!r}; there are {', '.join(BUDGETS)}")
    if options.variant not in FREEVA:
        raise InputError(f"--config: variant={options.variant!r}; there are {', '.join(FREEVA)}")
    if options.setting and options.budget != KEYS["budget"]:
        raise InputError("--config: setting and budget both say how many tokens; give one of them")
    if preset == "tiny":
        return tiny(options)
    make = {"slowfast-llava-7b": slow_fast, "ig-vlm-7b": ig_vlm, "freeva-7b": freeva}.get(preset, guided)
    return make(preset, options)


# --- tiny --------------------------------------------------------------------------------------------------------

FRAMES = 32  # of a clip, all of which are seen
CLIPS = 400  # held out
TOKENS = 256  # of a clip, at most

# Over 8 x 8 patches; means over 3 x 6 windows are as many tokens as 513 keeps of a frame.
TINY_BUDGETS = {**BUDGETS, "pool_513": budget(3, 0, 1.0, pool="adaptive_2d_pool", grid=[3, 6])}


def tiny(options: Any) -> ConfigDict:
    """The models in the package, asked about clips in which what is asked for shows in few frames, or small in a
    corner.

    A frame has 8 x 8 patches where LLaVA's have 24 x 24, so that a budget's name is not its number of tokens here;
    frames of the fast path become one token each.
    """
    paths = TINY_BUDGETS[options.budget]
    adapter = {
        **paths,
        "fast_path": {"num_frames": "all" if paths["fast_path"]["num_frames"] else 0, "grid": [1, 1]},
        "frame_select": options.select,
        "roi_layout": options.roi_layout,
        "clip": to_json(bases.EMBEDDED_CLIP.sizes),
    }
    held_out = {
        "name": "searches",
        "data": [entry(f"{EMBEDDED}/heldout_searches.json")],
        "batch_size": 8,
        "frames": FRAMES,
        "length": TOKENS + QUESTION,
        "pack": False,
        "controls": ["blank_video", "shuffled_prompt"],
    }
    return untrained(
        f"tiny-{options.budget}",
        options,
        bases.EMBEDDED,
        {"name": "prompt_guided", "options": adapter},
        scorer=bases.EMBEDDED_CLIP,
        frames=FRAMES,
        data=tiny_data({"short_video": "identity"}, heldout_searches=CLIPS, search_frames=FRAMES, seed=options.seed),
        answers={"max_new_tokens": 8},
        dtype="float32",
        evals=[held_out],
    )


# --- real size ---------------------------------------------------------------------------------------------------


def guided(preset: str, options: Any) -> ConfigDict:
    """Free Video-LLM itself. On models whose frames come as squares of joined patches (SmolVLM2's 8 x 8, InternVL3's
    16 x 16), everything but the form of the method is ours: 16 frames, four of them at half their tokens before the
    crop, all at four."""
    released = preset == "llava-v1.6-vicuna-7b"
    scorer = bases.scorer(bases.CLIP_L_336 if released else bases.CLIP_B_16, options.clip)
    paths = dict(BUDGETS[options.budget])
    if options.setting:
        paths = parse_setting(options.setting, options.frames or 50)
    elif not released:
        paths = {**budget(2, 2, 0.8), "fast_path": {"num_frames": "all", "grid": [2, 2]}}
    clip = to_json(scorer.sizes)
    adapter = {**paths, "roi_layout": options.roi_layout, "frame_select": options.select, "clip": clip}
    return untrained(
        preset,
        options,
        bases.base(preset, options.base),
        {"name": "prompt_guided", "options": adapter},
        scorer=scorer,
        frames=50 if released else 16,
        data={"frame_fit": "squash", **({"chat_template": "vicuna_lines"} if released else {})},
        answers={"prompt_template": "key_frames", **(_BEGUN if released else {})},
    )


def slow_fast(preset: str, options: Any) -> ConfigDict:
    """SlowFast-LLaVA: 10 uniform frames at 288 tokens, all 50 at 16."""
    return untrained(
        preset,
        options,
        bases.base("llava-v1.6-vicuna-7b", options.base),
        {"name": "slow_fast"},
        frames=50,
        data={"frame_fit": "squash", "chat_template": "vicuna_lines"},
        answers={"prompt_template": "key_frames", **_BEGUN},
    )


def ig_vlm(preset: str, options: Any) -> ConfigDict:
    """IG-VLM: six frames as one image, which is cut into tiles as LLaVA-1.6 cuts any."""
    return untrained(
        preset,
        options,
        bases.base("llava-v1.6-vicuna-7b", options.base),
        {"name": "frames", "options": {"newline": "image"}},
        frames=6,
        data={
            "clips": "grid",
            "image_layout": "anyres",
            "frame_sampling": "segment_start",
            "chat_template": "vicuna_lines",
        },
        answers={
            "prompt_template": "image_grid",
            "append_question_mark": True,
            **_BEGUN,
            "max_new_tokens": 512,
        },
    )


def freeva(preset: str, options: Any) -> ConfigDict:
    """FreeVA: four frames as they are (D1), eight pooled by two (D2), or the mean over frames (S1)."""
    frames, pool = FREEVA[options.variant]
    paths = {"slow_path": {"num_frames": "all", "pool": pool}, "fast_path": {"num_frames": 0}}
    return untrained(
        f"{preset}-{options.variant}",
        options,
        bases.base("llava-1.5-7b", options.base),
        {"name": "slow_fast", "options": paths},
        frames=frames,
        data={"frame_fit": "pad", "chat_template": "vicuna_v1"},
    )


_BEGUN = {"prefix": PREFIXES["open"], "options_prefix": PREFIXES["options"]}


def untrained(
    preset: str,
    options: Any,
    base: Base,
    adapter: dict,
    *,
    frames: int,
    data: dict,
    answers: dict | None = None,
    scorer: Scorer | None = None,
    dtype: DType = "bfloat16",
    evals: Sequence[dict] = (),
) -> ConfigDict:
    """A model that answers as it is.

    Args:
      frames: of a clip, where the key `frames` says none.
      data, answers: settings beside the base's, and how questions are put.
      scorer: what scores frames by the question.
      evals: held-out questions.
    """
    start = base.init_from
    if scorer is not None:
        parts = start if isinstance(start, InitFrom) else InitFrom(encoder=start, connector=start, decoder=start)
        start = parts.model_copy(update={"clip": scorer.source})
        words = scorer.sizes.text.max_position_embeddings
        data = {**data, "prompt_tokenizer": "{clip}", "prompt_length": words}
    return complete(
        {
            "name": f"free-video-llm-{preset}",
            "model": base.model(every_option(adapter), init_from=start, dtype=dtype),
            "data": base.data(**{"frame_sampling": "segment_mid", **data}),
            "answers": {"frames": options.frames or frames, **(answers or {})},
            "evals": list(evals),
        }
    )
