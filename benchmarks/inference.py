"""Time to the first token and tokens a second: Free Video-LLM, SlowFast-LLaVA and IG-VLM, beside transformers.

usage: python -m benchmarks.inference [--scale tiny|small|7b] [--rounds N] [--new N] [--budgets NAME ...] [--json FILE]

A LLaVA-1.6 and a CLIP of random weights are written to disk as transformers writes them, both with 24 x 24 patches a
frame, so that every budget has its real number of tokens. transformers loads that LLaVA (PyTorch, sdpa, as many
threads, the same dtype), and so do the recipes of configs/free_video_llm.py, one for each budget: Free Video-LLM's
`2648`, `1026` and `513`, `slowfast` (3680) and `igvlm` (2640: six frames of 640 x 480 as one image). A question about a
made clip is asked. In fp32 both must say the same tokens, or nothing is measured: for `igvlm` transformers is given the
image's pixels, for the others our visual tokens, for its class has no such input. `7b`, for an accelerator, has
LLaVA-1.6-7B's sizes and is in bf16, where the share of equal tokens is printed.

Contenders take turns, round after round, after one that is not counted; the numbers are medians with their range, the
ratios are within rounds. In brackets: CPU seconds of the process, which suffer less from a busy machine than the time
on the clock.

- `clip`: decoding its frames and scaling them. `tower`: what the towers see of them, and with a fast path the
  connector's tokens of every frame; both are kept for the next question.
- `selection`: the question through CLIP's text tower, scores and boxes; part of `first token` too.
- `first token`: from what was kept to the first token of the answer: selection, crops, the connector where `tower` has
  not run it, prompt. `cold` has `clip` and `tower` before it. transformers reads embeddings that are ready, of exactly
  the prompt's length, where our prompts are padded to their bucket.
- `tokens/s`: of the tokens after it, with a cache of that length; `generate` for transformers.
- Ratios also of the tower alone over a clip's frames, here and in transformers, and, in fp32, of the prompt's matrix
  products alone: what of `first token` belongs to the backends.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # an accelerator's memory is for two

import jax
import numpy as np
import torch
import transformers

from benchmarks.products import contenders, decoder_sizes
from benchmarks.random_models import (
    CLIP_SIZE,
    QUESTION,
    SCALES,
    Scale,
    threads,
    write_clip_model,
    write_llava,
    write_video,
)
from configs import free_video_llm
from vlvm_jax.config import Config, build
from vlvm_jax.inference.answering import Answering, Request
from vlvm_jax.inference.loading import load
from vlvm_jax.inference.prompts import padded
from vlvm_jax.models.decoding import Limits

BUDGETS = {
    "2648": "llava-v1.6-vicuna-7b,budget=2648,clip={clip}",
    "1026": "llava-v1.6-vicuna-7b,budget=1026,clip={clip}",
    "513": "llava-v1.6-vicuna-7b,budget=513,clip={clip}",
    "slowfast": "slowfast-llava-7b",
    "igvlm": "ig-vlm-7b",
}
FREE, BASELINES = ("2648", "1026", "513"), ("igvlm", "slowfast")
CHECKED = 16  # tokens that both must say alike


# --- what is loaded ----------------------------------------------------------------------------------------------


def load_ours(folder: Path, names: list[str], scale: Scale) -> dict[str, Answering]:
    """One for each budget; they share the parameters that they have in common."""
    made: dict[str, Answering] = {}
    shared: dict[str, jax.Array] = {}
    for name in names:
        preset, *keys = BUDGETS[name].format(clip=folder / "clip").split(",")
        recipe = free_video_llm.get_config(",".join([preset, f"base={folder / 'llava'}", *keys]))
        recipe.model.dtype = scale.dtype
        made[name] = load(None, config=build(Config, recipe), rows=1)
        params = made[name].engine.params
        for path in params:
            params[path] = shared.setdefault(path, params[path])
    return made


def load_theirs(folder: Path, scale: Scale) -> Any:
    """transformers' model on the device that jax computes on, or None where PyTorch does not have it."""
    platform = jax.default_backend()
    if platform != "cpu" and not (platform == "gpu" and torch.cuda.is_available()):
        print(f"PyTorch {torch.__version__} has no {platform}: ours alone", file=sys.stderr, flush=True)
        return None
    torch.set_num_threads(threads())
    model: Any = transformers.LlavaNextForConditionalGeneration.from_pretrained(
        folder / "llava", dtype=getattr(torch, scale.dtype), attn_implementation="sdpa"
    )
    model.generation_config.eos_token_id = None
    return model.eval().to("cuda" if platform == "gpu" else "cpu")


