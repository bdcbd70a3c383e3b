"""Safetensors directories as Hugging Face writes them: read tensor by tensor, write shard by shard."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # with it numpy knows bfloat16, in which safetensors then hands out such tensors
import numpy as np
from safetensors import SafetensorError, safe_open

from vlvm_jax import json_text
from vlvm_jax.errors import InputError

INDEX = "model.safetensors.index.json"

DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


_CODES = {dtype: code for code, dtype in DTYPES.items()}
_METADATA = {"__metadata__": {"format": "pt"}}
_LONGEST_ENTRY = 160  # bytes of a header's entry beside the name: type, up to 4 sizes, two offsets


class TensorInfo(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype


class SafetensorsReader:
    """The tensors of a directory; only headers are read until a tensor is asked for.

    Files are opened for each read and closed again: a mapped file would count its pages as this process's memory.

    Raises:
      InputError: no safetensors here, a file that is cut off or missing, or a tensor that stands in two files.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.tensors: dict[str, TensorInfo] = {}
        for file in _files(directory):
            self._add(file)

    def _add(self, file: Path) -> None:
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    if name in self.tensors:
                        raise InputError(f"{file}: tensor {name} stands in {self.tensors[name].file.name} too")
                    part = opened.get_slice(name)
                    self.tensors[name] = TensorInfo(file, tuple(part.get_shape()), self._dtype(part, name, file))
        except (SafetensorError, OSError) as error:
            raise _not_whole(file, error) from None

    @staticmethod
    def _dtype(part, name: str, file: Path) -> np.dtype:
        dtype = part.get_dtype()
        if dtype not in DTYPES:
            # Integer buffers of old checkpoints (position_ids) are dropped by name later; they are never read.
            return np.dtype(np.int64) if dtype in ("I64", "I32") else _unknown_dtype(dtype, name, file)
        return DTYPES[dtype]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """One tensor, or the part of it that `index` selects; the rest is not read."""
        file = self.tensors[name].file
        try:
            with safe_open(file, framework="np") as opened:
                part = opened.get_slice(name)
                return part[index] if index and part.get_shape() else opened.get_tensor(name)
        except (SafetensorError, OSError) as error:  # it has changed since it was opened
            raise _not_whole(file, error) from None


def _not_whole(file: Path, error: Exception) -> InputError:
    return InputError(f"{file}: not a whole safetensors file ({str(error).strip()}); download or copy it again")


def _unknown_dtype(dtype: str, name: str, file: Path) -> np.dtype:
    raise InputError(f"{file}: tensor {name} is of type {dtype}; only {', '.join(DTYPES)} can be read (not quantised)")


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json_text.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: not a safetensors index ({type(error).__name__}: {error})") from None
        if (directory / "model.safetensors").is_file() and "model.safetensors" not in names:
            raise InputError(
                f"{directory}: holds model.safetensors and {INDEX}, which names other files ({names[0]} ...): two "
                "checkpoints; remove the files of one"
            )
        for name in names:
            if not (directory / name).is_file():
                raise InputError(f"{index}: names the shard {name}, which is not in {directory}; download it again")
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in directory.glob("*.bin")) + sorted(
            file.name for file in directory.glob("*.pth")
        )
        hint = (
            f" (there is {pickles[0]}: save the model again with safetensors, for example with transformers' "
            "from_pretrained and save_pretrained)"
            if pickles
            else ""
        )
        raise InputError(f"{directory}: no *.safetensors file here{hint}")
    return files


class SafetensorsWriter:
    """Writes tensors in the order they come, a new shard whenever one is full; `close` names the shards and the index.

    Memory: one tensor; the library's `save_file` wants all tensors of a file at once. Each shard starts with room for
    its header, which is written when the shard is full.

    Args:
      names: of all tensors that will come, which tells how long a header can become.
      max_bytes: size at which a shard ends. A larger tensor gets one of its own.
    """

    def __init__(self, directory: Path, names: Iterable[str], max_bytes: int = 1 << 30):
        self.directory, self.max_bytes = directory, max_bytes
        self.total_bytes = self.total_parameters = 0
        longest = sum(len(json.dumps(name)) + _LONGEST_ENTRY for name in names) + len(json.dumps(_METADATA))
        self._room = longest + -longest % 8
        self._shards: list[list[str]] = []
        self._header: dict[str, Any] = {}
        self._bytes = 0
        self._file = self._open()

    def add(self, name: str, value: np.ndarray) -> None:
        """Raises `ValueError` for a tensor that was not announced."""
        if self._header and self._bytes + value.nbytes > self.max_bytes:
            self._finish()
            self._file = self._open()
        offsets = [self._bytes, self._bytes + value.nbytes]
        self._header[name] = {"dtype": _CODES[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        self._file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        self._bytes += value.nbytes
        self.total_bytes += value.nbytes
        self.total_parameters += value.size

    def _open(self) -> BinaryIO:
        file = (self.directory / f"shard-{len(self._shards)}").open("wb")
        file.seek(8 + self._room)
        return file

    def _finish(self) -> None:
        header = json.dumps({**_METADATA, **self._header}).encode()
        if len(header) > self._room:
            raise ValueError(f"tensors that were not announced, among them {list(self._header)[-1]}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.close()
        self._shards.append(list(self._header))
        self._header, self._bytes = {}, 0

    def close(self) -> None:
        self._finish()
        count = len(self._shards)
        weight_map = {}
        for number, names in enumerate(self._shards):
            file = "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self.directory / f"shard-{number}").rename(self.directory / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            metadata = {"total_size": self.total_bytes, "total_parameters": self.total_parameters}
            index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
            (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
