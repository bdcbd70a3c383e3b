"""Eight CPU devices for every test, set before jax starts."""

import os

# Tests compile much and compute little: the cheap compiler passes are enough.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS = f"--xla_force_host_platform_device_count=8 {FAST_COMPILE}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest  # noqa: E402


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Root folder with the small embedded data set, made once for all tests."""
    from recipes import DATA

    from vlvm_jax.data import shapes

    root = tmp_path_factory.mktemp("data")
    shapes.ensure(shapes.ShapesOptions(**DATA), root)
    return root


@pytest.fixture
def embedded(data_root, monkeypatch):
    """The same, for code in this process."""
    monkeypatch.setenv("VLVM_JAX_DATA", str(data_root))
    return data_root
