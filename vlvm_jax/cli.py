"""What all commands share: faults of the user's end in one line and exit code 2, interruptions in 75."""

import io
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

from vlvm_jax.errors import InputError, Interrupted, tell


def run(main: Callable[..., None], usage: str, argv: Sequence[str] | None = None, *, positional: bool = False) -> int:
    """Parses the flags that the command's module defined, calls `main`, and returns the exit code.

    Args:
      positional: whether the command takes arguments beside flags; `main` gets them as a list.
    """
    _write_any_text()
    argv = list(sys.argv if argv is None else argv)
    if any(arg in ("--help", "-h", "-help", "--helpfull") for arg in argv[1:]):
        print(usage.strip())
        return 0
    _silence_tracker()
    try:
        rest = _parse(argv)
        if positional:
            main(rest)
        elif rest:
            raise InputError(f"unexpected argument {rest[0]!r}; see --help")
        else:
            main()
        return 0
    except (InputError, Interrupted) as error:
        tell(error)
        if isinstance(error, Interrupted) and error.at_once:
            sys.stdout.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _write_any_text() -> None:
    """Has characters that a terminal lacks written as escapes, and typed bytes read even if they are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def typed(text: str, where: str) -> str:
    """The text that a person typed, even if Python took the terminal for one without UTF-8.

    Raises:
      InputError: it is not UTF-8.
    """
    try:
        return text.encode("utf-8", errors="surrogateescape").decode("utf-8")
    except UnicodeError:
        raise InputError(f"{where}: not UTF-8 text") from None


def _silence_tracker() -> None:
    """The process that removes what workers and their parent shared shall not warn when a parent ended at once."""
    known = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [known, "ignore:resource_tracker:UserWarning"]))


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)[1:]
    except (flags.Error, KeyError, AttributeError, ValueError, TypeError, FileNotFoundError) as error:
        # ml_collections reports a bad override or a missing config file by whatever exception came first.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        message = " ".join(str(text).replace("\\n", " ").replace("\\", "").split()) or type(error).__name__
        if isinstance(error, KeyError | AttributeError):
            named = [arg.split("=")[0] for arg in argv if arg.startswith("--config.")]
            faulty = [name for name in named if name.split(".")[-1] in message] or named
            message = f"{', '.join(faulty)}: the config has no such key ({message})"
        raise InputError(message) from None
