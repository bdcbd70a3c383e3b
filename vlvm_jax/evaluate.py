"""Ask a model a list of questions about clips, and score what it says by fixed rules.

usage: python -m vlvm_jax.evaluate --checkpoint=DIR|ID --questions=FILE --output=DIR [--media=DIR] [flags]

  --checkpoint      a training run, a stage or step of it, an import, or a Hugging Face directory or id.
  --questions       a list in one of the formats of docs/evaluate.md: .json, .jsonl or .csv.
  --answers         the list of answers where questions come without (default: X_a.json beside X_q.json).
  --media           folder of the clips (default: the list's own folder); names are tried with .mp4, .avi, .mov and
                    .mkv, and with "v_" before them.
  --output          folder, local or gs://, for predictions.jsonl, scored.jsonl, results.json and run_card.json. The
                    same command continues there and asks nothing twice.
  --format          of the list: auto (default), or one of those in docs/evaluate.md.
  --config          a recipe whose adapter, prompts and frames are to be used; default: the checkpoint's own.
  --frames          of a clip (default: the config's or the checkpoint's).
  --chat_template   in place of the model's own: vicuna_v1, chatml, llama-3 ...
  --dtype           float32 or bfloat16 (default: the model's).
  --fallback        if the run's newest step is damaged, rename it aside and take the newest one that is not.
  --limit           the first so many questions only.
  --batch_size      questions answered at a time (default 8); answers depend on it by rounding at most.
  --prefix          with which every answer is made to begin; replies are what comes after it (default: the config's).
  --max_new_tokens  (default: the recipe's, else 128), --temperature (default 0: greedy), --top_p, --seed,
  --stop            a string that ends an answer; may be given several times.
  --match           what decides on free text: exact, normalised (default), contains or yes_no. All are reported.
                    yes_no compares whether reply and answer say yes or no. It decides only on questions whose answer is
                    yes or no (normalised decides on the others), and is refused if the list has no such question.
  --parser          what decides on multiple choice: strict (default), slowfast_released or t2vid_released; likewise.
                    docs/evaluate.md has the rules.
  --denominator     all: what has no answer is wrong (default); answered: it is left out; released: as the released
                    code leaves out.
  --control         blank_video, shuffled_frames, shuffled_prompt or shuffled_question; asked beside the questions as
                    they are, with an accuracy of its own; may be given several times.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run the same command again), 1 a fault of ours.
"""

import sys
from typing import TYPE_CHECKING, Any, cast

from absl import flags
from ml_collections import config_flags

from vlvm_jax import cli
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import benchmarks

if TYPE_CHECKING:
    from vlvm_jax.inference.requests import Decoding

_CONTROLS = ["blank_video", "shuffled_frames", "shuffled_prompt", "shuffled_question"]
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The model.")
_QUESTIONS = flags.DEFINE_string("questions", None, "The list.")
_ANSWERS = flags.DEFINE_string("answers", None, "The list of answers.")
_MEDIA = flags.DEFINE_string("media", None, "Folder of the clips; default: the list's.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.")
_FORMAT = flags.DEFINE_enum("format", "auto", ["auto", *benchmarks.names()], "Of the list.")
_FALLBACK = flags.DEFINE_bool("fallback", False, "Past damaged steps.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe.", lock_config=True)
_FRAMES = flags.DEFINE_integer("frames", None, "Of a clip.", lower_bound=1, upper_bound=10_000)
_CHAT_TEMPLATE = flags.DEFINE_string("chat_template", None, "In place of the model's own.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the computation.")
_LIMIT = flags.DEFINE_integer("limit", None, "Questions.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Questions at a time.", lower_bound=1, upper_bound=4096)
_PREFIX = flags.DEFINE_string("prefix", None, "With which answers begin.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", None, "Of an answer.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Of sampling.", lower_bound=0, upper_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling.")
_STOP = flags.DEFINE_multi_string("stop", [], "Strings that end an answer.")
_MATCH = flags.DEFINE_enum("match", "normalised", ["exact", "normalised", "contains", "yes_no"], "For free text.")
_PARSER = flags.DEFINE_enum("parser", "strict", ["strict", "slowfast_released", "t2vid_released"], "For letters.")
_DENOMINATOR = flags.DEFINE_enum("denominator", "all", ["all", "answered", "released"], "What is counted.")
_CONTROL = flags.DEFINE_multi_enum("control", [], _CONTROLS, "Asked too.")


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
        from vlvm_jax.stop import StopSignal
        from vlvm_jax.weights.sources import set_aside_damaged

        storage.check_output(output, "--output")
        waits.now("reading the recipe")
        config = None if _CONFIG.value is None else command_line.read()
    options = benchmark.Options(
        checkpoint=checkpoint, questions=questions, answers=_ANSWERS.value, media=_MEDIA.value, output=output,
        format=_FORMAT.value, frames=_FRAMES.value, limit=_LIMIT.value,
        batch_size=_BATCH_SIZE.value, prefix=_PREFIX.value, controls=tuple(dict.fromkeys(cast(Any, _CONTROL.value))),
        decoding=_decoding(), chat_template=_CHAT_TEMPLATE.value, dtype=cast(Any, _DTYPE.value),
        rules=Rules(cast(Any, _MATCH.value), cast(Any, _PARSER.value), cast(Any, _DENOMINATOR.value)),
    )  # fmt: skip
    memory.give_back_large()
    if _FALLBACK.value:
        set_aside_damaged(checkpoint, "--checkpoint")
    with StopSignal() as stop:
        benchmark.run(options, config, stop)


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or ""))
