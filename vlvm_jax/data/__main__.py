"""Check data before training, and turn it into shards.

usage: python -m vlvm_jax.data COMMAND [arguments] [flags]

`python -m vlvm_jax.data COMMAND --help` describes a command. docs/your_data.md lists the sources.

Exit codes: 0 done, 2 bad input (one line says what), 75 interrupted (run the same command again), 1 an internal error.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from vlvm_jax import cli
from vlvm_jax.errors import InputError

COMMANDS = ("check", "prepare", "verify", "synthesize", "diversity")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the subcommand that the first argument names, with the rest of the arguments."""
    argv = list(sys.argv if argv is None else argv)
    command = argv[1] if len(argv) > 1 else ""
    if command in COMMANDS:
        module = importlib.import_module(f"vlvm_jax.commands.{command}")
        return cli.run(module.main, module.__doc__ or "", [f"{argv[0]} {command}", *argv[2:]], positional=True)
    folder = Path(__file__).parents[1] / "commands"
    summaries = [(name, cli.summary(folder / f"{name}.py")) for name in COMMANDS]
    return cli.run(lambda _: _unknown(command), __doc__ or "", argv[:2], positional=True, commands=summaries)


def _unknown(command: str) -> None:
    if not command:
        raise InputError(f"name a command: {', '.join(COMMANDS)}; see --help")
    raise InputError(f"no command {command!r}; there are {', '.join(COMMANDS)}; see --help")


if __name__ == "__main__":
    sys.exit(run())
