"""Exceptions that carry an exit code. Commands turn them into one line on stderr (`vlvm_jax.cli`)."""

import sys


class InputError(Exception):
    """The user's input is at fault: the message names the file, key or flag, what was expected and what to do."""

    exit_code = 2


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived and everything worth keeping is saved: run the same command again to continue."""

    exit_code = 75
    at_once = False  # whether the process ends without waiting for its threads


def brief(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def tell(error: InputError | Interrupted) -> None:
    """Says what happened in one line on stderr."""
    from vlvm_jax.printing import one_line

    kind = "error" if error.exit_code == 2 else "interrupted"
    print(f"{kind}: {one_line(str(error))}", file=sys.stderr, flush=True)
    if error.exit_code == 75:
        print("run the same command again to continue", file=sys.stderr, flush=True)
