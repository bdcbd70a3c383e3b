"""Eight CPU devices for every test, set before jax starts."""

import os

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest  # noqa: E402


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
