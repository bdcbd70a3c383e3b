"""Formats of question lists, one file each (docs/evaluate.md). `evaluation.question_lists` reads them.

Every module of this folder is a format, unless its name begins with "_". A list has the format that goes by its file's
ending, or else the one of lowest `precedence` that its first record matches.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlvm_jax.evaluation.benchmarks._format import ListFormat


def names() -> list[str]:
    """The names of all formats. Quick to call: the modules are not imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


@functools.cache
def formats() -> Mapping[str, "ListFormat"]:
    """All formats by name, in the order of their precedence."""
    by_name = {name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names()}
    return dict(sorted(by_name.items(), key=lambda item: item[1].precedence))