# --- one question ------------------------------------------------------------------------------------------------

Cost = dict[str, float]  # wall and cpu seconds


def timed(work: Callable[[], Any]) -> tuple[Any, Cost]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


class Case:
    """One budget's question, asked of both.

    Args:
      new: tokens of an answer after the first.
    """

    def __init__(self, answering: Answering, theirs: Any, video: Path, new: int):
        self.answering, self.theirs, self.new = answering, theirs, new
        self.request = Request("1", (("video", str(video)),), QUESTION)
        engine = answering.engine
        self.features, self.batch = answering.inputs(self.request)
        self.tokens, self.visual = int(self.batch.segment_ids.sum()), int(self.batch.media_mask.sum())
        self.limits = Limits(np.zeros(0, np.int32), np.full(1, new + 1, np.int32))  # type: ignore[arg-type]
        with jax.set_mesh(engine.mesh):
            embed = jax.jit(lambda params, features, batch: engine.model.bind(params).embed(batch, features=features))
            embedded = np.array(embed(engine.params, self.features, self.batch).astype("float32"))
        if theirs is not None:
            self.inputs = torch.from_numpy(embedded[:, : self.tokens]).to(theirs.device, theirs.dtype)

    def ours(self) -> dict[str, Cost]:
        """Seconds of each part, the image side's too."""
        answering, engine = self.answering, self.answering.engine
        media, clip = timed(lambda: answering.prompts.media(self.request))
        frames = np.concatenate([medium.frames for medium in media])
        frames = padded(frames, self.batch.media.shape[1])[None]
        _, tower = timed(lambda: engine.encode_media(frames))
        parts = {"clip": clip, "tower": tower}
        if engine.model.adapter.needs_prompt:
            _, parts["selection"] = timed(lambda: engine.picked(self.features, self.batch))
        progress, parts["first"] = timed(lambda: jax.block_until_ready(self.prefill()))
        _, parts["decode"] = timed(lambda: self.decode(progress))
        return parts

    def prefill(self) -> Any:
        return self.answering.engine.prefill(self.features, self.batch, self.new + 1, self.limits, None)

    def decode(self, progress: Any) -> list[int]:
        said = []
        while not np.asarray(progress.done).all():
            progress, tokens = self.answering.engine.decode(progress, self.limits, None, np.zeros(1, bool))
            said += tokens[0][tokens[0] >= 0].tolist()
        return said

    def answer(self) -> list[int]:
        """Our tokens."""
        progress = self.prefill()
        first = int(np.asarray(progress.token)[0])
        return [first, *self.decode(progress)]

    def their_parts(self) -> dict[str, Cost]:
        """Seconds to the first token and of those after it, of one call of `generate`."""
        watch = Stopwatch()
        self.generate(streamer=watch)
        start, first, *_, last = watch.times
        return {name: _between(*ends) for name, ends in {"first": (start, first), "decode": (first, last)}.items()}

    def generate(self, **options: Any) -> list[int]:
        """Their tokens, from our visual tokens."""
        ones = torch.ones(self.inputs.shape[:2], dtype=torch.long, device=self.inputs.device)
        return self._generate(inputs_embeds=self.inputs, attention_mask=ones, **options)

    def generate_from_pixels(self) -> list[int]:
        """Their tokens, from the pixels of the grid."""
        (medium,) = self.answering.prompts.media(self.request)
        vision, device = self.answering.engine.model.config.vision, self.theirs.device
        pixels = (medium.frames / 255 - np.asarray(vision.image_mean)) / np.asarray(vision.image_std)
        ids = torch.from_numpy(np.asarray(self.batch.token_ids)[:, : self.tokens].astype(np.int64))
        wide, tall = CLIP_SIZE
        return self._generate(
            input_ids=ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2)[None]).to(device, self.theirs.dtype),
            image_sizes=torch.tensor([[3 * tall, 2 * wide]]).to(device),
        )[self.tokens :]

    def _generate(self, **inputs: Any) -> list[int]:
        with torch.no_grad():
            made = self.theirs.generate(**inputs, max_new_tokens=self.new + 1, do_sample=False, pad_token_id=0)
        return made[0].tolist()


