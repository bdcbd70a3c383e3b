"""What a run card says of the machine and the packages."""

import platform
from importlib import metadata
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """For a run card: versions of what computes, and on what it does."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av", "vlvm_jax")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
