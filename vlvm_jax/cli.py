"""What all commands share: faults of the user's end in one line and exit code 2, interruptions in 75."""

import errno
import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import config_flags

from vlvm_jax.errors import InputError, Interrupted, brief, tell

# Of the machine or of what the user named, wherever it comes up: no room, no permission, another kind of file.
_OUTSIDE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR
)  # fmt: skip


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
        _check_file_names()
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
    except MemoryError as error:
        return _told(InputError(f"not enough memory ({brief(error)}); use fewer frames, rows or workers"))
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        return _told(InputError(f"{error.filename or 'a file'}: {error.strerror}"))


def _check_file_names() -> None:
    """Raises `InputError` if Python cannot open files whose names are not ASCII: every such clip would be missing.

    That takes both a locale without UTF-8 and `PYTHONUTF8=0`. With `LC_ALL=C` alone, Python reads names as UTF-8.
    """
    if sys.getfilesystemencoding() == "ascii":
        raise InputError(
            "Python is set to find files with ASCII names only; unset PYTHONUTF8 or set it to 1, or take a locale such "
            "as LC_ALL=C.UTF-8"
        )


def _told(error: InputError) -> int:
    tell(error)
    return error.exit_code


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
    """What is left of the command line beside flags.

    Raises:
      InputError: a flag, a config file, or what the file or a flag says, is at fault.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is refused here
    try:
        rest = flags.FLAGS(argv)[1:]
        _check_numbers()
        _load_configs()
        return rest
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a config file may raise anything
        if place := _in_config_file(error, argv):
            raise InputError(place) from None
        # ml_collections reports a bad override or a missing config file by whatever exception came first.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        message = " ".join(str(text).replace("\\n", " ").replace("\\", "").split()) or type(error).__name__
        overridden = not isinstance(error, flags.Error) and isinstance(error, TypeError)
        if overridden or isinstance(error, KeyError | AttributeError | IndexError):
            named = [arg.split("=")[0] for arg in argv if arg.startswith("--config.")]
            faulty = [name for name in named if name.split(".")[-1] in message] or named
            message = f"{', '.join(faulty)}: the config has no such key ({message})"
        elif not isinstance(error, flags.Error | ValueError | TypeError | OSError):
            raise
        raise InputError(message) from None
    finally:
        logging.set_verbosity(verbosity)


def _check_numbers() -> None:
    """Raises `InputError` for a number that is none, or infinite, which flags' own bounds let pass."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value if flags.FLAGS[name].present else None
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name}={value}: expected a finite number")


def _load_configs() -> None:
    """Raises `InputError` for a config file that cannot be opened, which ml_collections tells at the first use only."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if not isinstance(flag, config_flags.config_flags._ConfigFlag) or not flag.present:
            continue
        if flag.value is None:
            raise InputError(f"--{name}={flag.config_filename}: its get_config() returned nothing; return a ConfigDict")
        if isinstance(flag.value, config_flags.config_flags._ErrorConfig):
            error = object.__getattribute__(flag.value, "_error")
            reason = os.strerror(error.errno) if error.errno else "no such file"
            raise InputError(f"--{name}={flag.config_filename}: {reason}; give a recipe, as configs/ftfv.py")
        if not hasattr(flag.value, "to_dict"):
            found = type(flag.value).__name__
            raise InputError(f"--{name}={flag.config_filename}: its get_config() returned a {found}, not a ConfigDict")


def _in_config_file(error: BaseException, argv: Sequence[str]) -> str:
    """What a config file raised and where, "" if the error is none of a config file."""
    given = [arg.removeprefix("--config=").partition(":")[0] for arg in argv if arg.startswith("--config=")]
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename in given]
        if isinstance(seen, SyntaxError) and seen.filename in given:
            lines = [seen.lineno]
        loading = any(frame.name in ("_LoadConfigModule", "_load_source") for frame in frames)
        called = any(frame.line.startswith("config = config_module.get_config(") for frame in frames if frame.line)
        if lines or loading or called:
            line = f", line {lines[-1]}" if lines else ""
            why = f"{type(seen).__name__}: {brief(seen)}" if str(seen) else type(seen).__name__
            if isinstance(seen, AttributeError) and not lines:
                why = "has no get_config()"
            return f"--config={(given or [''])[-1]}{line}: {why}"
        seen = seen.__context__
    return ""
