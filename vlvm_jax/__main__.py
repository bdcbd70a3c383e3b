"""Turn an image vision-language model into a video model, in JAX.

usage: python -m vlvm_jax.COMMAND [flags]
       python -m vlvm_jax --version

`python -m vlvm_jax.COMMAND --help` describes a command.
"""

import sys
from pathlib import Path

from absl import flags

from vlvm_jax import __version__, cli
from vlvm_jax.errors import InputError

COMMANDS = ("train", "generate", "evaluate", "convert", "compile", "data")
_VERSION = flags.DEFINE_bool("version", False, "Print the version.")


def summaries() -> list[tuple[str, str]]:
    """What each command does, in one line."""
    files = {name: Path(__file__).with_name(f"{name}.py") for name in COMMANDS}
    files["data"] = Path(__file__).with_name("data") / "__main__.py"
    return [(name, cli.summary(file)) for name, file in files.items()]


def main(arguments: list[str]) -> None:
    if _VERSION.value:
        print(f"vlvm_jax {__version__}")
    elif arguments and arguments[0] in COMMANDS:
        raise InputError(f"a command is run as python -m vlvm_jax.{arguments[0]}")
    elif arguments:
        raise InputError(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}; see --help")
    else:
        print(cli.help_text(__doc__ or "", __name__, summaries()))


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", positional=True, commands=summaries()))
