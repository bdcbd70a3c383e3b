"""The arrows of the package point down, and nothing but an adapter knows which method runs."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vlvm_jax"
LOWER = (
    "memory",
    "printing",
    "json_text",
    "jsonl",
    "weights",
    "models",
    "data",
    "parallel",
    "manifest",
    "storage",
    "config",
    "errors",
)
# A package may import itself and what stands to its right.
ALLOWED = {
    "models": {"models", "parallel", "config", "errors"},
    "data": {"data", "storage", "printing", "json_text", "jsonl", "memory", "config", "errors"},
    "parallel": {"parallel", "config", "errors"},
    "evaluation": {"evaluation", "inference", "training", *LOWER},
    "training": {"training", "evaluation", *LOWER},
    "weights": {"__version__", *LOWER} - {"memory", "printing", "jsonl"},
    "inference": {"inference", "training", *LOWER},
    "gcs.py": {"storage", "errors"},
    "manifest.py": {"storage"},
    "storage.py": {"errors"},
    "json_text.py": set(),
    "jsonl.py": {"json_text"},
    "config": {"config", "errors"},
    "errors.py": {"printing"},
    "printing.py": set(),
    "memory.py": set(),
    "cli.py": {"errors"},
}
METHODS = {"ftfv", "weighted_sampler", "FTFV", "red_villm", "spatiotemporal", "RED-VILLM", "prompt_guided", "slow_fast"}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "vlvm_jax" else [f"vlvm_jax.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("vlvm_jax.")}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_point_down(part):
    found = [PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py")
    files = [file for file in found if file.name != "__main__.py"]  # commands stand above all
    assert files
    for file in files:
        assert imported(file) <= ALLOWED[part], file


def test_only_adapters_know_the_methods():
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name in ("adapters", "recipes") or file.name in ("samplers.py", "train.py"):
            continue
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        strings = {
            node.value
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 40
        }
        assert not METHODS & (names | strings), file
