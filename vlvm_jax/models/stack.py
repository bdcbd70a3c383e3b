"""A stack of identical layers, run by `jax.lax.scan`: one compiled body, whatever the depth.

The parameters of all layers are stacked on a leading axis. A stage that trains only some layers (the last three of
the tower, say) cuts the stack into *segments*, so that no gradient, no optimizer state and no saved activation exists
for the frozen part. `vlvm_jax.training.partition` cuts and joins; on disk a stack is always whole.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

LAYER_INPUT = "layer_input"

# What the backward pass finds: all; products with weights; each layer's input; the same, kept in the host's memory.
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class LayerStack(nnx.Module):
    """`num_layers` layers made by `make_layer(rngs)`, of which the first `num_used` run.

    A tower read at its penultimate layer keeps the unused last layer's parameters (an export needs them) without
    running it.

    Args:
      make_layer: builds one layer; called under `nnx.vmap`.
      dtype: that the layers compute in.
      splits: increasing layer indices at which the stack is cut into segments.
      remat: key of `REMAT_POLICIES`; what the backward pass keeps of each layer.
    """

    def __init__(
        self,
        make_layer: Callable[[nnx.Rngs], nnx.Module],
        num_layers: int,
        *,
        dtype,
        num_used: int | None = None,
        splits: tuple[int, ...] = (),
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        self.num_used = num_layers if num_used is None else num_used
        self.dtype = dtype
        self.remat = remat
        self.bounds = segment_bounds(num_layers, splits)

        def create(size: int) -> nnx.Module:
            split = nnx.split_rngs(splits=size)(nnx.vmap(make_layer, in_axes=0, out_axes=0))
            return split(rngs)

        self.segments = nnx.List([create(stop - start) for start, stop in self.bounds])

    def __call__(self, x: jax.Array, *args, state=None, start: int = 0, stop: int | None = None):
        """Runs the layers: `x, out = layer(x, *args, None)`, or `x, state = layer(x, *args, (state, number))`.

        Args:
          x: the carry, same shape in and out of every layer.
          *args: passed to every layer unchanged.
          state: pytree that all layers share (a KV cache, say), of which each reads and writes what is its own by its
            number. It is carried along, so that writes happen in place: a scan's inputs and outputs would be copied.
          start, stop: run these layers only; by default the first `num_used`.

        Returns:
          The final carry, and the per-layer outputs stacked on a leading axis or the final state.
        """
        outputs = []
        last = self.num_used if stop is None else stop
        for segment, (begin, end) in zip(self.segments, self.bounds, strict=True):
            low, high = max(begin, start), min(end, last)
            if low >= high:
                continue
            graphdef, params = nnx.split(segment)
            if high - low < segment_length(params):
                params = jax.tree.map(lambda p, a=low - begin, b=high - begin: p[a:b], params)
            # Before the scan, so that the gradients it stacks are no wider than what layers compute. XLA for TPUs has a
            # whole copy in `dtype` anyway: it moves casts of a scan's inputs before the scan.
            params = jax.tree.map(lambda p: p.astype(self.dtype) if p.ndim > 2 else p, params)

            def body(carry, inputs, graphdef=graphdef):
                layer_params, number = inputs
                x, state = carry
                x = checkpoint_name(x, LAYER_INPUT)
                layer = nnx.merge(graphdef, layer_params)
                if state is None:
                    x, out = layer(x, *args, None)
                    return (x, None), out
                return layer(x, *args, (state, number)), None

            if (policy := REMAT_POLICIES[self.remat]) is not None:
                body = jax.checkpoint(body, policy=policy, prevent_cse=False)
            numbers = None if state is None else jnp.arange(low, high)
            (x, state), out = jax.lax.scan(body, (x, state), (params, numbers))
            outputs.append(out)
        if state is not None:
            return x, state
        return x, jax.tree.map(lambda first, *rest: jnp.concatenate([first, *rest]) if rest else first, *outputs)


def segment_bounds(num_layers: int, splits: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """`(start, stop)` of each segment: `segment_bounds(24, (20, 23))` -> `((0, 20), (20, 23), (23, 24))`."""
    edges = [0, *splits, num_layers]
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError(f"splits {splits} do not cut {num_layers} layers into non-empty segments")
    return tuple(itertools.pairwise(edges))


def segment_length(params) -> int:
    return jax.tree.leaves(params)[0].shape[0]
