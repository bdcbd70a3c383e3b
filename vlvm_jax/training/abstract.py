"""A stage's step by its shapes alone: what it is called with, and how many operations it takes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlvm_jax.config import Config, MeshConfig, ModelConfig, StageConfig
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.params import Model
from vlvm_jax.parallel import rules
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.training import partition as partition_lib
from vlvm_jax.training.flops import StepFlops, step_flops
from vlvm_jax.training.partition import Partition
from vlvm_jax.training.step import make_step

_STEPS = 1000  # of the schedule; no part of the program depends on it but a few constants


def abstract_step(model: ModelConfig, stage: StageConfig, partition: Partition, mesh: Mesh) -> tuple[Any, Any, Any]:
    """A stage's train function and the shapes of its state and frozen parameters."""
    functions = make_step(model, stage, partition, mesh, _STEPS)
    abstract = Model(model, partition.splits).abstract()
    trainable = {path: a for path, a in abstract.items() if path in partition.rates}
    frozen = {
        path: jax.ShapeDtypeStruct(a.shape, jnp.dtype(stage.frozen_dtype))
        for path, a in abstract.items()
        if path not in partition.rates
    }
    state = jax.eval_shape(functions.init, trainable, jax.ShapeDtypeStruct((2,), jnp.uint32))
    return functions.train, state, frozen


def abstract_batch(config: Config, rows: int, frames: int, length: int, mesh: Mesh) -> Batch:
    """Shapes of a batch."""
    size = config.model.vision.image_size
    prompt = Model(config.model).adapter.prompt_length

    def shape(dtype, *dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=rules.batch_sharding(dims, mesh))

    return Batch(
        frames=shape(jnp.uint8, rows, frames, size, size, 3),
        media=shape(jnp.int32, rows, frames),
        is_video=shape(jnp.bool_, rows, frames),
        token_ids=shape(jnp.int32, rows, length),
        media_mask=shape(jnp.bool_, rows, length),
        positions=shape(jnp.int32, rows, length),
        segment_ids=shape(jnp.int32, rows, length),
        loss_mask=shape(jnp.bool_, rows, length),
        prompt_ids=shape(jnp.int32, rows, prompt) if prompt else None,
    )


def count_step(config: Config, stage: StageConfig) -> StepFlops:
    """The step's operations; they depend on no device."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    partition = partition_lib.resolve(config.model, stage)
    batch = abstract_batch(config, stage.batch_size, stage.frames, stage.length, one)
    return step_flops(config.model, stage, lambda model: abstract_step(model, stage, partition, one), batch)
