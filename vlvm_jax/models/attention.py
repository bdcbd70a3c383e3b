"""One attention entry point for the tower and the decoder.

Everything that decides *which* kernel runs lives here, so that a new backend is one branch in one file: splash
attention (Pallas) on TPU, cuDNN's on GPU where its dtype allows, XLA's elsewhere.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from vlvm_jax.parallel import rules

Kernel = Literal["splash", "cudnn", "xla"]
_LANES = 128  # splash works on blocks of a multiple of this many positions
_BLOCK = 512  # queries at a time where no fused kernel runs; on a CPU, 256 to 512 are alike


def kernel_here(dtype) -> Kernel:
    """The kernel for the devices that a computation is compiled for: the current mesh's, else the default ones.

    The mesh counts, not the process: a program for a TPU can be compiled on a host that has none.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = device.device_kind if device is not None else jax.devices()[0].device_kind
    if kind.startswith("TPU"):
        return "splash"
    on_gpu = jax.default_backend() == "gpu" and not kind.lower().startswith("cpu")
    return "cudnn" if on_gpu and dtype in (jnp.bfloat16, jnp.float16) else "xla"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelfMask:
    """Who sees whom within a sequence: causal within each segment. Made once and used by all layers.

    Attributes:
      segments: [B, L] 0 for padding.
      visible: [B, 1, L, L], or None for kernels that work it out block by block.
      window: how many positions a query sees, its own among them; None for all before it.
    """

    segments: Int[Array, "B L"]
    visible: Bool[Array, "B 1 L L"] | None
    window: int | None = dataclasses.field(default=None, metadata={"static": True})


def causal_mask(
    segments: Int[Array, "B L"], positions: Int[Array, "B L"], dtype, window: int | None = None
) -> SelfMask:
    """Positions must count up by one within each segment."""
    if kernel_here(dtype) == "splash":
        return SelfMask(segments, None, window)
    return SelfMask(segments, segment_mask(segments, segments, positions, positions, window), window)


def segment_mask(
    query_segments: Int[Array, "B Q"],
    key_segments: Int[Array, "B S"],
    query_positions: Int[Array, "B Q"] | None = None,
    key_positions: Int[Array, "B S"] | None = None,
    window: int | None = None,
) -> Bool[Array, "B 1 Q S"]:
    """True where a query may look: same non-zero segment and, when positions are given, not into the future, nor
    further back than the window.

    Segment 0 is padding. A padding query sees nothing; `attention` returns a finite value for it all the same.
    """
    mask = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    if query_positions is not None and key_positions is not None:
        back = query_positions[:, :, None] - key_positions[:, None, :]
        mask &= back >= 0 if window is None else (back >= 0) & (back < window)
    return mask[:, None]


def attention(
    query: Float[Array, "B Q H F"],
    key: Float[Array, "B S G F"],
    value: Float[Array, "B S G F"],
    mask: SelfMask | Bool[Array, "B 1 Q S"] | None = None,
) -> Float[Array, "B Q H F"]:
    """Scaled dot-product attention; H query heads share G key/value heads (H a multiple of G).

    Softmax runs in fp32 whatever the inputs' dtype. Rows that may see nothing give finite values, never NaN.

    Args:
      mask: `SelfMask` for causal self-attention; None for full self-attention (a tower); an array for anything else,
        which XLA runs. Over a cache: `cached_attention`.
    """
    kernel = kernel_here(query.dtype)
    if kernel == "splash" and not isinstance(mask, jax.Array):
        if mask is None:
            return splash_attention(query, key, value, None, causal=False)
        return splash_attention(query, key, value, mask.segments, causal=True, window=mask.window)
    visible = mask.visible if isinstance(mask, SelfMask) else mask
    if kernel == "xla" and isinstance(mask, SelfMask) and visible is not None and _worth_blocks(query.shape[1]):
        return blocked_attention(query, key, value, visible)
    fused = kernel == "cudnn" and query.shape[1] > 1 and query.shape[-1] <= 128 and query.shape[-1] % 8 == 0
    return jax.nn.dot_product_attention(query, key, value, mask=visible, implementation="cudnn" if fused else "xla")


_in_full = contextvars.ContextVar("in_full", default=False)


