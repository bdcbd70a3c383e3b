"""A run's folder: checks which run it belongs to, and claims it."""

import json
import os
import time
from typing import Any

from etils import epath

from vlvm_jax import config as config_lib
from vlvm_jax import json_text, manifest, storage
from vlvm_jax.config import Config
from vlvm_jax.console import say
from vlvm_jax.data.embedded.shapes import ShapesOptions
from vlvm_jax.data.sources.text_pages import TextPages
from vlvm_jax.errors import InputError
from vlvm_jax.models import adapters
from vlvm_jax.parallel import processes
from vlvm_jax.weights import integrity

_ANEW = "; remove config.json and the folder hf there and run the same command again, which writes them anew"


def check_workdir(config: Config, workdir: epath.Path) -> None:
    """Raises `InputError` if the folder holds another config's run; only mesh, workers and cache may differ.

    A setting that the folder's `config.json` lacks is one that was added since; it counts as its default.
    """
    if storage.is_remote(os.fspath(workdir)) and not storage.has_bucket(os.fspath(workdir)):
        raise InputError(f"--workdir={workdir}: there is no such bucket; make it first")
    path = workdir / "config.json"
    if not path.exists():
        return
    integrity.check_beside_stages(workdir, _ANEW)
    try:
        stored = json_text.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it, if the run there is this config's") from None
    mine = _with_defaults(config)
    try:
        theirs = _with_defaults(config_lib.build(Config, stored))
    except InputError as error:
        raise InputError(
            f"--workdir={workdir}: the config.json there is not one of this version ({error}); give another folder, or "
            "continue with the version that wrote it"
        ) from None
    for old, new, key, name in (
        (theirs, mine, "mesh", "config.mesh"),
        (theirs["data"], mine["data"], "workers", "config.data.workers"),
        (theirs["data"], mine["data"], "cache_mb", "config.data.cache_mb"),
    ):
        if old[key] != new[key]:
            say(f"{workdir}: continuing with another {_first_difference(old[key], new[key], name)}")
            old[key] = new[key]
    if theirs != mine:
        raise InputError(
            f"--workdir={workdir}: holds another config's run (they differ in {_first_difference(theirs, mine)}); give "
            "another folder, or the same config to continue it"
        )


def _with_defaults(config: Config) -> dict[str, Any]:
    """The config as JSON, in which the options that it holds as given (`Any`) have all their defaults too.

    Raises:
      InputError: an option is unknown or wrong.
    """
    values = config_lib.to_json(config)
    adapter = config.model.adapter
    values["model"]["adapter"]["options"] = config_lib.to_json(adapters.options_of(adapter.name, adapter.options))
    if config.data.embedded is not None:
        options = config_lib.build(ShapesOptions, config.data.embedded, "config.data.embedded")
        values["data"]["embedded"] = config_lib.to_json(options)
    for group in ("stages", "evals"):
        for number, part in enumerate(getattr(config, group)):
            for index, entry in enumerate(part.data):
                if entry.format == "text_pages":
                    where = f"config.{group}.{number}.data.{index}.pages"
                    pages = config_lib.to_json(config_lib.build(TextPages, entry.pages, where))
                    values[group][number]["data"][index]["pages"] = pages
    return values


def claim_workdir(config: Config, workdir: epath.Path) -> None:
    """Writes `config.json`. Called once everything is checked, so that a faulty config claims no folder."""
    if not processes.primary():
        return
    (workdir / manifest.FILE).unlink(missing_ok=True)  # it is of the files before
    storage.write_text(os.fspath(workdir / "config.json"), json.dumps(config_lib.to_json(config), indent=2))


def check_shared(workdir: epath.Path, patience: float = 60.0) -> None:
    """Raises `InputError` if process 0's folder is not visible here; network file systems may be slow."""
    deadline = time.monotonic() + patience
    while not (workdir / "config.json").exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"--workdir={workdir}: process 0 wrote here, but this process sees nothing; share a folder"
            )
        time.sleep(1)


def _first_difference(a: Any, b: Any, path: str = "config") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            if a.get(key) != b.get(key):
                return _first_difference(a.get(key), b.get(key), f"{path}.{key}")
    if isinstance(a, list) and isinstance(b, list):
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return _first_difference(x, y, f"{path}.{index}")
        return f"{path}: {_entries(a)} there, {_entries(b)} here"
    return f"{path}: {a!r} there, {b!r} here"


def _entries(values: list) -> str:
    """Names of entries that have one, such as stages; else how many there are."""
    named = values and all(isinstance(value, dict) and "name" in value for value in values)
    return ", ".join(value["name"] for value in values) if named else f"{len(values)} entries"
