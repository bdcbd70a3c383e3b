"""Samplers: from the N tokens of a frame to K, as a weight matrix A [K, N] per frame and the product A X.

Every reading of FTFV-LVLM's "weighted token sampler" (arXiv 2406.08024) and every control is one function
`weights(x)`; the product, and the picture of what was kept, are the same for all. The paper's equations were not
available: `soft_slots` is our reading of it, `scored_topk`, `encoder_attn` and `local_weighted_pool` are the other
defensible ones. See docs/ftfv.md for what supports each.
"""

import abc

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlvm_jax.errors import InputError
from vlvm_jax.models.layers import Linear

NEGATIVE = -1e9  # finite stand-in for -inf: a frame without valid patches gives finite values, never NaN


def near_square(count: int) -> tuple[int, int]:
    """The factorisation rows x columns of `count` nearest to a square, rows <= columns: 32 -> (4, 8)."""
    rows = max(r for r in range(1, int(count**0.5) + 1) if count % r == 0)
    return rows, count // rows


def grid_side(num_patches: int) -> int:
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise InputError(f"config.model.vision: {num_patches} patches are not a square grid, which this sampler needs")
    return side


def grid_prior(num_slots: int, num_patches: int, sigma: float) -> np.ndarray:
    """P[k, n] = -||pos_n - c_k||^2 / (2 sigma^2), distances in patches, c_k the centres of a near-square partition."""
    side = grid_side(num_patches)
    rows, columns = near_square(num_slots)
    positions = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    centres = np.stack(
        np.meshgrid(
            (np.arange(rows) + 0.5) * side / rows - 0.5,
            (np.arange(columns) + 0.5) * side / columns - 0.5,
            indexing="ij",
        ),
        -1,
    ).reshape(-1, 2)
    distance = ((positions[None] - centres[:, None]) ** 2).sum(-1)
    return (-distance / (2 * sigma**2)).astype(np.float32)


def block_weights(num_slots: int, num_patches: int) -> np.ndarray:
    """[K, N] rows of a near-square block average: each patch belongs to one of K cells."""
    side = grid_side(num_patches)
    rows, columns = near_square(num_slots)
    if rows > side or columns > side:
        raise InputError(
            f"config.model.adapter.options.num_tokens: {num_slots} = {rows} x {columns} blocks do not fit a "
            f"{side} x {side} grid of patches"
        )
    row = np.arange(side) * rows // side
    column = np.arange(side) * columns // side
    cell = (row[:, None] * columns + column[None]).reshape(-1)
    member = (cell[None] == np.arange(num_slots)[:, None]).astype(np.float32)
    return member / member.sum(1, keepdims=True)


class Sampler(nnx.Module, abc.ABC):
    """K tokens from N, per frame; frames never mix."""

    num_slots: int

    @abc.abstractmethod
    def weights(
        self,
        x: Float[Array, "B T N C"],
        *,
        attention: Float[Array, "B T N"] | None = None,
        patch_mask: Bool[Array, "B T N"] | None = None,
        rng: jax.Array | None = None,
    ) -> Float[Array, "B T K N"]:
        """The weight matrix, fp32."""

    def values(self, x: Float[Array, "B T N C"]) -> Float[Array, "B T N C"]:
        return x

    def __call__(self, x: Float[Array, "B T N C"], **kwargs) -> Float[Array, "B T K C"]:
        weights = self.weights(x, **kwargs).astype(x.dtype)
        return jnp.einsum("btkn,btnc->btkc", weights, self.values(x), precision=jax.lax.Precision.HIGHEST)


