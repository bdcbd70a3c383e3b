"""Ask a model a list of questions about clips, and score its answers by fixed rules.

usage: python -m vlvm_jax.evaluate --checkpoint=DIR|ID --questions=FILE --output=DIR [--media=DIR] [flags]

docs/evaluate.md describes the formats of question lists and the rules. All rules are reported; --match and --parser
choose the ones that decide.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run the same command again), 1 an internal error.
"""

import sys
from typing import TYPE_CHECKING, Any, cast

from absl import flags

from vlvm_jax import cli
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import benchmarks

if TYPE_CHECKING:
    from vlvm_jax.inference.requests import Decoding

_CONTROLS = ["blank_video", "shuffled_frames", "shuffled_prompt", "shuffled_question"]
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The model: a training run, one of its stages or steps, an import, a Hugging Face directory or id.",
)
_QUESTIONS = flags.DEFINE_string("questions", None, "The list of questions: .json, .jsonl or .csv.")
_ANSWERS = flags.DEFINE_string(
    "answers", None, "The list of answers, for questions that come without (default: X_a.json beside X_q.json)."
)
_MEDIA = flags.DEFINE_string(
    "media",
    None,
    "Folder of the clips (default: that of the list). Names are also tried with .mp4, .avi, .mov and .mkv, and with "
    '"v_" before them.',
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder, local or gs://, for predictions.jsonl, scored.jsonl, results.json and run_card.json. The same command "
    "continues there and asks no question twice.",
)
_FORMAT = flags.DEFINE_enum("format", "auto", ["auto", *benchmarks.names()], "Format of the list.")
_CONFIG = cli.define_recipe("A recipe whose adapter, prompts and frames are used (default: the checkpoint's own).")
_FRAMES = flags.DEFINE_integer(
    "frames",
    None,
    "Frames of a clip (default: those of the config or the checkpoint).",
    lower_bound=1,
    upper_bound=10_000,
)
_CHAT_TEMPLATE = flags.DEFINE_string(
    "chat_template", None, "A chat template in place of the model's own: vicuna_v1, chatml, llama-3 ..."
)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Type of the computation (default: the model's).")
_FALLBACK = flags.DEFINE_bool(
    "fallback", False, "If the newest step of the run is damaged, rename it and use the newest intact step."
)
_LIMIT = flags.DEFINE_integer("limit", None, "Ask only the first so many questions.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    8,
    "Questions answered at a time. It changes answers by rounding at most.",
    lower_bound=1,
    upper_bound=4096,
)
_PREFIX = flags.DEFINE_string(
    "prefix", None, "Text that every answer starts with; only what follows it is scored (default: the config's)."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Most tokens of an answer (default: the recipe's, else 128).", lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "0 takes the likeliest token; above 0, tokens are sampled.", lower_bound=0
)
_TOP_P = flags.DEFINE_float(
    "top_p",
    1.0,
    "Sample from the smallest set of tokens whose probabilities add up to this.",
    lower_bound=0,
    upper_bound=1,
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sampling.")
_STOP = flags.DEFINE_multi_string("stop", [], "A string that ends an answer.")
_MATCH = flags.DEFINE_enum(
    "match",
    "normalised",
    ["exact", "normalised", "contains", "yes_no"],
    "The rule for free text. yes_no compares whether reply and answer say yes or no. It decides only on questions "
    "whose answer is yes or no (normalised decides on the others), and is refused if the list has no such question.",
)
_PARSER = flags.DEFINE_enum(
    "parser", "strict", ["strict", "slowfast_released", "t2vid_released"], "The rule for multiple choice."
)
_DENOMINATOR = flags.DEFINE_enum(
    "denominator",
    "all",
    ["all", "answered", "released"],
    "Questions that count. all: a reply without an answer is wrong; answered: it is left out; released: what the "
    "released code leaves out is left out.",
)
_CONTROL = flags.DEFINE_multi_enum(
    "control", [], _CONTROLS, "A control that is asked as well and has an accuracy of its own."
)


def _decoding() -> "Decoding":
    from vlvm_jax.inference.requests import Decoding

    try:
        return Decoding(_MAX_NEW_TOKENS.value, _TEMPERATURE.value, _TOP_P.value, tuple(_STOP.value), _SEED.value)
    except InputError as error:
        raise InputError(f"--{error}") from None


def _required(flag: flags.FlagHolder) -> str:
    if not flag.value:
        raise InputError(f"--{flag.name} is required; see --help")
    return flag.value


def main() -> None:
    checkpoint, questions, output = map(_required, (_CHECKPOINT, _QUESTIONS, _OUTPUT))
    from vlvm_jax.console import Waiting

    with Waiting("starting") as waits:
        from vlvm_jax import memory, storage
        from vlvm_jax.config import command_line
        from vlvm_jax.evaluation import benchmark
        from vlvm_jax.evaluation.results import Rules
        from vlvm_jax.parallel import compilation_cache
        from vlvm_jax.stop import StopSignal
        from vlvm_jax.weights.sources import set_aside_damaged

        storage.check_output(output, "--output")
        waits.now("reading the recipe")
        config = None if _CONFIG.value is None else command_line.read()
    options = benchmark.Options(
        checkpoint=checkpoint,
        questions=questions,
        answers=_ANSWERS.value,
        media=_MEDIA.value,
        output=output,
        format=_FORMAT.value,
        frames=_FRAMES.value,
        limit=_LIMIT.value,
        batch_size=_BATCH_SIZE.value,
        prefix=_PREFIX.value,
        controls=tuple(dict.fromkeys(cast(Any, _CONTROL.value))),
        decoding=_decoding(),
        chat_template=_CHAT_TEMPLATE.value,
        dtype=cast(Any, _DTYPE.value),
        rules=Rules(cast(Any, _MATCH.value), cast(Any, _PARSER.value), cast(Any, _DENOMINATOR.value)),
    )
    memory.give_back_large()
    compilation_cache.keep()
    if _FALLBACK.value:
        set_aside_damaged(checkpoint, "--checkpoint")
    with StopSignal() as stop:
        benchmark.run(options, config, stop)


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or ""))
