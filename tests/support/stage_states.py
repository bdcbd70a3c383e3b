"""The state of a stage without a model, to save and restore in tests of checkpoints."""

import asyncio
import json

import jax
import jax.numpy as jnp
import numpy as np

from vlvm_jax.config import MeshConfig
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.training.checkpoint import StageCheckpoints

CONFIG = {"stage": "s", "config": {"name": "x", "seed": 0}}
SHAPES = {
    "adapter/connector/linear_1/bias": (8,), "adapter/connector/linear_1/kernel": (64, 64),
    "decoder/embed_tokens/embedding": (96, 32),
}  # fmt: skip


class Position:
    """Where the data stand, as Orbax saves it."""

    def __init__(self, taken: int = 0):
        self.taken = taken

    async def save(self, directory):
        text = json.dumps({"taken": self.taken})

        async def write() -> None:
            folder = await directory.await_creation()
            await asyncio.to_thread((folder / "reader_0-of-1.json").write_text, text)

        return write()

    async def load(self, directory):
        async def read() -> None:
            self.taken = json.loads((directory / "reader_0-of-1.json").read_text())["taken"]

        return read()


def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=-1))


def params(seed: int, shapes=None) -> dict[str, jax.Array]:
    drawn = np.random.default_rng(seed)
    return {path: jnp.asarray(drawn.normal(size=shape), jnp.float32) for path, shape in (shapes or SHAPES).items()}


def save(checkpoints: StageCheckpoints, step: int, shapes=None, *, wait: bool = True) -> None:
    """Saves a step whose arrays are drawn from its number."""
    values = params(step, shapes)
    moments = {"mu": values, "nu": values}
    checkpoints.save(
        step, params=values, opt_state=moments, rng=jnp.zeros(2, jnp.uint32), data=Position(step), config=CONFIG
    )
    if wait:
        checkpoints.wait()


def abstract(shapes=None) -> dict[str, jax.ShapeDtypeStruct]:
    grid = mesh()
    return {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rules.parameter_sharding(path, shape, grid))
        for path, shape in (shapes or SHAPES).items()
    }