@contextlib.contextmanager
def in_full() -> Iterator[None]:
    """What is traced within has attention as one product of all queries with all keys: for who counts operations."""
    before = _in_full.set(True)
    try:
        yield
    finally:
        _in_full.reset(before)


def _worth_blocks(length: int) -> bool:
    """Whether a sequence is longer than a block, and lies whole on each device."""
    if _in_full.get():
        return False
    mesh = jax.sharding.get_abstract_mesh()
    return length > _BLOCK and (mesh.empty or rules.divided("length", length, mesh) is None)


def blocked_attention(
    query: Float[Array, "B L H F"],
    key: Float[Array, "B L G F"],
    value: Float[Array, "B L G F"],
    mask: Bool[Array, "B 1 L L"],
    block: int = _BLOCK,
) -> Float[Array, "B L H F"]:
    """Causal self-attention, block of queries by block, each over the keys up to its last query.

    Half of the products fall away. Key heads take turns where they lie on one device, so that only one's logits are
    ever held: on a CPU, memory that is touched for the first time costs more than a pass over it.
    """
    batch, length, heads, width = query.shape
    groups, mesh = key.shape[2], jax.sharding.get_abstract_mesh()

    def run(query, key, value):
        """[B, L, heads, F] and [B, groups, L, F] of some groups."""
        outs = []
        for start in range(0, length, block):
            stop = min(start + block, length)
            visible = mask[:, :, start:stop, :stop]
            outs.append(cached_attention(query[:, start:stop], key[:, :, :stop], value[:, :, :stop], visible))
        return jnp.concatenate(outs, axis=1)

    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if not mesh.empty and rules.divided("heads", groups, mesh):
        return run(query, key, value)
    of_group = jnp.moveaxis(query.reshape(batch, length, groups, heads // groups, width), 2, 0)
    in_turn = (of_group, *(jnp.expand_dims(x.swapaxes(0, 1), 2) for x in (key, value)))
    out = jax.lax.map(lambda one: run(*one), in_turn)
    return jnp.moveaxis(out, 0, 2).reshape(batch, length, heads, width)


def cached_attention(
    query: Float[Array, "B Q H F"],
    key: Float[Array, "B G S F"],
    value: Float[Array, "B G S F"],
    mask: Bool[Array, "B 1 Q S"],
) -> Float[Array, "B Q H F"]:
    """The same over a cache, which is read as it lies: one batched product a head, nothing of it is moved.

    With one query a row no fused kernel has anything to gain: the time is that of reading the cache once.
    """
    batch, length, heads, width = query.shape
    groups, slots = key.shape[1:3]
    shared = heads // groups
    of_group = query.reshape(batch, length, groups, shared, width).transpose(0, 2, 3, 1, 4)
    of_group = of_group.reshape(batch, groups, shared * length, width)
    logits = jnp.einsum("bgqf,bgsf->bgqs", of_group, key.astype(query.dtype), preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, groups, shared, length, slots) * width**-0.5
    logits = jnp.where(mask[:, :, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype).reshape(batch, groups, shared * length, slots)
    out = jnp.einsum("bgqs,bgsf->bgqf", weights, value.astype(query.dtype))
    out = out.reshape(batch, groups, shared, length, width).transpose(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, width)


def splash_attention(
    query: Float[Array, "B L H F"],
    key: Float[Array, "B L G F"],
    value: Float[Array, "B L G F"],
    segments: Int[Array, "B L"] | None,
    *,
    causal: bool,
    window: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B L H F"]:
    """Self-attention by jax's splash kernel: no [L, L] matrix in memory, forward or backward.

    Sequences are padded to whole blocks, padding in a segment of its own. Under a mesh each device runs its rows and,
    where the mesh's `tensor` axis divides them, its heads. Where causal sequences lie split over `context`, each device
    gathers all keys and values and runs its share of the queries.

    Args:
      causal: rows are sequences (`batch`); else they are single frames (`frames`).
      window: of causal sequences, see `SelfMask`.
      interpret: run the kernel step by step on any device (tests).
    """
    batch, length, heads, width = query.shape
    mesh = jax.sharding.get_abstract_mesh()
    shards = rules.width("length", mesh) if causal and not mesh.empty and rules.divided("length", length, mesh) else 1
    spare = -length % (_LANES * (2 * shards if shards > 1 else 1))
    if segments is None:
        segments = jnp.ones((batch, length), jnp.int32)

    def blocked(x):
        x = jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)))
        return x.swapaxes(1, 2) if x.ndim == 4 else x

    of_heads = None
    if not mesh.empty and rules.divided("heads", key.shape[2], mesh):
        of_heads = rules.divided("heads", heads, mesh)
    local_heads = heads // rules.width("heads", mesh) if of_heads else heads
    kernel = _splash_kernel(
        local_heads, length + spare, causal=causal, window=window, shards=shards, interpret=interpret
    )
    run = functools.partial(_splash_rows, shards=shards)
    if not mesh.empty:
        rows = rules.divided("batch" if causal else "frames", batch, mesh)
        of_length = "context" if shards > 1 else None
        spec, of_rows = PartitionSpec(rows, of_heads, of_length, None), PartitionSpec(rows, of_length)
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, of_length)))
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(of_kernel, spec, spec, spec, of_rows), out_specs=spec, check_vma=False
        )
    out = run(kernel, blocked(query * width**-0.5), blocked(key), blocked(value), blocked(segments))
    return out.swapaxes(1, 2)[:, :length]


