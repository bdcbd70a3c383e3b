"""AdamW with a learning rate per parameter group, a schedule shared by all groups, and clipping by the global norm."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from vlvm_jax.config import StageConfig


def schedule(stage: StageConfig, steps: int) -> optax.Schedule:
    """Factor of every group's rate at a step: warm-up to 1, then the stage's decay to `final_lr_ratio`."""
    if stage.schedule == "log_warmup_cosine":
        return log_warmup_cosine(steps, math.ceil(stage.warmup_ratio * steps), stage.final_lr_ratio)
    warmup = max(1, round(stage.warmup_ratio * steps)) if stage.warmup_ratio else 0
    rest = max(1, steps - warmup)
    if stage.schedule == "cosine":
        decay = optax.cosine_decay_schedule(1.0, rest, stage.final_lr_ratio)
    elif stage.schedule == "linear":
        decay = optax.linear_schedule(1.0, stage.final_lr_ratio, rest)
    else:
        decay = optax.constant_schedule(1.0)
    if not warmup:
        return decay
    # The first step already moves: 1/warmup, not 0.
    rise = optax.linear_schedule(1.0 / warmup, 1.0, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def log_warmup_cosine(steps: int, warmup: int, floor: float) -> optax.Schedule:
    """DeepSpeed's `WarmupCosineLR` with its default, logarithmic warm-up (deepspeed/runtime/lr_schedules.py): ln(s + 1)
    / ln(max(W, 2)) for s < W, then a cosine from the step after the warm-up's last down to `floor`. Step 0 is at 0."""

    def factor(step):
        rise = jnp.log(step + 1.0) / math.log(max(warmup, 2))
        turn = jnp.pi * (step - warmup + 1) / max(steps - warmup, 1)
        fall = floor + (1 - floor) * (1 + jnp.cos(turn)) / 2
        return jnp.where(step < warmup, rise, fall)

    return factor


def make_optimizer(
    stage: StageConfig, rates: Mapping[str, float], steps: int, stacked: frozenset[str]
) -> optax.GradientTransformation:
    """The optimizer of a stage over the flat dict of its trainable parameters.

    Matrices decay, biases and norms do not. Moments are fp32.

    Args:
      stacked: paths with a leading layer axis, which does not count as one of a matrix's two.
    """

    def decays(params):
        return {path: value.ndim - (path in stacked) > 1 for path, value in params.items()}

    def descend(updates, _params):
        return {path: value * -rates[path] for path, value in updates.items()}

    factor = schedule(stage, steps)
    parts = [
        optax.scale_by_adam(stage.beta1, stage.beta2, mu_dtype=jnp.float32),
        optax.add_decayed_weights(stage.weight_decay, mask=decays),
        optax.stateless(descend),
        optax.scale_by_schedule(factor),
    ]
    if stage.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(stage.clip_norm))
    return optax.chain(*parts)


def state_shardings(tx: optax.GradientTransformation, params: Mapping[str, jax.ShapeDtypeStruct], shardings, default):
    """Shardings of the optimizer's state: a moment lives where its parameter does, the rest is `default`."""

    def place(path, leaf):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        owner = keys[-1] if keys else ""
        return shardings[owner] if owner in params and params[owner].shape == leaf.shape else default

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, dict(params)))
