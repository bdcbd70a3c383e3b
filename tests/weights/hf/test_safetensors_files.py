"""Shards as they are written, read back by safetensors itself and by our reader."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.families import read_tensors

from vlvm_jax.errors import InputError
from vlvm_jax.weights.hf.safetensors_files import DTYPES, INDEX, SafetensorsReader, SafetensorsWriter

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=12), st.tuples(SHAPES, st.sampled_from(list(DTYPES.values()))))


def drawn(tensors) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, (shape, dtype) in tensors.items()}


def write(folder: Path, tensors: dict[str, np.ndarray], max_bytes: int) -> SafetensorsWriter:
    writer = SafetensorsWriter(folder, tensors, max_bytes)
    for name, value in tensors.items():
        writer.add(name, value)
    writer.close()
    return writer


@settings(max_examples=60, deadline=None)
@given(tensors=TENSORS.filter(lambda t: "__metadata__" not in t), max_bytes=st.integers(1, 2000))
def test_what_is_written_is_read(tensors, max_bytes):
    values = drawn(tensors)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = write(folder, values, max_bytes)
        assert writer.total_bytes == sum(value.nbytes for value in values.values())
        assert writer.total_parameters == sum(value.size for value in values.values())
        found, reader = read_tensors(folder), SafetensorsReader(folder)
        assert found.keys() == values.keys() == reader.tensors.keys()
        for key, value in values.items():
            for read in (found[key], reader.read(key)):
                assert read.dtype == value.dtype and read.shape == value.shape
                assert read.tobytes() == value.tobytes()
            assert reader.tensors[key][1:] == (value.shape, value.dtype)
        files = {file.name for file in folder.glob("*.safetensors")}
        if len(files) == 1:
            assert files == {"model.safetensors"} and not (folder / INDEX).exists()
            return
        index = json.loads((folder / INDEX).read_text())
        assert set(index["weight_map"].values()) == files and index["weight_map"].keys() == values.keys()
        assert index["metadata"] == {"total_size": writer.total_bytes, "total_parameters": writer.total_parameters}
        for file in files:
            inside = [values[key].nbytes for key, where in index["weight_map"].items() if where == file]
            assert sum(inside) <= max_bytes or len([size for size in inside if size]) == 1


def test_rows_in_any_order_of_memory(tmp_path):
    value = np.arange(24, dtype=np.float32).reshape(4, 6)
    write(tmp_path, {"transposed": value.T, "strided": value[::2, 1::3]}, 1000)
    found = read_tensors(tmp_path)
    np.testing.assert_array_equal(found["transposed"], value.T)
    np.testing.assert_array_equal(found["strided"], value[::2, 1::3])


def test_a_part_of_a_tensor_is_read_alone(tmp_path):
    value = np.arange(60, dtype=np.float16).reshape(5, 12)
    write(tmp_path, {"whole": value}, 1000)
    part = SafetensorsReader(tmp_path).read("whole", (slice(1, 3), slice(4, 12)))
    np.testing.assert_array_equal(part, value[1:3, 4:12])


def test_tensors_that_were_not_announced(tmp_path):
    writer = SafetensorsWriter(tmp_path, ["a"])
    for number in range(9):
        writer.add(f"tensor {number}", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="not announced, among them tensor 8"):
        writer.close()


def test_an_index_that_is_nested_too_deep(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ' * 50_000)
    with pytest.raises(InputError, match=r"not a safetensors index .*nested more than 100 levels deep"):
        SafetensorsReader(tmp_path)
