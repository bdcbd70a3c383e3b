"""Anything parameters can be taken from: a Hugging Face checkpoint, an import of one, a training run.

`open_source` tells which it is; all give shapes at once and parameters one by one, in the shardings asked for.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from vlvm_jax import json_text, manifest, printing, storage
from vlvm_jax.config import (
    AdapterConfig,
    Config,
    ConnectorConfig,
    DecoderConfig,
    LoraConfig,
    Settings,
    VisionConfig,
    build,
)
from vlvm_jax.errors import InputError, brief
from vlvm_jax.families import _unreadable as unreadable
from vlvm_jax.models.params import Params
from vlvm_jax.weights import integrity, param_store
from vlvm_jax.weights.hf import hub
from vlvm_jax.weights.hf.source import HFSource, Tell, adapter_of, model_shapes, silent

MODEL_FILE = "model.json"
PARAMS_FOLDER = "params"
_ITEM = "params"  # of a run's step
FORMAT = 2  # of an import; since 2 it has a manifest
HF_FOLDER = "hf"  # config.json, tokenizer, processors and carried tensors of the checkpoint it came from


class Source(Protocol):
    """Anything that parameters can be read from.

    Attributes:
    name: what to call it in messages.
    shapes: parameter paths with shapes and dtypes as stored.
    vision, decoder, connector, adapter: settings of the parts it has, None for those it lacks.
    stages: names of the training stages it has been through here.
    hf_files: folder with the Hugging Face files that belong to it, None if there are none.
    """

    name: str
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    vision: VisionConfig | None
    decoder: DecoderConfig | None
    connector: ConnectorConfig | None
    adapter: AdapterConfig | None
    stages: tuple[str, ...]

    hf_files: epath.Path | None

    def load(self, abstract: Mapping[str, jax.ShapeDtypeStruct], tell: Tell = silent) -> Params:
        """The named parameters in the dtypes and shardings asked for; `tell` is called with bytes as they are read."""
        ...

    def read(self, path: str) -> np.ndarray:
        """One whole parameter on the host, as stored."""
        ...


class HFDirectory:
    """A Hugging Face checkpoint; a tower that it leaves in its own repository is opened with it."""

    stages: tuple[str, ...] = ()

    def __init__(self, directory: epath.Path, where: str):
        self.name = str(directory)
        self.checkpoint = HFSource(Path(directory))
        hf = self.checkpoint.hf
        self.shapes: Mapping[str, jax.ShapeDtypeStruct] = self.checkpoint.shapes
        self.vision, self.decoder, self.connector = hf.vision, hf.decoder, hf.connector
        self.adapter = adapter_of(hf)
        self.hf_files: epath.Path | None = directory
        self._tower: HFSource | None = None
        if hf.tower_source is not None:
            self._tower = HFSource(Path(hub.resolve(hf.tower_source, f"{where}: its mm_vision_tower")))
            wanted = model_shapes(hf)
            tower = {path: shape for path, shape in self._tower.shapes.items() if path in wanted}
            self.shapes = {**self.shapes, **tower}

    def load(self, abstract: Mapping[str, jax.ShapeDtypeStruct], tell: Tell = silent) -> Params:
        of_tower = {path: a for path, a in abstract.items() if path not in self.checkpoint.shapes}
        rest = {path: a for path, a in abstract.items() if path in self.checkpoint.shapes}
        tower = self._tower.load(of_tower, tell) if self._tower is not None else {}
        return {**self.checkpoint.load(rest, tell), **tower}

    def read(self, path: str) -> np.ndarray:
        return self._holder(path).read(path)

    def check_finite(self, path: str, value: np.ndarray) -> None:
        """Raises `InputError` if a whole parameter, as `read` gives it, holds NaN or infinity."""
        self._holder(path).check_finite(path, value)

    def _holder(self, path: str) -> HFSource:
        in_tower = self._tower is not None and path not in self.checkpoint.shapes
        return self._tower if in_tower and self._tower is not None else self.checkpoint


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a stored model consists of; an import of a bare tower or decoder has only that."""

    vision: VisionConfig | None
    decoder: DecoderConfig | None
    adapter: AdapterConfig | None
    lora: LoraConfig | None = None


