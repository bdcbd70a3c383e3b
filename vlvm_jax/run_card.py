"""The machine and package versions for a run card."""

import platform
from importlib import metadata
from typing import Any

import jax

FILE = "run_card.json"


def environment() -> dict[str, Any]:
    """Versions of the packages, and the devices."""
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
