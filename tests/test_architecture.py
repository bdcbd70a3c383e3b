"""The house: imports go down, in no circle, and what is added by one file is named nowhere else."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from vlvm_jax import families
from vlvm_jax.config import VisionConfig
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.data.sources import formats
from vlvm_jax.evaluation import benchmarks
from vlvm_jax.families._vlm import VLM
from vlvm_jax.models import adapters

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlvm_jax"
# From the top down. A module belongs to the longest name here that it starts with, and may import what shares its name
# here or stands further down.
FLOORS = (
    ("benchmarks",),
    ("configs",),
    ("__main__", "train", "generate", "evaluate", "convert", "compile", "commands", "data.__main__", "recipes"),
    ("ahead_of_time",),
    ("evaluation", "training"),
    ("inference",),
    ("samples", "passes"),
    ("weights",),
    ("models",),
    ("data.tools", "data.embedded"),
    ("data.batch",),
    ("data.sample",),
    ("data.sources",),
    ("data.prompt", "data.media"),
    ("data.pages",),
    ("families",),
    ("data.images",),
    ("data.json_lines",),
    ("data.record",),
    ("data",),
    ("parallel", "gcs", "run_card"),
    ("cli", "config", "workers", "stop", "pictures"),
    ("console", "manifest"),
    ("storage", "jsonl"),
    ("errors", "json_text"),
    ("memory", "printing", ""),
)


def modules() -> dict[str, Path]:
    """All modules of the package, the recipes and the benchmarks, by name; those of the package without its own."""
    found = {}
    for folder in (PACKAGE, ROOT / "configs", ROOT / "benchmarks"):
        for file in folder.rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(parts).removeprefix("vlvm_jax").removeprefix(".")] = file
    return found


MODULES = modules()


def imported(file: Path) -> set[str]:
    """The modules that a file imports anywhere, also within functions and for type checkers alone."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if _own(name) in MODULES else node.module for name in full)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {own for name in names if (own := _own(name)) in MODULES}


def _own(name: str) -> str:
    if name == "vlvm_jax":
        return ""
    return name.removeprefix("vlvm_jax.") if name.startswith(("vlvm_jax.", "configs", "benchmarks")) else "-"


GRAPH = {name: imported(file) for name, file in MODULES.items()}


def floor(module: str) -> tuple[int, str]:
    """The number of a module's floor, and its name there."""
    places = [(i, name) for i, names in enumerate(FLOORS) for name in names if (f"{module}.").startswith(f"{name}.")]
    return max(places or [(len(FLOORS) - 1, "")], key=lambda place: len(place[1]))


def test_imports_go_down():
    wrong = []
    for module, targets in GRAPH.items():
        (number, name) = floor(module)
        for target in targets:
            (below, other) = floor(target)
            if below < number or (below == number and other != name):
                wrong.append(f"{module} -> {target}")
    assert not wrong


def test_there_is_no_circle():
    waiting = {module: set(targets) - {module} for module, targets in GRAPH.items()}
    while free := [module for module, targets in waiting.items() if not targets]:
        for module in free:
            del waiting[module]
        for targets in waiting.values():
            targets.difference_update(free)
    assert not waiting


def test_every_module_has_a_floor():
    assert {module for module in MODULES if floor(module)[1] == ""} == {""}


def names_and_strings(file: Path) -> set[str]:
    """Names and short texts in a file's code; not those of docstrings."""
    tree = ast.parse(file.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return names | {text for text in texts if len(text) < 40}


def outside(folder: Path) -> list[Path]:
    """The package's files but for those of one folder and the recipes, which choose by name."""
    return [file for file in PACKAGE.rglob("*.py") if not {folder, PACKAGE / "recipes"} & {*file.parents}]


PAPERS = {"ftfv", "FTFV", "red_villm", "RED-VILLM"}  # names of methods that are no adapter's


# Not `frames`: a clip's frames are named so too.
@pytest.mark.parametrize("method", sorted({*adapters.available(), *PAPERS} - {"frames"}))
def test_only_adapters_know_the_methods(method):
    for file in outside(PACKAGE / "models" / "adapters"):
        assert method not in names_and_strings(file), file


def test_only_families_know_the_vlms():
    """Kinds of towers, formats of data and chat templates are other things, though some have a VLM's name."""
    others = {
        *get_args(VisionConfig.model_fields["kind"].annotation),
        *formats.FORMATS,
        *benchmarks.names(),
        *TEMPLATES,
    }
    types = {name for family in families.every().values() if isinstance(family, VLM) for name in family.model_types}
    for file in outside(PACKAGE / "families"):
        assert not (types - others) & names_and_strings(file), file