class Stored:
    """Parameters that this library wrote: an import (`convert import`), or a checkpoint of a training run.

    Attributes:
      root: the folder of the import or of the run.
      stages: names of the stages trained up to here.
      config: of the run, None for an import.
      unfinished: names of the run's stages that are not finished.
    """

    unfinished: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        root: epath.Path,
        params: epath.Path,
        item: str | None,
        parts: Parts,
        stages: tuple[str, ...] = (),
        config: Config | None = None,
    ):
        self.name, self.root, self.params, self.item = name, root, params, item
        self.stages, self.config = stages, config
        try:
            self.shapes: Mapping[str, jax.ShapeDtypeStruct] = param_store.shapes(params, item)
        except (ValueError, OSError) as error:  # Orbax's own errors are among them
            raise InputError(
                f"{params}: no whole checkpoint here ({type(error).__name__}); make or copy it again"
            ) from None
        self.vision, self.decoder, self.adapter, self.lora = parts.vision, parts.decoder, parts.adapter, parts.lora
        self.connector = None if parts.adapter is None else parts.adapter.connector
        folder = root / HF_FOLDER
        self.hf_files: epath.Path | None = folder if folder.exists() else None

    def load(self, abstract: Mapping[str, jax.ShapeDtypeStruct], tell: Tell = silent) -> Params:
        return param_store.load(self.params, abstract, self.item, tell)

    def read(self, path: str) -> np.ndarray:
        return param_store.read(self.params, path, self.item)


def open_source(text: str, where: str) -> HFDirectory | Stored:
    """Finds out what `text` names: a hub id, or a directory of one of the kinds above.

    What this library wrote is compared with its manifest first (`integrity`).

    Raises:
      InputError: it is none of them, or not whole.
    """
    directory = hub.resolve(text, where)
    if (directory / MODEL_FILE).exists():
        _check_import(directory)
        return Stored(str(directory), directory, directory / PARAMS_FOLDER, None, _imported_parts(directory))
    if run := _run_of(directory):
        return _stored_run(directory, *run)
    if (directory / "config.json").exists():
        if "://" in str(directory):
            raise InputError(
                f"{where}: {directory}: Hugging Face checkpoints are read from a local disk; copy it there, and "
                "`convert import` it to the bucket if many hosts shall start from it"
            )
        return HFDirectory(directory, where)
    unreadable.check_no_lora(directory)
    raise InputError(
        f"{where}: {directory} is neither a Hugging Face directory (config.json), nor an import (model.json), nor a "
        "training run or one of its stages"
    )


def set_aside_damaged(text: str, where: str) -> None:
    """For `--fallback`: renames a run's damaged steps aside, so that `open_source` finds the newest whole one.

    Does nothing for anything but a run.

    Raises:
      InputError: every step is damaged, or `text` names one step.
    """
    directory = hub.resolve(text, where)
    if (directory / MODEL_FILE).exists() or not (run := _run_of(directory)):
        return
    workdir, stage, step = run
    if step is not None:
        raise InputError(
            f"--fallback: {where} names step {step}; name its stage, {directory.parent.parent}, to fall back to another"
        )
    stage = stage or _finished(workdir)[-1]
    steps = list(_steps(workdir, stage))
    wanted = _result_of(workdir, stage, {int(path.name) for path in steps}) if steps else None
    integrity.newest_whole(steps, (_ITEM,), wanted)


def _check_import(directory: epath.Path) -> None:
    try:
        newer = json_text.loads((directory / MODEL_FILE).read_text())["format"] >= FORMAT
    except (ValueError, TypeError, KeyError):
        newer = False  # the manifest tells, or else whoever reads the file
    integrity.check_import(directory, newer, "; import the checkpoint again")


def _imported_parts(directory: epath.Path) -> Parts:
    path = directory / MODEL_FILE
    try:
        values = json_text.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); import the checkpoint again") from None
    kinds = {"vision": VisionConfig, "decoder": DecoderConfig, "adapter": AdapterConfig}
    parts = {
        key: None if values[key] is None else build(cls, values[key], f"{path}: {key}") for key, cls in kinds.items()
    }
    return Parts(**parts)


def _run_of(directory: epath.Path) -> tuple[epath.Path, str | None, int | None] | None:
    """(workdir, stage, step) for a workdir, a stage's folder in it, or a step's folder in that; else None."""
    if _is_run(directory):
        return directory, None, None
    if (directory / "checkpoints").exists() and _is_run(directory.parent):
        return directory.parent, directory.name, None
    if directory.parent.name == "checkpoints" and _is_run(directory.parent.parent.parent):
        return directory.parent.parent.parent, directory.parent.parent.name, int(directory.name)
    return None


def _is_run(directory: epath.Path) -> bool:
    path = directory / "config.json"
    try:
        return path.exists() and "stages" in json_text.loads(path.read_text())
    except (ValueError, TypeError):  # whoever reads the file next says what is wrong with it
        if (directory / manifest.FILE).exists():
            integrity.check_beside_stages(directory)
        return False


