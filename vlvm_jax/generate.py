"""Ask a model about a video or images.

usage: python -m vlvm_jax.generate --checkpoint=DIR [--video=FILE | --image=FILE ...]
                                   (--prompt=TEXT | --questions=FILE | --interactive) [--flag=value ...]

Generation uses all devices. Progress goes to stderr.

Exit codes: 0 done, 2 bad input (one line says what), 1 an internal error.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import flags

from vlvm_jax import cli, json_text, printing, storage
from vlvm_jax.data import json_lines
from vlvm_jax.errors import InputError

if TYPE_CHECKING:
    from vlvm_jax.inference.answering import Answer, Answering, Decoding, Request

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The model: a training run, an import, a directory in Hugging Face format, or a hub id."
)
_VIDEO = flags.DEFINE_string("video", None, "A clip, or a folder with its frames.")
_IMAGE = flags.DEFINE_multi_string("image", [], "An image. Without --video and --image, the prompt is text alone.")
_PROMPT = flags.DEFINE_string("prompt", None, "One question. Its answer is printed as it is generated.")
_QUESTIONS = flags.DEFINE_string(
    "questions",
    None,
    'A file of questions: one per line, or a JSON list of strings or of {"id": ..., "question": ...}.',
)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "A conversation, one question per line; /clear forgets what was said, /quit ends."
)
_CONFIG = cli.define_recipe("A recipe whose model and data settings replace the checkpoint's.")
_FRAMES = flags.DEFINE_integer(
    "frames",
    None,
    "Frames of the clip (default: those of the run or the recipe, else 8).",
    lower_bound=1,
    upper_bound=10_000,
)
_CHAT_TEMPLATE = flags.DEFINE_string(
    "chat_template", None, "A chat template in place of the model's own: vicuna_v1, chatml, llama-3 ..."
)
_PREFIX = flags.DEFINE_string(
    "prefix", None, "Text that every answer starts with; it is not repeated in the output (default: the recipe's)."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Most tokens of an answer (default: the recipe's, else 128)."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token; above 0, tokens are sampled.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the smallest set of tokens whose probabilities add up to this.")
_STOP = flags.DEFINE_multi_string("stop", [], "A string that ends an answer.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sampling.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Type of the computation (default: the model's).")
_FALLBACK = flags.DEFINE_bool(
    "fallback", False, "If the newest step of the run is damaged, rename it and use the newest intact step."
)
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON per answer: text, tokens, seconds.")
_SHOW = flags.DEFINE_string(
    "show",
    None,
    "A PNG file to draw: the frames that were used, with their times, what the adapter takes from each, and how many "
    "tokens that makes.",
)


_CUT = "the question was cut to the {} tokens that CLIP reads to pick frames; the answer is to all of it"


def main() -> None:
    from vlvm_jax import console

    with console.on_stderr():
        _main()


def _main() -> None:
    from vlvm_jax.console import Waiting

    _check_flags()
    with Waiting("starting"):
        from vlvm_jax import memory
        from vlvm_jax.config import command_line
        from vlvm_jax.data.faults import BadSampleError

        decoding, asked = _decoding(), _questions()
        media = _media()
        config = None if _CONFIG.value is None else command_line.read()
    memory.give_back_large()
    try:
        with Waiting(f"opening {', '.join(str(path) for _, path in media)}"):
            _probe(media)
        _run(config, media, asked, decoding)
    except BadSampleError as error:
        what = "no such file" if error.cause == "missing" else f"cannot be used ({error.cause})"
        raise InputError(f"{'--video' if _VIDEO.value is not None else '--image'}: {error.detail}: {what}") from None


def _run(config, media, asked, decoding: "Decoding") -> None:
    from vlvm_jax.console import Waiting

    with Waiting("starting"):
        from vlvm_jax.inference.answering import Request
        from vlvm_jax.inference.loading import load
        from vlvm_jax.parallel import compilation_cache
        from vlvm_jax.weights.sources import set_aside_damaged

    if _FALLBACK.value and _CHECKPOINT.value is not None:
        set_aside_damaged(_CHECKPOINT.value, "--checkpoint")
    compilation_cache.keep()
    answering = load(
        _CHECKPOINT.value,
        config=config,
        frames=_FRAMES.value,
        chat_template=_CHAT_TEMPLATE.value,
        dtype=cast(Any, _DTYPE.value),
    )
    if asked is None:
        _chat(answering, media, decoding)
        return
    requests = [Request(name, media, question, prefix=_PREFIX.value) for name, question in asked]
    if len(requests) == 1 and not _JSON.value:
        answers = [_stream(answering, requests[0], decoding)]
    else:
        answers = _answer_all(answering, requests, decoding)
    if answering.prompts.cut:
        print(_CUT.format(answering.prompts.spec.data.prompt_length), file=sys.stderr, flush=True)
    if _SHOW.value is not None:
        _show(answering, requests[0], answers[0])


# --- flags -----------------------------------------------------------------------------------------------------------


def _check_flags() -> None:
    modes = {"--prompt": _PROMPT.value is not None, "--questions": _QUESTIONS.value is not None}
    modes["--interactive"] = _INTERACTIVE.value
    given = [name for name, used in modes.items() if used]
    if len(given) != 1:
        raise InputError(f"give exactly one of {', '.join(modes)}; found {' and '.join(given) or 'none'}; see --help")
    if _VIDEO.value is not None and _IMAGE.value:
        raise InputError("give --video=FILE or --image=FILE, not both; see --help")
    if _SHOW.value is not None and _VIDEO.value is None and not _IMAGE.value:
        raise InputError("--show draws the frames of --video or --image; give one of them")
    if _INTERACTIVE.value and (_JSON.value or _SHOW.value):
        raise InputError(f"--interactive excludes {'--json' if _JSON.value else '--show'}")
    if _CHECKPOINT.value is None and _CONFIG.value is None:
        raise InputError("--checkpoint is required: a run, an import, a Hugging Face directory or a hub id")
    if _PROMPT.value is not None and not _PROMPT.value.strip():
        raise InputError("--prompt is empty; ask something")
    if _SHOW.value is not None and not _SHOW.value.lower().endswith(".png"):
        raise InputError(f"--show={_SHOW.value}: expected a file name that ends in .png")
    if _SHOW.value is not None:
        storage.check_output(_SHOW.value, "--show", folder=False)


def _decoding() -> "Decoding":
    from vlvm_jax.inference.requests import Decoding

    try:
        return Decoding(_MAX_NEW_TOKENS.value, _TEMPERATURE.value, _TOP_P.value, tuple(_STOP.value), _SEED.value)
    except InputError as error:
        raise InputError(f"--{error}") from None


def _media():
    from vlvm_jax.data.record import MediaKind

    kind: MediaKind = "video" if _VIDEO.value is not None else "image"
    return tuple((kind, path) for path in ([_VIDEO.value] if kind == "video" else _IMAGE.value))


def _questions() -> list[tuple[str, str]] | None:
    """(id, question) of each; None for a conversation."""
    if _INTERACTIVE.value:
        return None
    if _PROMPT.value is not None:
        return [("--prompt", cli.typed(_PROMPT.value, "--prompt"))]
    path = _QUESTIONS.value or ""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"--questions={path}: cannot be read ({type(error).__name__}); expected a text file") from None
    text, _ = json_lines.decode(data, f"--questions={path}")
    questions = _listed(data, path) if _is_json(text, path) else _lines(text.replace("\r\n", "\n"))
    if not questions:
        raise InputError(f"--questions={path}: no question in it; write one a line, or a JSON list")
    for name, question in questions:
        if not question.strip():
            raise InputError(f"--questions={path}: question {name} is empty")
    return questions


def _lines(text: str) -> list[tuple[str, str]]:
    """Each line as it stands. Only line feeds end lines: other scripts' separators are part of a question."""
    return [(str(number), line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _is_json(text: str, path: str) -> bool:
    return path.lower().endswith((".json", ".jsonl")) or text.lstrip().startswith("[")


def _listed(data: bytes, path: str) -> list[tuple[str, str]]:
    questions = []
    for entry in json_lines.parse(data, f"--questions={path}"):
        number, value = entry.index + 1, entry.value
        if entry.error:
            raise InputError(f"--questions={path}: {entry.error}")
        value = {"question": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("question"), str):
            raise InputError(f'--questions={path}: entry {number} is neither a string nor {{"question": ...}}')
        questions.append((str(value.get("id", number)), value["question"]))
    return questions


def _probe(media) -> None:
    """Opens every file before the model is loaded, which may take minutes."""
    from vlvm_jax.data.media import frames

    for kind, path in media:
        if kind == "image":
            frames.image_size(path)
        else:
            _refuse_clips(path)
            frames.decode_clip(path, 1, lambda pixels: pixels)


def _refuse_clips(path: str) -> None:
    """Raises `InputError` for a folder of clips, where one of frames is meant."""
    from vlvm_jax import storage
    from vlvm_jax.data.media_names import CLIPS
    from vlvm_jax.data.record import STILLS

    if not storage.is_dir(path):
        return
    names = storage.names(path)
    clips = [name for name in names if name.lower().endswith(CLIPS)]
    if clips and not any(name.lower().endswith(STILLS) for name in names):
        listed = ", ".join(clips[:5]) + (" ..." if len(clips) > 5 else "")
        raise InputError(f"--video={path}: a folder of clips, not of a clip's frames; name one of them: {listed}")


# --- answers ---------------------------------------------------------------------------------------------------------


def _stream(answering: "Answering", request: "Request", decoding: "Decoding") -> "Answer":
    """Writes an answer as it comes."""
    pieces = answering.stream(request, decoding)
    while True:
        try:
            printing.write(next(pieces), end="")
        except StopIteration as end:
            printing.write("")
            return end.value


def _answer_all(answering: "Answering", requests: list["Request"], decoding: "Decoding") -> list["Answer"]:
    answers = []
    for request, answer in zip(requests, answering.answer(requests, decoding), strict=True):
        answers.append(answer)
        if _JSON.value:
            values = {"question": request.question, **dataclasses.asdict(answer)}
            printing.write(json_text.readable(values))
        else:
            printing.write(f"{request.question}\n  {answer.text}")
    return answers


def _chat(answering: "Answering", media, decoding: "Decoding") -> None:
    from vlvm_jax.data.record import Turn
    from vlvm_jax.inference.requests import Request, conversation

    earlier: tuple[Turn, ...] = ()
    for line in _lines_asked():
        try:
            question = cli.typed(line, "the question")
        except InputError as error:
            printing.write(str(error))
            continue
        if question.strip() == "/quit":
            return
        if question.strip() == "/clear":
            earlier = ()
            continue
        request = Request("chat", media, conversation(earlier, question), prefix=_PREFIX.value)
        try:
            answer = _stream(answering, request, decoding)
        except InputError as error:
            printing.write(f"{error} (/clear forgets what was said)")
            continue
        prefix = answering.prompts.answers.prefix if _PREFIX.value is None else _PREFIX.value
        earlier = (*earlier, Turn(question, f"{prefix} {answer.text}".strip()))


def _lines_asked() -> Iterator[str]:
    """What a person, or a pipe, asks."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def _show(answering: "Answering", request: "Request", answer: "Answer") -> None:
    from vlvm_jax.console import Waiting, say

    path = Path(_SHOW.value or "")
    with Waiting(f"drawing {path}"):
        from vlvm_jax.inference import picture

        png = picture.contact_sheet(answering, request, answer)
        try:
            path.write_bytes(png)
        except OSError as error:
            raise InputError(f"--show={path}: cannot be written ({error.strerror})") from None
    say(f"written: {path}")


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or ""))