class SoftSlots(Sampler):
    """K learned weighted means: A = softmax_N((H W2)^T / tau + prior / tau), H = gelu(LN(x) W1 + b1).

    The same as attention with K learned queries (the columns of W2), keys H and identity values.

    Args:
      key_net: `mlp` as above; `linear`: H = LN(x) W1 + b1.
      value_net: `identity`: a convex combination of the tokens; `linear`: a map that starts as the identity.
      prior: `none`; `grid`: fixed `grid_prior`; `learned_grid`: the same as a starting point.
      zero_queries: W2 = 0 at the start; with a grid prior of small sigma that is block average pooling.
    """

    def __init__(
        self,
        width: int,
        num_slots: int,
        num_patches: int,
        *,
        hidden: int = 64,
        tau: float = 1.0,
        key_net: str = "mlp",
        value_net: str = "identity",
        prior: str = "none",
        prior_sigma: float = 1.0,
        zero_queries: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_slots, self.tau, self.key_net = num_slots, tau, key_net
        # With linear keys a bias shifts all tokens' logits alike, which softmax ignores: it would never learn.
        bias = key_net == "mlp"
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, use_bias=bias, dtype=dtype, rngs=rngs)
        self.key_proj = Linear(width, hidden, use_bias=bias, dtype=dtype, rngs=rngs)
        init = nnx.initializers.zeros if zero_queries else nnx.initializers.normal(0.02)
        self.queries = Linear(hidden, num_slots, use_bias=False, dtype=dtype, kernel_init=init, rngs=rngs)
        self.value_proj = (
            Linear(width, width, use_bias=False, dtype=dtype, kernel_init=_identity, rngs=rngs)
            if value_net == "linear"
            else None
        )
        grid = np.zeros(0) if prior == "none" else grid_prior(num_slots, num_patches, prior_sigma)
        self.fixed_prior = HashableArray(grid) if prior == "grid" else None
        self.prior = nnx.Param(jnp.asarray(grid)) if prior == "learned_grid" else None

    def weights(self, x, *, attention=None, patch_mask=None, rng=None):
        del attention, rng
        keys = self.key_proj(self.norm(x))
        if self.key_net == "mlp":
            keys = jax.nn.gelu(keys, approximate=False)
        logits = jnp.swapaxes(self.queries(keys), -1, -2).astype(jnp.float32)
        if self.fixed_prior is not None:
            logits += self.fixed_prior.value
        elif self.prior is not None:
            logits += self.prior[...].astype(jnp.float32)
        if patch_mask is not None:
            logits = jnp.where(patch_mask[:, :, None], logits, NEGATIVE)
        return jax.nn.softmax(logits / self.tau, axis=-1)

    def values(self, x):
        return x if self.value_proj is None else self.value_proj(x)


