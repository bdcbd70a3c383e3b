"""Turn long texts, each with a question and its answer, into samples of page images (T2Vid).

usage: python -m vlvm_jax.data synthesize --source=FILE [--source=FILE ...] --out=DIR|gs://BUCKET/DIR [flags]

docs/t2vid.md describes the pages. The samples do not depend on --workers.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run it again), 1 an internal error.
"""

import time
from typing import Any, get_args

from absl import flags

from vlvm_jax import __version__, cli, storage
from vlvm_jax.commands import _shared
from vlvm_jax.data.sources.text_pages import TextPages
from vlvm_jax.errors import InputError

_SOURCE = flags.DEFINE_multi_string(
    "source",
    [],
    "A file of texts: a JSON list or JSONL of {context, question, answer}, or LongAlpaca, LongQLoRA, BookSum or "
    "Natural Questions as published.",
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "A new folder, or one that an interrupted run of the same command left, where only what is missing is made.",
)
_FORMAT = flags.DEFINE_string(
    "format",
    "llava",
    "What is written. llava: data.json and a folder of PNGs per sample; array_record: shards with the pages in them; "
    "triplets: triplets.jsonl of the texts that passed the filters, whose pages are drawn in training (format "
    "text_pages of a mixture's entry).",
)
_PRESET = flags.DEFINE_string(
    "preset",
    None,
    "The filters that were released for a base model: minicpm, sparrow (Sparrow's MiniCPM) or idefics3 "
    "(default: none).",
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Tokenizer of the base model, a directory or file; needed where tokens are limited."
)
_LIMITS = {
    "max_images": "Most pages of a sample (default: the preset's).",
    "tokens_per_image": "Tokens that a page counts as (default: the preset's).",
    "max_total_tokens": "Most tokens of a sample, pages and text (default: the preset's).",
    "max_question_words": "A question must have fewer words than this (default: the preset's).",
}
for _name, _text in _LIMITS.items():
    flags.DEFINE_integer(_name, None, _text, lower_bound=1)
_LIMIT = flags.DEFINE_integer("limit", None, "Use only the first so many texts.", lower_bound=1)
_PER_PART = flags.DEFINE_integer(
    "per_part",
    None,
    "Texts made at a time; with array_record those of a shard (default: by the format).",
    lower_bound=1,
)
_NAME = flags.DEFINE_string("name", "pages", "Shards are called NAME-00000-of-00016.array_record.")
_WORKERS = _shared.define_workers()
# How texts are read, drawn and shown: flags of the same names as the settings of `TextPages`, which check them.
PAGES = {
    "layout": "Layout of the source; auto takes it from the first record.",
    "min_words": "Fewest words of a text (default: 3000 for BookSum and Natural Questions, 0 for the others).",
    "rewrite_long_answer": "Replace an answer that has a long part by the short one and its document's number.",
    "shown_as": "images: pages before the question; video: frames of a clip; text: no pages, the text itself.",
    "chunk_size": "Words on a page.",
    "chunk_mode": "How a text is cut: after so many words, between sentences, or into a number of parts.",
    "chunk_tokenizer": "What counts as a word; nltk needs the extra `text` and NLTK's Punkt data.",
    "parts": "Parts of a text with --chunk_mode=n_parts.",
    "page_size": "Side of a page in pixels.",
    "font": "Font file (default: the packaged Liberation Sans).",
    "font_size": "Size of the font in pixels.",
    "margin": "Margin of a page in pixels.",
    "vertical_align": "Where the text is on the page.",
    "line_advance": "Distance of the lines: by the ink of each line, as released, or by the font's height.",
    "overflow": "What happens to text that does not fit on its page.",
    "layout_engine": "Pillow's layout engine; raqm needs libfribidi and shapes all scripts.",
    "max_missing_glyphs": "Fraction of characters that may be missing in the font.",
}
for _name, _text in PAGES.items():
    _field: Any = TextPages.model_fields[_name]
    _parts = get_args(_field.annotation)
    _choices = [choice for part in _parts for choice in get_args(part) or (part,) if isinstance(choice, str)]
    flags.DEFINE_string(_name, None, cli.with_notes(_text, _choices, _field.default))


def main(arguments: list[str]) -> None:
    if arguments or not _SOURCE.value or not _OUT.value:
        raise InputError("expected `synthesize --source=FILE --out=DIR`; see --help")
    from vlvm_jax.config import build
    from vlvm_jax.console import Meter
    from vlvm_jax.data.pages import filters
    from vlvm_jax.data.tools import synthesize
    from vlvm_jax.workers import stoppable

    storage.check_output(_OUT.value, "--out")
    _shared.check_name(_NAME.value)
    if _FORMAT.value not in synthesize.FORMATS:
        raise InputError(f"--format={_FORMAT.value}: there are {', '.join(synthesize.FORMATS)}")
    pages = {name: flags.FLAGS[name].value for name in PAGES if flags.FLAGS[name].value is not None}
    job = synthesize.Job(
        sources=tuple(_SOURCE.value),
        output=_OUT.value.rstrip("/"),
        format=_FORMAT.value,
        name=_NAME.value,
        options=build(TextPages, pages, "flags"),
        limits=filters.filters(_PRESET.value, **{name: flags.FLAGS[name].value for name in _LIMITS}),
        tokenizer=_TOKENIZER.value,
        limit=_LIMIT.value,
        per_part=_PER_PART.value,
    )
    with stoppable(f"finished parts stay in {job.output}"):
        plan = synthesize.make_plan(job)
        workers = _shared.number_of_workers(_WORKERS.value)
        started = time.monotonic()
        with Meter("synthesize", plan.texts) as meter:
            drawn = synthesize.run(plan, workers, meter.update)
        rate = drawn / max(time.monotonic() - started, 1e-9)
        report = synthesize.finish(plan, __version__)
    _show(report, job, rate if drawn and job.format != "triplets" else None)


def _show(report: Any, job: Any, rate: float | None) -> None:
    from rich.table import Table

    from vlvm_jax.console import say, show_table
    from vlvm_jax.data.tools.synthesize import DROPPED

    counts = report.counts
    table = Table(title=report.path, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("kept", f"{counts['kept']:,}")
    for cause, count in sorted(report.dropped.items()):
        table.add_row(f"dropped: {cause}", f"{count:,}")
    table.add_row("pages", f"{counts['pages']:,}")
    table.add_row("overflowed", f"{counts['overflowed']:,}")
    if rate is not None:
        table.add_row("pages/s", f"{rate:,.1f}")
    show_table(table)
    if report.dropped:
        say(f"what was dropped is listed in {job.output}/{DROPPED}")
    if counts["boxes"]:
        say(f"warning: the font lacks {counts['boxes']:,} characters of the texts kept, which are drawn as boxes")
