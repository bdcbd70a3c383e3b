"""What all commands share: help made from their flags, recipes by name, and how they end.

An error of the user's ends in one line and exit code 2, an interruption in 75.
"""

import ast
import errno
import inspect
import io
import math
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from vlvm_jax.errors import InputError, Interrupted, brief, tell

# Of the machine or of what the user named, wherever it comes up: no room, no permission, another kind of file.
_OUTSIDE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
)
_WIDTH = 120  # columns of --help
_HELP = ("--help", "-h", "-help", "--helpfull")

flags.disclaim_key_flags()  # a flag belongs to the command that defines it, also if it does so by a function of ours


def run(
    main: Callable[..., None],
    doc: str,
    argv: Sequence[str] | None = None,
    *,
    positional: bool = False,
    commands: Iterable[tuple[str, str]] = (),
) -> int:
    """Parses the flags that `main`'s module defined, calls `main`, and returns the exit code.

    Args:
      doc: the module's docstring, of which `--help` is made; see `help_text`.
      positional: whether the command takes arguments beside flags; `main` gets them as a list.
      commands: names and summaries of subcommands, for `--help`.
    """
    _write_any_text()
    argv = list(sys.argv if argv is None else argv)
    if any(arg in _HELP for arg in argv[1:]):
        print(help_text(doc, main.__module__, commands))
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


# --- help ------------------------------------------------------------------------------------------------------------


def help_text(doc: str, module: str, commands: Iterable[tuple[str, str]] = ()) -> str:
    """What `--help` prints: a docstring, with the command's arguments, subcommands and flags below the usage.

    Args:
      doc: a summary, a paragraph that begins with `usage:`, where there are any the arguments in indented lines
        (`  FILE  what it is`), then remarks. It does not mention flags: their help strings are the only source.
      module: name of the module that defined the flags.
      commands: names and summaries of subcommands.
    """
    paragraphs = inspect.cleandoc(doc).split("\n\n")
    at = next((number for number, text in enumerate(paragraphs, 1) if text.startswith("usage:")), len(paragraphs))
    before, after = paragraphs[:at], paragraphs[at:]
    entries = []
    while after and after[0].startswith("  "):
        entries += re.findall(r"^  (\S+) +(.*(?:\n   .*)*)", after.pop(0), re.MULTILINE)
    owner = sys.argv[0] if module == "__main__" else module  # as absl calls the module that is run
    entries += [*commands, *map(_flag_entry, flags.FLAGS.flags_by_module_dict().get(owner, []))]
    return "\n\n".join([*before, *([_table(entries)] if entries else []), *after])


def _table(entries: Sequence[tuple[str, str]]) -> str:
    """Names and texts in two columns; the texts are wrapped."""
    column = max(len(name) for name, _ in entries) + 4
    lines = []
    for name, text in entries:
        wrapped = textwrap.wrap(
            " ".join(text.split()), _WIDTH - column, break_long_words=False, break_on_hyphens=False
        ) or [""]
        lines += [f"  {name}".ljust(column) + wrapped[0], *(" " * column + line for line in wrapped[1:])]
    return "\n".join(lines)


def _flag_entry(flag: flags.Flag) -> tuple[str, str]:
    """A flag and its help string, with its choices and its default in brackets."""
    text = " ".join((flag.help or "").split())
    choices = flag.parser.enum_values if isinstance(flag.parser, flags.EnumParser) else ()
    repeated = isinstance(flag, flags.MultiFlag)
    if choices:
        text = text.removeprefix(f"<{'|'.join(choices)}>: ")  # put there by absl, as is:
    text = text.removesuffix("; repeat this option to specify a list of values")
    name = f"--[no]{flag.name}" if flag.boolean and flag.default else f"--{flag.name}"
    return name, with_notes(text, choices, flag.default, repeated)


def with_notes(text: str, choices: Sequence[Any] = (), default: Any = None, repeated: bool = False) -> str:
    """A help string followed by a flag's choices and its default; None, False and what is empty are not told."""
    notes = []
    if choices:
        notes.append(f"one of {', '.join(map(str, choices))}")
    if default is not None and default is not False and default not in ("", []):
        value = f"{default:g}" if isinstance(default, float) else str(default)
        notes.append(f"default: {value.lower() if default is True else value}")
    if repeated:
        notes.append("may be repeated")
    return f"{text} [{'; '.join(notes)}]" if notes else text


def summary(file: Path) -> str:
    """The first line of a module's docstring, without importing the module."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


# --- recipes ---------------------------------------------------------------------------------------------------------


def define_recipe(purpose: str) -> flags.FlagHolder:
    """Defines `--config`, which takes a packaged recipe by name, or a file with a `get_config` function.

    Args:
      purpose: what the command does with the recipe, for its help.
    """
    form = (
        f"Give NAME[:PRESET[,KEY=VALUE...]], where NAME is a recipe ({', '.join(recipes())}) or a Python file that "
        "defines get_config(). Flags of the form --config.path.to.key=value override single settings."
    )
    holder = config_flags.DEFINE_config_file("config", None, f"{purpose} {form}", lock_config=True)
    flags.FLAGS["config"].parser = _RecipeParser("config")
    return holder


def recipes() -> dict[str, str]:
    """The files of the packaged recipes, by name."""
    return {file.stem: str(file) for file in sorted(Path(__file__).with_name("recipes").glob("[!_]*.py"))}


class _RecipeParser(config_flags.config_flags.ConfigFileFlagParser):
    """Loads a recipe by its name or from its file."""

    def parse(self, path: str) -> Any:
        name, colon, argument = path.partition(":")
        return super().parse(f"{recipes().get(name, name)}{colon}{argument}")


# --- endings ---------------------------------------------------------------------------------------------------------


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
            names = ", ".join(recipes())
            reason = os.strerror(error.errno) if error.errno else "no such file"
            raise InputError(f"--{name}={flag.config_filename}: {reason}; give a file, or one of {names}")
        if not hasattr(flag.value, "to_dict"):
            kind = type(flag.value).__name__
            raise InputError(f"--{name}={flag.config_filename}: its get_config() returned a {kind}, not a ConfigDict")


def _in_config_file(error: BaseException, argv: Sequence[str]) -> str:
    """What a config file raised and where, "" if the error is none of a config file."""
    given = [arg.removeprefix("--config=").partition(":")[0] for arg in argv if arg.startswith("--config=")]
    files = [recipes().get(name, name) for name in given]
    raised: BaseException | None = error
    while raised is not None:
        frames = traceback.extract_tb(raised.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename in files]
        if isinstance(raised, SyntaxError) and raised.filename in files:
            lines = [raised.lineno]
        loading = any(frame.name in ("_LoadConfigModule", "_load_source") for frame in frames)
        called = any(frame.line.startswith("config = config_module.get_config(") for frame in frames if frame.line)
        if lines or loading or called:
            line = f", line {lines[-1]}" if lines else ""
            why = f"{type(raised).__name__}: {brief(raised)}" if str(raised) else type(raised).__name__
            if isinstance(raised, AttributeError) and not lines:
                why = "has no get_config()"
            return f"--config={(given or [''])[-1]}{line}: {why}"
        raised = raised.__context__
    return ""
