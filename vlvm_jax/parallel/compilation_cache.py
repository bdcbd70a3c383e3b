"""Compiled programs kept on disk between runs, unless the user has set JAX_COMPILATION_CACHE_DIR himself.

In the user's cache folder, of a bounded size, a folder for every JAX and every kind of CPU: home folders are shared
between machines, and JAX's own key does not hold the instructions that a CPU knows.
"""

import functools
import hashlib
import os
import platform
from pathlib import Path

import jax
import jaxlib

from vlvm_jax import storage

_BYTES = 1 << 30  # of all programs of a folder; those used longest ago go first
_SECONDS = 0.2  # of compilation from which a program is worth keeping
_CPU_INFO = Path("/proc/cpuinfo")


def keep() -> None:
    """Has JAX keep what it compiles from now on. For a process that is alone: several find a shared folder themselves.

    Does nothing where the user has said something else, or where the folder cannot be made.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache
    if chosen or jax.process_count() > 1:
        return
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(place, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_compilation_cache_max_size", _BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def folder() -> Path:
    """Where programs of this JAX for this machine are."""
    made_for = f"jax-{jax.__version__}-{jaxlib.__version__}"
    return storage.user_cache() / "compiled" / f"{made_for}-{platform.machine()}-{_cpu()}"


@functools.cache
def _cpu() -> str:
    """A hash of what this CPU can do, or of its name where the system does not tell."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    known = {line for line in lines if line.partition("\t")[0].strip(" :") in ("flags", "Features", "model name")}
    text = "\n".join(sorted(known)) or platform.processor()
    return hashlib.sha256(text.encode()).hexdigest()[:8]