def _stored_run(directory: epath.Path, workdir: epath.Path, stage: str | None, step: int | None) -> Stored:
    integrity.check_beside_stages(workdir)
    config = build(Config, json_text.loads((workdir / "config.json").read_text()), str(workdir / "config.json"))
    names = [entry.name for entry in config.stages]
    unfinished = tuple(name for name in names if not _is_finished(workdir, name))
    if stage is None:
        stage = _finished(workdir)[-1]
        if stage != names[-1]:
            _tell_once(_not_the_last(workdir, stage, unfinished))
    steps = {int(path.name): path for path in _steps(workdir, stage)}
    if not steps:
        raise InputError(f"{directory}: no complete checkpoint here")
    params = workdir / stage / "checkpoints" / str(_result_of(workdir, stage, steps) if step is None else step)
    others = [str(other) for other in sorted(steps) if str(other) != params.name]
    advice = f"; its stage also has step {', '.join(others)}" if others else "; its stage has no other step"
    integrity.check_step(params, (_ITEM,), f"{advice} (--fallback takes the newest one that is not damaged)")
    trained = names[: names.index(stage) + 1]
    model = config.model
    parts = Parts(model.vision, model.decoder, model.adapter, model.lora)
    stored = Stored(str(params), workdir, params, _ITEM, parts, tuple(trained), config)
    stored.unfinished = unfinished
    return stored


def _not_the_last(workdir: epath.Path, stage: str, unfinished: tuple[str, ...]) -> str:
    """What to tell of a run whose last stage is not finished, where only the run was named."""
    begun = [str(workdir / name) for name in unfinished if _steps(workdir, name)]
    can = f"; to use the newest checkpoint of another stage, give {' or '.join(begun)}" if begun else ""
    return (
        f"{workdir}: this run is unfinished ({', '.join(unfinished)} not finished); its last finished stage, {stage}, "
        f"is used{can or f'; name a stage as {workdir}/STAGE'}"
    )


@functools.cache
def _tell_once(text: str) -> None:
    """Prints a line to stderr, in each process once."""
    print(printing.printable(text), file=sys.stderr, flush=True)


def _finished(workdir: epath.Path) -> list[str]:
    """Names of the stages of a run that are finished, in order.

    Raises:
      InputError: none is.
    """
    names = [stage["name"] for stage in json_text.loads((workdir / "config.json").read_text())["stages"]]
    finished = [name for name in names if _is_finished(workdir, name)]
    if not finished:
        begun = [str(workdir / name) for name in names if _steps(workdir, name)]
        can = f"to use the newest step of one, give {' or '.join(begun)}" if begun else "none has a checkpoint yet"
        raise InputError(f"{workdir}: no stage of this run is finished; {can}")
    return finished


def _is_finished(workdir: epath.Path, stage: str) -> bool:
    return (workdir / stage / "result.json").exists()


def result_step(result: Mapping[str, Any]) -> int:
    """The step whose checkpoint is the result of a finished stage.

    Args:
      result: what its `result.json` holds.
    """
    return int(result.get("best_step") or result["steps"])


def _result_of(workdir: epath.Path, stage: str, steps: Collection[int]) -> int:
    """The step to take of a stage: its result, or the newest of one that is not finished.

    Raises:
      InputError: the file that names the result is damaged.
    """
    file = workdir / stage / "result.json"
    if not file.exists():
        return max(steps)
    try:
        result = manifest.unsealed(file.read_text())
        step = result_step(result) if "steps" in result else max(steps)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file}: damaged ({brief(error)}); give the training command again, which writes it anew"
        ) from None
    if step not in steps:
        _tell_once(f"{workdir / stage}: step {step}, its result, is not there; taking the newest, {max(steps)}")
    return step if step in steps else max(steps)


def _steps(workdir: epath.Path, stage: str) -> list[epath.Path]:
    """The folders of a stage's checkpoints."""
    folder = workdir / stage / "checkpoints"
    steps = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    if storage.is_remote(os.fspath(folder)):  # without this file a step is still being written, or never was to its end
        return [path for path in steps if (path / param_store.COMMITTED).exists()]
    return steps


def same_part(want: Settings, have: Settings | None, part: str, name: str, ignored: tuple[str, ...] = ()) -> None:
    """Raises `InputError` for the first setting in which a recipe differs from the checkpoint it starts from."""
    if have is None:
        raise InputError(f"config.model.init_from: {name} has no {part}; name another source for it")
    for field in type(want).model_fields:
        mine, theirs = getattr(want, field), getattr(have, field)
        if field not in ignored and mine != theirs:
            raise InputError(
                f"config.model.{part}.{field}: {mine!r} here, but {theirs!r} in {name}; set the key to that, or start "
                "the recipe with base=DIRECTORY to take all sizes from the checkpoint"
            )
