"""The jitted train step of one stage."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vlvm_jax.config import ModelConfig, StageConfig
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.params import Model, Params, segment_of
from vlvm_jax.parallel import rules
from vlvm_jax.training.losses import adapter_losses, token_losses
from vlvm_jax.training.optimizer import make_optimizer, schedule, state_shardings
from vlvm_jax.training.partition import Partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes; donated to it. Holds arrays, or shapes or shardings in their place.

    Attributes:
      step: steps done, int32.
      params: trainable parameters, fp32 masters, flat and segmented.
      opt_state: of those parameters only.
      rng: raw key data; each step folds its number in.
    """

    step: Any
    params: dict[str, Any]
    opt_state: optax.OptState
    rng: Any


@dataclasses.dataclass(frozen=True)
class StepFunctions:
    """A stage's compiled functions and where their arrays live.

    Attributes:
      train: (state, frozen, batch) -> (state, metrics); one compilation.
      init: trainable parameters and rng -> state.
      state_shardings, frozen_shardings: as the arguments of `train`.
    """

    train: Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]
    init: Callable[[Params, jax.Array], TrainState]
    state_shardings: TrainState
    frozen_shardings: Mapping[str, jax.sharding.Sharding]


def make_step(
    config: ModelConfig,
    stage: StageConfig,
    partition: Partition,
    mesh: Mesh,
    num_steps: int,
    options: dict[str, Any] | None = None,
) -> StepFunctions:
    """Builds the step: loss over micro-batches, gradients of the trainable parameters alone, optimizer update.

    Args:
      options: the compiler's, for a step that is run here (`parallel.cpu_options`); None for one that is only counted
        or compiled for other devices.
    """
    model = Model(config, partition.splits)
    abstract = model.abstract()
    shardings = {path: a.sharding for path, a in model.on_mesh(abstract, mesh).items()}
    trainable = {path: abstract[path] for path in abstract if path in partition.rates}
    stacked = frozenset(path for path in trainable if segment_of(path))
    tx = make_optimizer(stage, partition.rates, num_steps, stacked)
    lr_factor = schedule(stage, num_steps)
    everywhere = rules.replicated(mesh)
    of_state = TrainState(
        step=everywhere,
        params={path: shardings[path] for path in trainable},
        opt_state=state_shardings(tx, trainable, shardings, everywhere),
        rng=everywhere,
    )
    of_frozen = {path: shardings[path] for path in abstract if path not in trainable}

    def sums(params, frozen, batch, key):
        bound = model.bind({**frozen, **params})
        if stage.objective == "adapter":
            loss, count, right = adapter_losses(bound, batch)
            return loss, (count, right)
        hidden, _ = bound(batch, rng=key)
        loss, count, right = token_losses(bound, hidden, batch, passes=stage.loss_passes, chunks=stage.loss_chunks)
        return loss, (count, right)

    def train(state: TrainState, frozen: Params, batch: Batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        gradient = jax.value_and_grad(sums, has_aux=True)
        if stage.accumulate == 1:
            (loss, (count, right)), grads = gradient(state.params, frozen, batch, key)
        else:
            (loss, (count, right)), grads = _accumulate(gradient, state.params, frozen, batch, key, stage.accumulate)
        count_or_one = jnp.maximum(count, 1)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / count_or_one, grads)
        updates, opt_state = tx.update(grads, state.opt_state, dict(state.params))
        params: Any = optax.apply_updates(dict(state.params), updates)
        metrics = {
            "loss": loss / count_or_one,
            "token_accuracy": right / count_or_one,
            "grad_norm": optax.tree.norm(grads),
            "lr_factor": lr_factor(state.step),
            "learned_tokens": count,
            "tokens": jnp.sum(batch.segment_ids > 0),
            "samples": jnp.sum(jnp.max(batch.segment_ids, axis=1)),
        }
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    def init(params: Params, rng: jax.Array) -> TrainState:
        params = {path: value.astype(jnp.float32) for path, value in params.items()}
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), rng)

    return StepFunctions(
        train=jax.jit(
            train,
            in_shardings=(of_state, of_frozen, None),
            out_shardings=(of_state, everywhere),
            donate_argnums=0,
            compiler_options=options,
        ),
        init=jax.jit(init, out_shardings=of_state),
        state_shardings=of_state,
        frozen_shardings=of_frozen,
    )


def _accumulate(gradient, params, frozen, batch: Batch, key, parts: int):
    """Sums loss, counts and gradients over micro-batches.

    Micro-batch i takes rows i, i + parts, ...: every device keeps working on rows it already holds.
    """
    micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch)
    zero = ((jnp.zeros(()), (jnp.zeros(()),) * 2), jax.tree.map(jnp.zeros_like, params))

    def add(total, inputs):
        index, part = inputs
        new = gradient(params, frozen, part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, new), None

    return jax.lax.scan(add, zero, (jnp.arange(parts), micro))[0]
