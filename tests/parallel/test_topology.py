import math
import re

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlvm_jax.errors import InputError
from vlvm_jax.parallel import topology


@pytest.mark.parametrize(
    ("name", "shape", "chips"),
    [
        ("v5e-1", (1, 1), 1),
        ("v5e-8", (2, 4), 8),
        ("v5e-64", (8, 8), 64),
        ("v5litepod-256", (16, 16), 256),
        ("v6e-4x2", (2, 2), 8),
        ("v4-8", (2, 2, 1), 4),
        ("v5p-64", (2, 4, 4), 32),
        ("v5p-128", (4, 4, 4), 64),
    ],
)
def test_names(name, shape, chips):
    parsed = topology.parse(name)
    assert parsed.shape == shape
    assert parsed.chips == chips


@pytest.mark.parametrize("name", ["v9-8", "v5e-63", "v5e-2", "v5e-512", "v5p-127", "v5p-6", "v5e", "", "v5e-8x"])
def test_what_does_not_exist_is_named(name):
    with pytest.raises(InputError, match="--topology="):
        topology.parse(name)


@given(st.integers(0, 13), st.sampled_from([2, 3]))
def test_slices_hold_their_chips_in_near_cubes(exponent, dimensions):
    chips = 2**exponent
    shape = topology.slice_shape(chips, dimensions)
    if shape is not None:
        assert math.prod(shape) == chips
        assert len(shape) == dimensions
        assert max(shape) <= 2 * min(shape) or chips <= 4
        assert list(shape) == sorted(shape) or chips == 4


@pytest.mark.parametrize("name", ["v4-8", "v5e-1", "v5p-8", "v6e-1"])
def test_the_memory_of_a_chip_is_what_the_compiler_lets_programs_use(name):
    parsed = topology.parse(name)
    sharding = jax.sharding.SingleDeviceSharding(parsed.devices()[0])
    too_large = jax.ShapeDtypeStruct((2**15, 2**20), "float32", sharding=sharding)
    with pytest.raises(Exception, match="exceeds available HBM") as refused:
        jax.jit(lambda x: x + 1).lower(too_large).compile()
    said = re.search(r"available HBM \(([\d.]+)G\)", str(refused.value))
    assert said and float(said[1]) == pytest.approx(parsed.chip.hbm / 2**30, abs=0.02)  # some releases keep 10 MiB more
