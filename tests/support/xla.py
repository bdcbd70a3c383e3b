"""How XLA compiles for tests, which compile much and compute little."""

import importlib.metadata

_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end a process that names it
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")


def flags(devices: int) -> str:
    """`XLA_FLAGS` for that many CPU devices; to be set before jax starts."""
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *_FLAGS])
