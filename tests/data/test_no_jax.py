"""Loader workers start many times over: what they import of ours must not bring JAX along.

Grain brings it, for its profiler and its Orbax handler, where it finds it; it works without.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlvm_jax

ROOT = Path(vlvm_jax.__file__).parent
# The command is no part of what workers import: it may ask a recipe, which knows the model.
DATA = sorted(file for file in (ROOT / "data").rglob("*.py") if file.name != "__main__.py")
FORBIDDEN = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow"}


def imported(file):
    """Full names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import, which this check does not follow"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def file_of(name):
    """The file of a module of ours, or None. Importing `a.b.c` also runs the packages `a` and `a.b`."""
    path = ROOT.parent.joinpath(*name.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


def reachable(start):
    todo, found = list(start), {}
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found[file] = imported(file)
        for name in found[file]:
            parts = name.split(".")
            if parts[0] == "vlvm_jax":
                parents = [".".join(parts[: i + 1]) for i in range(len(parts))]
                todo += [f for f in map(file_of, parents) if f]
    return found


@pytest.mark.parametrize("file", DATA, ids=lambda f: f.stem)
def test_data_imports_no_jax(file):
    assert not {name for name in imported(file) if name.split(".")[0] in FORBIDDEN}


def test_nor_does_anything_of_ours_that_data_imports():
    found = reachable(DATA)
    assert {ROOT / "config" / "run.py", ROOT / "errors.py", ROOT / "__init__.py"} <= found.keys()
    guilty = {file.name: names for file, names in found.items() if {n.split(".")[0] for n in names} & FORBIDDEN}
    assert not guilty


IMPORT_ALL = """
import importlib, sys
sys.modules.update(dict.fromkeys(("jax", "jaxlib", "orbax")))  # as if not installed, for Grain
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*(name for name, module in sys.modules.items() if module))
"""


def test_all_of_data_imports_where_there_is_no_jax():
    """Nor do other packages that it imports load any of it, but for Grain where it can."""
    modules = [file.parent if file.name == "__init__.py" else file.with_suffix("") for file in DATA]
    names = [".".join(module.relative_to(ROOT.parent).parts) for module in modules]
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {*names, "grain", "numpy"} <= loaded
    assert not loaded & FORBIDDEN


def test_the_check_sees_what_it_should(tmp_path):
    file = tmp_path / "m.py"
    file.write_text("def f():\n    import jax.numpy as jnp\n    from flax import nnx\n")
    assert {"jax.numpy", "flax", "flax.nnx"} == imported(file)
    assert (
        file_of("vlvm_jax.data.media.frames") == ROOT / "data" / "media" / "frames.py"
        and file_of("vlvm_jax.absent") is None
    )
