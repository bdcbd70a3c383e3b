"""One set of tiny checkpoints for all tests of this folder."""

import pytest


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    families = pytest.importorskip("families")
    return families.Checkpoints(tmp_path_factory.mktemp("checkpoints"))
