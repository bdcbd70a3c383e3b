"""Where pretrained weights come from: this package, a directory as it is, or a hub id through huggingface_hub."""

import importlib.resources
import re
from pathlib import Path
from typing import cast

from etils import epath

from vlvm_jax.errors import InputError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_PACKAGED = cast(Path, importlib.resources.files("vlvm_jax.weights") / "packaged")
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def packaged() -> tuple[str, ...]:
    """Names of the checkpoints that come with this package."""
    return tuple(sorted(path.name for path in _PACKAGED.iterdir() if path.is_dir()))


def resolve(source: str, where: str) -> epath.Path:
    """The directory that `source` names: a packaged checkpoint, a path (local or gs://), else a hub id.

    A hub id is downloaded, or taken from the cache. A directory called as a packaged checkpoint is given as ./NAME.

    Args:
      where: the key or flag that named it, for messages.

    Raises:
      InputError: no such directory, or the hub cannot be reached and the cache does not have it.
    """
    scheme, separator, place = source.partition("://")
    if separator and (scheme != "gs" or not place.strip("/")):
        raise InputError(
            f"{where}: {source!r} is no place that checkpoints are read from; give a directory, gs://... or a hub id"
        )
    if source in packaged():
        return epath.Path(_PACKAGED / source)
    path = epath.Path(source).expanduser()
    if path.is_dir():
        return path if "://" in source else path.resolve()  # Orbax takes absolute paths only
    if not _HUB_ID.match(source) or source.startswith(("./", "../")):
        names = ", ".join(packaged())
        raise InputError(
            f"{where}: {source!r} is neither a directory that exists nor a hub id (owner/name), nor one of the "
            f"package's own: {names}"
        )
    return epath.Path(_download(source, where))


def _download(repo: str, where: str) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(_FILES)))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        reason = "is gated: accept its licence and log in" if "Gated" in type(error).__name__ else "does not exist"
        raise InputError(f"{where}: {repo} {reason} on the hub ({_host()}), or you have no access") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{where}: {repo} is not in the cache {constants.HF_HUB_CACHE} and the hub ({_host()}) cannot be reached "
            f"({type(error).__name__}); download it where there is a network (`hf download {repo}`) and pass its "
            "directory instead of the id, or set HF_HOME to a cache that holds it"
        ) from None


def _host() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