def _splash_kernel(heads: int, length: int, *, causal: bool, window: int | None, shards: int, interpret: bool):
    """The kernel with its block tables, for sequences split into `shards` as `_exchange` leaves them."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import, for TPUs only

    if causal:
        mask: Any = splash.CausalMask((length, length))
        if window is not None:  # within a segment, positions are as far apart as places in the row
            mask = splash.LocalMask((length, length), (window - 1, 0), 0)
        if shards > 1:
            mask.q_sequence = np.arange(length, dtype=np.int32).reshape(2 * shards, -1)[_halves(shards)].reshape(-1)
    else:
        mask = splash.FullMask((length, length))
    local = length // (2 * shards) if shards > 1 else length
    block = max(size for size in (128, 256, 384, 512) if local % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=shards,
        block_sizes=sizes,
        interpret=interpret,
    )


def _splash_rows(kernel, query, key, value, segments, *, shards: int):
    """[B, H, L, F] queries and [B, G, L, F] keys and values of one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    of_queries = segments
    if shards > 1:
        key, value = (jax.lax.all_gather(x, "context", axis=2, tiled=True) for x in (key, value))
        query = _exchange(query, 2, shards)
        of_queries = _exchange(segments, 1, shards)
        segments = jax.lax.all_gather(segments, "context", axis=1, tiled=True)

    def row(query, key, value, of_queries, segments):
        return kernel(query, key, value, segment_ids=SegmentIds(of_queries, segments))

    out = jax.vmap(row)(query, key, value, of_queries, segments)
    return _exchange(out, 2, shards, back=True) if shards > 1 else out


def _halves(shards: int) -> np.ndarray:
    """Which two halves of shards (an even one and an odd one) each device works on: of 2n, numbers j and 2n - 1 - j.

    A causal query late in the sequence sees more than an early one; so paired, all devices have the same work.
    """
    pairs = np.stack([np.arange(shards), 2 * shards - 1 - np.arange(shards)], axis=1)
    return np.where((pairs[:, :1] % 2 == 0), pairs, pairs[:, ::-1]).reshape(-1)


def _exchange(x: jax.Array, axis: int, shards: int, *, back: bool = False) -> jax.Array:
    """From the two halves of each device's own shard to those it works on, or back."""
    parts = []
    for index, half in enumerate(jnp.split(x, 2, axis=axis)):
        moves = [(int(number) // 2, device) for device, number in enumerate(_halves(shards)[index::2])]
        moves = [(there, here) for here, there in moves] if back else moves
        parts.append(jax.lax.ppermute(half, "context", moves))
    return jnp.concatenate(parts, axis=axis)


def attention_received(
    query: Float[Array, "B N H F"], key: Float[Array, "B N H F"], *, from_first: bool
) -> Float[Array, "B N"]:
    """How much attention each token receives, mean over heads: from token 0 (a CLS token), or from all on average.

    fp32; each row sums to 1. Used by the sampler that ranks patches by the tower's own attention.
    """
    scale = query.shape[-1] ** -0.5
    query = query[:, :1] if from_first else query
    logits = jnp.einsum("bqhf,bkhf->bhqk", query, key, preferred_element_type=jnp.float32) * scale
    return jax.nn.softmax(logits, axis=-1).mean(axis=(1, 2))
