"""Eight CPU devices for every test, set before jax starts."""

import multiprocessing
import multiprocessing.spawn
import os
import shutil
import tempfile
from multiprocessing import resource_tracker

from support import xla

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags(8)}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one process has compiled, the others (workers of pytest, commands that tests run) read: many run the same steps.
OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vlvm_jax-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="count a skipped test as failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _failed_if_skipped((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _failed_if_skipped((yield), collector.config)


def _failed_if_skipped(report, config):
    if report.skipped and config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which --no-skips does not allow: {report.longrepr}"
    return report


def pytest_unconfigure():
    if OWN_CACHE is not None:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def storage_works():
    """No test begins with what another one, or a `StorageError` made for a test, has left behind."""
    from vlvm_jax import storage

    storage.failing.clear()


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Root folder with the small embedded data set, made once for all tests."""
    from support.small import DATA

    from vlvm_jax.data.embedded import shapes

    root = tmp_path_factory.mktemp("data")
    shapes.ensure(shapes.ShapesOptions(**DATA), root)
    return root


@pytest.fixture
def embedded(data_root, monkeypatch):
    """The same, for code in this process."""
    monkeypatch.setenv("VLVM_JAX_DATA", str(data_root))
    return data_root


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An empty bucket (`gcs.Gcs`) of this module's own; code in this process reaches it too."""
    import fsspec
    from support import gcs

    with gcs.serve(tmp_path_factory.mktemp("bucket")) as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield served
    fsspec.get_filesystem_class("gs").clear_instance_cache()


@pytest.fixture
def starting(tmp_path):
    """Workers start with these lines of a shell."""
    resource_tracker.ensure_running()
    executable = os.fsdecode(multiprocessing.spawn.get_executable())

    def set_lines(lines: str) -> None:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\n{lines}\nexec "{executable}" "$@"\n')
        script.chmod(0o755)
        multiprocessing.set_executable(str(script))

    yield set_lines
    multiprocessing.set_executable(executable)
