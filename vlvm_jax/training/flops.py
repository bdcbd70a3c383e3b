"""Floating-point operations of a step, counted from what jax is about to run.

Matrix products are counted (2 m n k) through loops, gradients and recomputation; everything else is noise beside them.
Attention counts in full: no halving for causal masks. The compiler's own count is of no use here: it counts a scanned
layer once, and a kernel not at all.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from vlvm_jax.config import ModelConfig, StageConfig
from vlvm_jax.models.attention import in_full
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.params import Model
from vlvm_jax.training import losses


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Of one step over a whole batch.

    Attributes:
      tower, adapter, decoder: the forward pass by part; the head belongs to the decoder.
      backward: gradients.
      recomputed: what rematerialisation runs again.
      head: those of the forward and backward pass that belong to the head, over every position.
    """

    tower: float
    adapter: float
    decoder: float
    backward: float
    recomputed: float
    head: float = 0.0

    @property
    def model(self) -> float:
        """What a step needs if every token is learned. Recomputation does not count."""
        return self.tower + self.adapter + self.decoder + self.backward

    def needed(self, learned: float) -> float:
        """What a step needs of which this share of the positions is learned: the numerator of MFU."""
        return self.model - self.head * (1 - learned)

    @property
    def hardware(self) -> float:
        """What a step runs."""
        return self.model + self.recomputed


def count(function: Callable, *args: Any) -> float:
    """Operations in the matrix products of `function(*args)` that its results need; nothing is run."""
    with in_full():
        jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _product(equation)
            continue
        inner = [_count(sub) for sub in _inside(equation.params)]
        if not inner:
            continue
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner)
    return total


def _inside(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs that an operation runs. A custom derivative's rules are not among them: they are functions."""
    jaxprs = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                jaxprs.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                jaxprs.append(item)
    return jaxprs


def _product(equation) -> float:
    left, right = (operand.aval.shape for operand in equation.invars)
    (_, contracted), (_, batched) = equation.params["dimension_numbers"]
    shared = {*contracted, *batched}
    return 2.0 * math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in shared)


def step_flops(
    config: ModelConfig, stage: StageConfig, make_train: Callable[[ModelConfig], tuple], batch: Batch
) -> StepFlops:
    """Counts a stage's step.

    Args:
      make_train: model settings -> (train function, its state, its frozen parameters), all abstract; called with and
        without rematerialisation.
      batch: shapes.
    """
    plain = config.model_copy(update={"vision_remat": "none", "decoder_remat": "none"})
    forward = forward_flops(plain, batch, stage.objective)
    train, state, frozen = make_train(plain)
    without, with_remat = count(train, state, frozen, batch), count(*make_train(config), batch)
    if stage.objective != "text":
        return dataclasses.replace(forward, backward=without - forward.model, recomputed=with_remat - without)
    product = 2.0 * math.prod(batch.token_ids.shape) * config.decoder.hidden_size * config.decoder.vocab_size
    # With chunks, the head runs twice whatever the remat policy; it is in both counts.
    again = product if stage.loss_chunks > 1 else 0.0
    head = "embed_tokens/embedding" if config.decoder.tie_word_embeddings else "lm_head/kernel"
    return dataclasses.replace(
        forward,
        backward=without - forward.model - again,
        recomputed=with_remat - without + again,
        head=product * (3 if f"decoder/{head}" in state.params else 2),
    )


def forward_flops(config: ModelConfig, batch: Batch, objective: str = "text") -> StepFlops:
    """The forward pass alone, by part, the head over every position; without a decoder where the adapter learns alone.

    What the adapter adds to the tower's own pass over the frames (a CLIP beside it, say) counts as the adapter's.
    """
    model = Model(config)
    params = model.abstract()

    def encode_media(params, frames):
        return model.bind(params).encode_media(frames)

    def adapter(params, features, layout, guidance):
        return model.bind(params).adapter(features, layout, guidance=guidance)

    of_tower = count(lambda params, frames: model.bind(params).encoder(frames), params, batch.frames)
    if objective == "adapter":
        alone = count(lambda params, batch: losses.adapter_losses(model.bind(params), batch), params, batch)
        return StepFlops(of_tower, alone - of_tower, 0.0, 0.0, 0.0)
    features = jax.eval_shape(encode_media, params, batch.frames)
    of_adapter = count(encode_media, params, batch.frames) - of_tower
    of_adapter += count(adapter, params, features, batch.layout, batch.guidance)
    hidden = jax.ShapeDtypeStruct((*batch.token_ids.shape, config.decoder.hidden_size), jnp.dtype(config.dtype))

    def decoder(params, embeddings, positions, segments):
        bound = model.bind(params).decoder
        return bound.logits(bound(embeddings, positions, segments)[0])

    of_decoder = count(decoder, params, hidden, batch.positions, batch.segment_ids)
    return StepFlops(of_tower, of_adapter, of_decoder, 0.0, 0.0)
