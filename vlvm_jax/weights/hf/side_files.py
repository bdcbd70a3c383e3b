"""The files that stand beside weights in a Hugging Face directory: config, tokenizer, processors, templates."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors import deserialize
from safetensors.numpy import save

from vlvm_jax import families, storage
from vlvm_jax.data.files import read_json, without_code
from vlvm_jax.families.base import CLIP_FOLDER, NAMED_TOWER_FOLDER
from vlvm_jax.weights.hf.safetensors_files import DTYPES
from vlvm_jax.weights.hf.source import HFSource

CARRIED_FILE = "carried.safetensors"
TOWER_FOLDER = "encoder"  # files of a tower that comes from another checkpoint than the decoder, beside the decoder's
SCORING_FILE = "prompt_tokenizer.json"  # of a CLIP that was trained here
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    SCORING_FILE,
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    *PROCESSORS,
)
_MAY_NAME_CODE = ("config.json", "generation_config.json", "tokenizer_config.json", *PROCESSORS)


def of_tower(files: epath.Path) -> epath.Path:
    """Where the files of the tower are: mostly among all others."""
    return files / TOWER_FOLDER if (files / TOWER_FOLDER).exists() else files


def of_clip(files: epath.Path) -> epath.Path:
    """Where the files of a CLIP that an adapter holds are."""
    return files / CLIP_FOLDER


def copy_into(files: epath.Path, folder: epath.PathLike, names: Iterable[str] = NAMES) -> None:
    """Copies those files that there are, without what in them names code: that is not the copy's to name."""
    for name in names:
        if not (files / name).exists():
            continue
        target = epath.Path(folder) / name
        values = read_json(files / name) if name in _MAY_NAME_CODE else {}
        if (clean := without_code(values)) != values:
            target.write_text(json.dumps(clean, indent=2) + "\n")
        else:
            (files / name).copy(target, overwrite=True)


def copy_flat(files: epath.Path, folder: epath.PathLike) -> None:
    """The same into one folder, where the tower's processors stand, not the decoder's."""
    copy_into(files, folder, (name for name in NAMES if name not in PROCESSORS))
    copy_into(of_tower(files), folder, PROCESSORS)


def copy(source: Any, folder: epath.Path, tower: epath.Path | None = None, clip: epath.Path | None = None) -> None:
    """Copies the files of a source, and the tensors it carries, into a new folder; outside buckets whole or not at all.

    Args:
      tower: where the files of the tower are, if not among the source's.
      clip: where those of a CLIP beside it are.
    """
    in_bucket = storage.is_remote(os.fspath(folder))  # where folders cannot be renamed
    temporary = folder if in_bucket else folder.parent / f"{folder.name}.new"
    if not in_bucket and temporary.exists():
        temporary.rmtree()
    temporary.mkdir(parents=True, exist_ok=True)
    files: epath.Path = source.hf_files
    copy_into(files, temporary)
    if tower is not None:
        (temporary / TOWER_FOLDER).mkdir(exist_ok=True)
        copy_into(tower, temporary / TOWER_FOLDER, ("config.json", *PROCESSORS))
    if clip is not None:
        (temporary / CLIP_FOLDER).mkdir(exist_ok=True)
        copy_into(clip, temporary / CLIP_FOLDER)
    _keep_named_tower(files, temporary)
    if tower is not None:
        _keep_named_tower(tower, temporary / TOWER_FOLDER)
    if (files / CARRIED_FILE).exists():
        (files / CARRIED_FILE).copy(temporary / CARRIED_FILE, overwrite=True)
    checkpoint = getattr(source, "checkpoint", None)  # a Hugging Face directory: its carried tensors are in its files
    if checkpoint is not None and checkpoint.carried:
        (temporary / CARRIED_FILE).write_bytes(save(carried_of(checkpoint)))
    if not in_bucket:
        temporary.rename(folder)


def _keep_named_tower(files: epath.Path, folder: epath.Path) -> None:
    """Keeps the config and processor of a tower that the checkpoint only names, by a directory or hub id, so that the
    copy can be read where neither is."""
    raw = read_json(files / "config.json")
    family = families.of_config(raw)
    if family is None:
        return
    place: epath.PathLike | None = files / NAMED_TOWER_FOLDER
    if "://" not in str(files):
        place = family.named_tower(Path(files), raw)
    if place is not None and (epath.Path(place) / "config.json").exists():
        (folder / NAMED_TOWER_FOLDER).mkdir(exist_ok=True)
        copy_into(epath.Path(place), folder / NAMED_TOWER_FOLDER, ("config.json", *PROCESSORS))


def copy_tokenizer(tokenizer: epath.Path, folder: epath.Path, clip: epath.Path | None = None) -> None:
    """`tokenizer.json` and a `prompt_tokenizer.json` beside it, of a model that was not imported; a CLIP's files where
    it has one that was."""
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if clip is not None:
        (folder / CLIP_FOLDER).mkdir(parents=True, exist_ok=True)
        copy_into(clip, folder / CLIP_FOLDER)
    if (file.parent / SCORING_FILE).exists():
        storage.write_bytes(os.fspath(folder / SCORING_FILE), (file.parent / SCORING_FILE).read_bytes())
    storage.write_bytes(os.fspath(folder / "tokenizer.json"), file.read_bytes())


_TEMPORARY: list[tempfile.TemporaryDirectory] = []


def temporary_folder(name: str) -> epath.Path:
    """A new folder that is removed when the process ends."""
    _TEMPORARY.append(tempfile.TemporaryDirectory(prefix=f"vlvm_jax-{name}-"))
    return epath.Path(_TEMPORARY[-1].name)


def local(files: epath.Path) -> epath.Path:
    """The folder itself, or a copy on this machine of one in a bucket."""
    if "://" not in str(files):
        return files
    folder = temporary_folder("hf")
    copy_into(files, folder)
    for part in (TOWER_FOLDER, CLIP_FOLDER, NAMED_TOWER_FOLDER, f"{TOWER_FOLDER}/{NAMED_TOWER_FOLDER}"):
        if (files / part).exists():
            (folder / part).mkdir()
            copy_into(files / part, folder / part)
    return folder


def carried_of(checkpoint: HFSource) -> dict[str, np.ndarray]:
    """The tensors to keep aside of a Hugging Face directory, by their names relative to the tower."""
    prefix = checkpoint.layout.prefixes.get("tower", "")
    return {name.removeprefix(prefix): checkpoint.reader.read(name) for name in checkpoint.carried}


def carried(folder: epath.Path) -> dict[str, np.ndarray]:
    """Tensors kept aside at import, by their names relative to the tower."""
    path = folder / CARRIED_FILE
    parts = deserialize(path.read_bytes()) if path.exists() else []
    return {name: np.frombuffer(part["data"], DTYPES[part["dtype"]]).reshape(part["shape"]) for name, part in parts}
