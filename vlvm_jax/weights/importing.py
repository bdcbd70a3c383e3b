"""`convert import`: a Hugging Face checkpoint in our layout, for runs that start from gs:// or on many hosts."""

import json
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath

from vlvm_jax import __version__, manifest, storage
from vlvm_jax import config as config_lib
from vlvm_jax.errors import InputError
from vlvm_jax.weights import param_store
from vlvm_jax.weights.hf import side_files
from vlvm_jax.weights.sources import FORMAT, HF_FOLDER, MODEL_FILE, PARAMS_FOLDER, HFDirectory, open_source


def import_checkpoint(source: str, destination: epath.Path, progress=None) -> HFDirectory:
    """Converts one parameter at a time; `destination` appears whole or not at all.

    In a bucket, where folders cannot be renamed, `model.json` comes last: without it nothing takes the folder for an
    import.

    Memory: the largest parameter (a stack of layers), and its copy while it is written.

    Args:
      progress: called with (bytes done, bytes in all) after each parameter.

    Raises:
      InputError: the source is at fault, or the destination exists.
    """
    if (destination / MODEL_FILE if "://" in str(destination) else destination).exists():
        raise InputError(f"{destination}: exists already; remove it, or name another destination")
    opened = open_source(source, "SRC")
    if not isinstance(opened, HFDirectory):
        raise InputError(f"{source}: is an import or a training run of this library already")
    in_bucket = "://" in str(destination)
    temporary = destination if in_bucket else destination.parent / f"{destination.name}.importing"
    if temporary.exists():
        temporary.rmtree()
    temporary.mkdir(parents=True)
    try:
        params = param_store.save(temporary / PARAMS_FOLDER, _parameters(opened, progress))
        assert opened.hf_files is not None
        clip = side_files.of_clip(opened.hf_files)
        side_files.copy(opened, temporary / HF_FOLDER, clip=clip if clip.exists() else None)
        _finish(temporary, json.dumps(_description(opened, source), indent=2).encode(), params)
    except BaseException:
        temporary.rmtree()
        raise
    if not in_bucket:
        temporary.rename(destination)
    return opened


def _finish(folder: epath.Path, description: bytes, params: dict[str, manifest.Entry]) -> None:
    """Writes the manifest, then `model.json`.

    Args:
      params: entries of the parameters' files.
    """
    path = os.fspath(folder)
    if storage.is_remote(path):
        files = manifest.of_bucket(f"{path}/{HF_FOLDER}")
    else:
        files = manifest.measure(f"{path}/{HF_FOLDER}", storage.listing(f"{path}/{HF_FOLDER}"))
    entries = {f"{PARAMS_FOLDER}/{name}": entry for name, entry in params.items()}
    entries |= {f"{HF_FOLDER}/{name}": entry for name, entry in files.items()}
    manifest.write(path, entries | {MODEL_FILE: manifest.of_bytes(description)})
    storage.write_bytes(f"{path}/{MODEL_FILE}", description)


def _parameters(opened: HFDirectory, progress) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter with its path.

    Raises:
      InputError: one, or a carried tensor, holds NaN or infinity.
    """
    opened.checkpoint.check_carried_finite()
    total = sum(a.size * a.dtype.itemsize for a in opened.shapes.values())
    done = 0
    for path, a in opened.shapes.items():
        value = opened.read(path)
        opened.check_finite(path, value)
        yield path, value
        done += a.size * a.dtype.itemsize
        if progress is not None:
            progress(done, total)


def _description(opened: HFDirectory, source: str) -> dict:
    hf = opened.checkpoint.hf
    return {
        "format": FORMAT,
        "source": source,
        "family": hf.family,
        "hf_family": hf.hf_family,
        "layout": opened.checkpoint.layout.name,
        "vision": hf.vision and config_lib.to_json(hf.vision),
        "decoder": hf.decoder and config_lib.to_json(hf.decoder),
        "adapter": opened.adapter and config_lib.to_json(opened.adapter),
        "parameters": sum(a.size for a in opened.shapes.values()),
        "versions": {"vlvm_jax": __version__, "jax": jax.__version__},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