class Stopwatch:
    """A streamer of transformers that notes when tokens come; the first call is the prompt's."""

    def __init__(self):
        self.times: list[Cost] = []

    def put(self, tokens: Any) -> None:
        del tokens
        self.times.append({"wall": time.perf_counter(), "cpu": time.process_time()})

    def end(self) -> None:
        """Nothing is left over."""


def _between(start: Cost, end: Cost) -> Cost:
    return {kind: end[kind] - start[kind] for kind in start}


def towers(case: Case) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The LLaVA's tower alone over as many frames as the budget's clip has, here and in transformers.

    Raises:
      SystemExit: their features differ.
    """
    engine = case.answering.engine
    vision = engine.model.config.vision
    shape = (1, case.batch.media.shape[1], vision.image_size, vision.image_size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels = (frames[0] / 255 - np.asarray(vision.image_mean)) / np.asarray(vision.image_std)
    theirs = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).to(case.theirs.device, case.theirs.dtype)
    encode = jax.jit(lambda params, frames: engine.model.bind(params).encoder(frames).patches)
    model = case.theirs.model.vision_tower

    def run() -> Any:
        with jax.set_mesh(engine.mesh):
            return jax.block_until_ready(encode(engine.params, frames))

    def run_theirs() -> Any:
        with torch.no_grad():
            return model(theirs, output_hidden_states=True).hidden_states[vision.feature_layer][:, 1:]

    if engine.model.config.dtype == "float32":
        difference = np.abs(np.asarray(run())[0] - run_theirs().numpy()).max()
        if difference > 1e-3:
            sys.exit(f"features of the tower differ from transformers' by {difference:.1e}")
    return run, run_theirs


def alone(case: Case, scale: Scale, rounds: int) -> dict[str, dict[str, list[Cost]]]:
    """Costs of parts that both have alone, by part and contender."""
    parts = {"tower": towers(case)}
    if scale.dtype == "float32":
        parts["products of the prompt"] = contenders(
            case.tokens, *decoder_sizes(scale.width, scale.inner, scale.layers), backward=False
        )
    costs: dict[str, dict[str, list[Cost]]] = {}
    for name, both in parts.items():
        of = costs[name] = {"ours": [], "theirs": []}
        for number in range(rounds + 1):
            for who, work in zip(of, both, strict=True):
                _, cost = timed(work)
                if number:
                    of[who].append(cost)
    return costs


def equal_tokens(name: str, case: Case) -> float:
    """Share of the first tokens that both say alike. An answer counts up to where they part."""
    ours = case.answer()[:CHECKED]
    theirs = (case.generate_from_pixels() if name == "igvlm" else case.generate())[:CHECKED]
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    return (same.index(False) if False in same else len(same)) / len(same)


# --- all of them -------------------------------------------------------------------------------------------------


def measure(cases: dict[str, Case], rounds: int) -> dict[str, dict[str, dict[str, list[Cost]]]]:
    """Costs of every part by budget and contender, round by round; who begins changes."""
    costs: dict[str, dict[str, dict[str, list[Cost]]]] = {name: {"ours": {}, "theirs": {}} for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            turns: list[tuple[str, Callable]] = [("ours", case.ours)]
            if case.theirs is not None:
                turns.append(("theirs", case.their_parts))
            for who, work in turns if number % 2 else reversed(turns):
                parts = work()
                if number:  # the first round compiles
                    for part, cost in parts.items():
                        costs[name][who].setdefault(part, []).append(cost)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return costs


def ratios(costs: dict[str, Any], parts: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """By the clock and of CPU time: theirs over ours in both parts, and the baselines' first token over Free's."""
    made: dict[str, dict[str, list[float]]] = {}

    def add(name: str, slow: list[Cost], fast: list[Cost]) -> None:
        made[name] = {kind: [a[kind] / b[kind] for a, b in zip(slow, fast, strict=True)] for kind in ("wall", "cpu")}

    for name, of in costs.items():
        for part in of["theirs"]:
            add(f"{name}, {part}: transformers / ours", of["theirs"][part], of["ours"][part])
    for free in FREE:
        for other in BASELINES:
            if free in costs and other in costs:
                add(f"first: {other} / {free}", costs[other]["ours"]["first"], costs[free]["ours"]["first"])
    for name, of in parts.items():
        add(f"{name}: transformers / ours", of["theirs"], of["ours"])
    return made


def spread(values: list[float], form: str = ".2f") -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def seconds(costs: list[Cost] | None) -> str:
    if not costs:
        return ""
    return f"{spread([cost['wall'] for cost in costs])} [{statistics.median(cost['cpu'] for cost in costs):.2f}]"


def rate(costs: list[Cost] | None, new: int) -> str:
    if not costs:
        return ""
    cpu = statistics.median(new / cost["cpu"] for cost in costs)
    return f"{spread([new / cost['wall'] for cost in costs], '.1f')} [{cpu:.1f}]"


COLUMNS = (
    "budget", "visual tokens", "prompt tokens", "clip, s", "tower, s", "selection, s", "cold, s", "first token, s",
    "transformers, s", "tokens/s", "transformers, tokens/s",
)  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for name, case in result["budgets"].items():
        ours, theirs, new = case["ours"], case["theirs"], result["new"]
        together = zip(ours["clip"], ours["tower"], ours["first"], strict=True)
        cold: list[Cost] = [{kind: sum(part[kind] for part in parts) for kind in parts[0]} for parts in together]
        cells = [
            name, str(case["visual_tokens"]), str(case["prompt_tokens"]), seconds(ours["clip"]),
            seconds(ours["tower"]), seconds(ours.get("selection")), seconds(cold), seconds(ours["first"]),
            seconds(theirs.get("first")), rate(ours["decode"], new), rate(theirs.get("decode"), new),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| ratio | by the clock | of CPU time |", "|---|---:|---:|"]
    lines += [f"| {name} | {spread(of['wall'])} | {spread(of['cpu'])} |" for name, of in result["ratios"].items()]
    return "\n".join(lines)


def host() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": device.device_kind, "devices": jax.device_count(), "cores": threads(),
        "machine": platform.processor() or platform.machine(), "load_before": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(), "jax": jax.__version__, "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


@contextlib.contextmanager
def made_files(scale: Scale) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_llava(folder / "llava", scale)
        write_clip_model(folder / "clip", scale)
        write_video(folder / "clip.mp4")
        yield folder


def run(scale: Scale, names: list[str], rounds: int, new: int) -> dict[str, Any]:
    """Everything that is printed.

    Raises:
      SystemExit: the two do not say the same.
    """
    with made_files(scale) as folder, jax.default_matmul_precision("highest"):
        theirs = load_theirs(folder, scale)
        cases = {
            name: Case(answering, theirs, folder / "clip.mp4", new)
            for name, answering in load_ours(folder, names, scale).items()
        }
        equal = {} if theirs is None else {name: equal_tokens(name, case) for name, case in cases.items()}
        if scale.dtype == "float32" and (parted := {name: share for name, share in equal.items() if share < 1}):
            sys.exit(f"not the same tokens as transformers, shares that are equal: {parted}")
        costs = measure(cases, rounds)
        parts = {} if theirs is None else alone(next(iter(cases.values())), scale, rounds)
        return {
            "new": new, "rounds": rounds, "dtype": scale.dtype, "scale": dataclasses.asdict(scale), "host": host(),
            "budgets": {
                name: {
                    "visual_tokens": case.visual, "prompt_tokens": case.tokens, "equal_tokens": equal.get(name),
                    **costs[name],
                }
                for name, case in cases.items()
            },
            "alone": parts,
            "ratios": ratios(costs, parts),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer after the first")
    parser.add_argument("--budgets", nargs="+", metavar="NAME", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.rounds < 1 or args.new < 1:
        parser.error("--rounds and --new take 1 or more")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    result = run(SCALES[args.scale], args.budgets, args.rounds, args.new)
    print(table(result))
    print(", ".join(f"{key} {value}" for key, value in result["host"].items()))
    shares = {name: case["equal_tokens"] for name, case in result["budgets"].items()}
    print(f"{args.scale}, {result['dtype']}, {args.rounds} rounds, {args.new} tokens; equal tokens: {shares}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
