"""Packages that come with an extra of this one."""

import importlib
from typing import Any

from vlvm_jax.errors import InputError


def need(module: str, extra: str, why: str = "reads this data") -> Any:
    """A module that comes with an extra of this package.

    Args:
      why: what it does here, for the message.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{module} is not installed, which {why}; run: pip install 'vlvm_jax[{extra}]'") from None