class ScoredTopK(Sampler):
    """The K best-scored tokens in raster order, each weighted so that the scorer receives gradient.

    Args:
      weight: `renorm`: K q_k / sum_kept q, q = softmax_N(s); `sigmoid`: sigmoid(s_k); `ste`: 1 in value, with the
        gradient of sigmoid(s_k).
      merge_rest: the last of the K tokens is the q-weighted mean of all that were not kept.
      gumbel: adds Gumbel noise to the scores in training, so that the choice explores.
    """

    def __init__(
        self,
        width: int,
        num_slots: int,
        *,
        score_net: str = "linear",
        hidden: int = 64,
        weight: str = "renorm",
        merge_rest: bool = False,
        gumbel: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_slots, self.weight, self.merge_rest, self.gumbel = num_slots, weight, merge_rest, gumbel
        # Only a gate sees a shift of all scores; `renorm` and the merged rest are softmaxes, which ignore it.
        bias = score_net == "mlp" or weight != "renorm"
        self.score = Scorer(width, score_net, hidden, bias=bias, dtype=dtype, rngs=rngs)

    def weights(self, x, *, attention=None, patch_mask=None, rng=None):
        del attention
        scores = self.score(x)
        if patch_mask is not None:
            scores = jnp.where(patch_mask, scores, NEGATIVE)
        ranking = scores
        if self.gumbel and rng is not None:
            ranking = scores + jax.random.gumbel(rng, scores.shape)
        return top_k_weights(scores, ranking, self.num_slots, self.weight, self.merge_rest)


class EncoderAttention(Sampler):
    """The K patches that the tower itself attends to most. No parameters.

    `merge_rest` folds all others into the last token, weighted by their attention.
    """

    def __init__(self, num_slots: int, *, merge_rest: bool = True):
        self.num_slots, self.merge_rest = num_slots, merge_rest

    def weights(self, x, *, attention=None, patch_mask=None, rng=None):
        del x, rng
        if attention is None:
            raise ValueError("encoder_attn needs the tower's attention: set config.model.vision.attention_layer")
        scores = jnp.log(jnp.maximum(attention, 1e-20))
        if patch_mask is not None:
            scores = jnp.where(patch_mask, scores, NEGATIVE)
        return top_k_weights(scores, scores, self.num_slots, "none", self.merge_rest)


class LocalWeightedPool(Sampler):
    """One token per window of s x s patches: softmax of a score inside the window. Zero score = average pooling."""

    def __init__(
        self,
        width: int,
        num_slots: int,
        num_patches: int,
        *,
        score_net: str = "linear",
        hidden: int = 64,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_slots = num_slots
        self.windows = HashableArray(block_weights(num_slots, num_patches) > 0)
        self.score = Scorer(width, score_net, hidden, bias=score_net == "mlp", zero=True, dtype=dtype, rngs=rngs)

    def weights(self, x, *, attention=None, patch_mask=None, rng=None):
        del attention, rng
        scores = jnp.where(self.windows.value, self.score(x)[:, :, None, :], NEGATIVE)
        if patch_mask is not None:
            scores = jnp.where(patch_mask[:, :, None], scores, NEGATIVE)
        # A window without valid patches gives a zero token.
        return jax.nn.softmax(scores, axis=-1) * (scores > NEGATIVE / 2)


class FixedWeights(Sampler):
    """Controls that look at nothing: mean, block average, uniform stride."""

    def __init__(self, kind: str, num_slots: int, num_patches: int):
        self.num_slots = num_slots
        if kind == "block_average":
            matrix = block_weights(num_slots, num_patches)
        elif kind == "mean":
            matrix = np.full((num_slots, num_patches), 1 / num_patches, np.float32)
        else:
            kept = ((np.arange(num_slots) + 0.5) * num_patches / num_slots).astype(int)
            matrix = np.eye(num_patches, dtype=np.float32)[kept]
        self.matrix = HashableArray(matrix)

    def weights(self, x, *, attention=None, patch_mask=None, rng=None):
        del attention, patch_mask, rng
        return jnp.broadcast_to(self.matrix.value, (*x.shape[:2], *self.matrix.value.shape))


class RandomK(Sampler):
    """K random patches of each frame in raster order: fresh in training, one fixed draw in evaluation."""

    def __init__(self, num_slots: int):
        self.num_slots = num_slots

    def weights(self, x, *, attention=None, patch_mask=None, rng=None):
        del attention, patch_mask
        scores = jax.random.uniform(jax.random.key(0) if rng is None else rng, x.shape[:3])
        return top_k_weights(scores, scores, self.num_slots, "none", False)


class Scorer(nnx.Module):
    """A score per token, fp32: linear, or C -> hidden -> 1 with GELU, after a layer norm (with a bias if `bias`)."""

    def __init__(
        self, width: int, kind: str, hidden: int, *, bias: bool = True, zero: bool = False, dtype, rngs: nnx.Rngs
    ):
        out_init = nnx.initializers.zeros if zero else nnx.initializers.normal(0.02)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, use_bias=bias, dtype=dtype, rngs=rngs)
        self.score_in = Linear(width, hidden, dtype=dtype, rngs=rngs) if kind == "mlp" else None
        self.score_out = Linear(
            hidden if kind == "mlp" else width, 1, use_bias=False, dtype=dtype, kernel_init=out_init, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch"]:
        x = self.norm(x)
        if self.score_in is not None:
            x = jax.nn.gelu(self.score_in(x), approximate=False)
        return self.score_out(x)[..., 0].astype(jnp.float32)


def top_k_indices(ranking: Float[Array, "*batch N"], count: int) -> Int[Array, "*batch K"]:
    """Indices of the `count` largest, ties to the lower index, in increasing order."""
    return jnp.sort(jax.lax.top_k(ranking, count)[1], axis=-1)


def top_k_weights(scores, ranking, num_slots: int, weight: str, merge_rest: bool) -> Float[Array, "B T K N"]:
    """One row per kept token, and one for the rest when asked; see `ScoredTopK`."""
    num_patches = scores.shape[-1]
    kept = top_k_indices(ranking, num_slots - int(merge_rest))
    # With fewer valid patches than slots, what is kept beyond them gives a zero token.
    rows = jax.nn.one_hot(kept, num_patches, dtype=jnp.float32) * (scores > NEGATIVE / 2)[..., None, :]
    probability = jax.nn.softmax(scores, axis=-1)
    if weight == "renorm":
        chosen = jnp.take_along_axis(probability, kept, axis=-1)
        rows *= (kept.shape[-1] * chosen / jnp.maximum(chosen.sum(-1, keepdims=True), 1e-20))[..., None]
    elif weight in ("sigmoid", "ste"):
        gate = jax.nn.sigmoid(jnp.take_along_axis(scores, kept, axis=-1))
        rows *= (gate if weight == "sigmoid" else 1 + (gate - jax.lax.stop_gradient(gate)))[..., None]
    if merge_rest:
        rest = probability * (1 - jax.nn.one_hot(kept, num_patches, dtype=jnp.float32).sum(-2))
        rest /= jnp.maximum(rest.sum(-1, keepdims=True), 1e-20)
        rows = jnp.concatenate([rows, rest[..., None, :]], axis=-2)
    return rows


def _identity(key, shape, dtype=jnp.float32):
    del key
    return jnp.eye(*shape, dtype=dtype)


class HashableArray:
    """A constant that is part of a module's structure, not of its parameters: compared and hashed by content."""

    def __init__(self, value: np.ndarray):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, HashableArray) and np.array_equal(self.value, other.value)

    def __hash__(self):
        return hash((self.value.shape, self.value.tobytes()))
