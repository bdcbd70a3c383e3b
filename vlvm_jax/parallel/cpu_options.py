"""XLA options for programs that run on a CPU in less than fp32.

XLA's CPU backend multiplies matrices in fp32: it converts bf16 weights first. Its pass that moves loop-invariant code
out of loops would convert all layers' weights at once, before the scan over the layers, and keep the copies: 4 bytes a
parameter more than the 2 that the weights have. Without the pass each layer's weights are converted where they are
read. The values are the same.
"""

import functools
import os
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

_DISABLED = "xla_disable_hlo_passes"
_HOISTS_WEIGHTS = "while-loop-invariant-code-motion"


def compiler_options(mesh: Mesh, dtype: str) -> dict[str, str] | None:
    """`compiler_options` of `jax.jit` for a program of this dtype on these devices; None if it needs none.

    Passes that the user disables with XLA_FLAGS stay disabled. An XLA that does not know the option runs without it.
    """
    if mesh.devices.flat[0].platform != "cpu" or jnp.dtype(dtype).itemsize >= 4:
        return None
    own = re.findall(rf"--{_DISABLED}=(\S+)", os.environ.get("XLA_FLAGS", ""))
    passes = [name for name in ",".join(own[-1:]).split(",") if name and name != _HOISTS_WEIGHTS]
    return _known(_DISABLED, ",".join([*passes, _HOISTS_WEIGHTS]))


@functools.cache
def _known(name: str, value: str) -> dict[str, str] | None:
    """The option, if the installed XLA takes it."""
    options: dict = {name: value}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=options).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):  # "No such compile option"
        return None
    return options
