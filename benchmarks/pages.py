"""Pages of text per second (T2Vid): drawn in one process, and as training's workers bring them to batches.

usage: python benchmarks/pages.py [--pages N] [--workers 0 1 2 ...] [--frames T] [--size PIXELS] [--json FILE]

Texts are drawn from a seed out of words of English lengths; a page holds 115 of them on 448 x 448 pixels, as released.

- `words`, `words and lines`, `drawing`, `to PNG`: one process, the work up to there, CPU milliseconds a page.
- `one process`: from text to PNG files in memory, pages a second by the clock and of CPU time, which suffers less from
  a busy machine.
- `workers`: a stage's pipeline (`data.batch.dataset.make_dataset`) over a file of texts, from text to batches of
  frames of `--size` pixels, `--frames` a row; its rate and the rows a second that a step may take before it waits.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vlvm_jax.config import DataConfig, MixtureEntry
from vlvm_jax.data.batch.dataset import make_dataset
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.embedded import words as embedded_words
from vlvm_jax.data.pages import draw
from vlvm_jax.data.pages.draw import PageOptions
from vlvm_jax.data.sample.spec import SampleSpec
from vlvm_jax.data.sources.mixture import read_mixture

PAGES_PER_TEXT = 20


def words(count: int, seed: int) -> str:
    """Words whose lengths, commas and full stops come about as often as in English prose."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.poisson(3.7, count) + 1, 1, 14)
    letters = rng.choice(list("etaoinshrdlucmfwypvbgk"), (count, 14))
    ends = rng.choice(["", ",", "."], count, p=[0.88, 0.07, 0.05])
    return " ".join("".join(row[:length]) + end for row, length, end in zip(letters, lengths, ends, strict=True))


def timed(work: Callable[[], Any], rounds: int = 3) -> float:
    """Median CPU seconds of a few rounds."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def parts(text: str, options: PageOptions) -> dict[str, float]:
    """CPU milliseconds a page of the work up to each of its parts."""
    pages = draw.lay_out(text, options)
    cold = draw.words(text, options.chunk_tokenizer)
    images = [draw.draw(page, options) for page in pages]
    seconds = {
        "words": timed(lambda: draw.words(text, options.chunk_tokenizer)),
        "words and lines": timed(lambda: draw.lay_out(text, options)),
        "drawing": timed(lambda: [draw.draw(page, options) for page in pages]),
        "to PNG": timed(lambda: list(draw.PageFiles(text, options))),
    }
    assert len(images) == len(pages) == -(-len(cold) // options.chunk_size)
    return {name: 1e3 * value / len(pages) for name, value in seconds.items()}


def pipeline(file: str, tokenizer: str, least: int, workers: int, frames: int, size: int) -> float:
    """Pages a second from the file to batches, all workers warm, over at least so many pages."""
    mixture = read_mixture([MixtureEntry(path=file, format="text_pages")], 0)
    spec = SampleSpec(
        length=8192,
        frames=frames,
        frames_per_video=frames,
        image_size=size,
        image_tokens=1,
        video_tokens=tuple(range(frames + 1)),
        data=DataConfig(tokenizer=tokenizer, chat_template="bare"),
    )
    log = SkipLog(mixture, 0.0)
    batches = iter(make_dataset(mixture, spec, rows=1, pack=True, skip_log=log, seed=0, workers=workers))
    for _ in range(1 + workers):  # workers start, and hold some ready
        next(batches)
    pages, start = 0, time.perf_counter()
    while pages < least:
        pages += int((next(batches)["media"] > 0).sum())
    return pages / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", type=int, default=364)
    parser.add_argument("--json")
    args = parser.parse_args()
    options, count = PageOptions(), max(2, args.pages // PAGES_PER_TEXT)
    texts = [words(PAGES_PER_TEXT * 100, seed) for seed in range(count)]
    measured: dict[str, Any] = {"parts_ms": parts(" ".join(texts[:5]), options)}
    for name, value in measured["parts_ms"].items():
        print(f"{name}: {value:.2f} ms of CPU a page")
    start, cpu = time.perf_counter(), time.process_time()
    drawn = sum(len(list(draw.PageFiles(text, options))) for text in texts)
    measured["one_process"] = drawn / (time.perf_counter() - start)
    measured["one_process_cpu"] = drawn / (time.process_time() - cpu)
    print(
        f"one process, text to PNG: {drawn} pages, {measured['one_process']:.1f} pages/s, "
        f"{measured['one_process_cpu']:.1f} pages per CPU second"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        asked = [{"context": text, "question": "what ?", "answer": "it"} for text in texts]
        file.write_text("\n".join(map(json.dumps, asked)))
        embedded_words.tokenizer().save(str(Path(folder) / "tokenizer.json"))
        for workers in args.workers:
            rate = pipeline(str(file), folder, args.pages, workers, args.frames, args.size)
            measured[f"workers_{workers}"] = rate
            print(
                f"{workers} workers: {rate:.1f} pages/s, {rate / args.frames:.2f} rows of {args.frames} frames a second"
            )
    print(f"{os.cpu_count()} cores")
    if args.json:
        Path(args.json).write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
