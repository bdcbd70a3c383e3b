"""The beginning of a stage without data, for tests of its step."""

import jax
import numpy as np

from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model
from vlvm_jax.training.partition import resolve
from vlvm_jax.training.stages import divide
from vlvm_jax.training.step import make_step


def begin(model, stage, mesh, steps: int):
    """Partition, compiled functions, fresh state, frozen parameters, and a copy of all parameters (segmented)."""
    partition = resolve(model, stage)
    functions = make_step(model, stage, partition, mesh, steps)
    whole = params_lib.join(jax.jit(lambda: Model(model).init(0))())
    trained, frozen = divide(whole, partition, functions, stage)
    state = functions.init(trained, jax.random.key_data(jax.random.key(0)))
    before = {path: np.array(value) for path, value in {**trained, **frozen}.items()}
    return partition, functions, state, frozen, before
