import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vlvm_jax.ahead_of_time import hlo


def test_collectives_in_a_loop_count_every_turn():
    """Eight devices, a scan over 5 layers whose products sum over all of them: one reduction a layer."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    columns = NamedSharding(mesh, PartitionSpec(None, "fsdp"))

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x, w = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
    compiled = jax.jit(layers, in_shardings=(columns, columns), out_shardings=columns).lower(x, w).compile()
    found = hlo.collectives(compiled.as_text())
    assert found.count == {"all-reduce": 5}
    assert found.bytes == {"all-reduce": 5 * 64 * 32 * 4}


def test_a_sum_over_devices_is_one_reduction():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    compiled = jax.jit(lambda x: x.sum(0), in_shardings=split, out_shardings=whole).lower(x).compile()
    found = hlo.collectives(compiled.as_text())
    assert found.count == {"all-reduce": 1}
    assert found.bytes == {"all-reduce": 16 * 4}


TPU_LINES = """
%cond (p: (s32[])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(7)
  %p = (s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body (p.1: (s32[])) -> (s32[]) {
  %p.1 = (s32[]{:T(128)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %next = s32[]{:T(128)} add(%i.1, %one)
  %g = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%x), replica_groups=[8,8]<=[64], dimensions={0}
  %d = bf16[64,4]{1,0} all-gather-done(%g)
  %s = f32[8,4]{1,0} reduce-scatter(%y), replica_groups=[8,8]<=[64], dimensions={0}, to_apply=%add
  ROOT %t = (s32[]{:T(128)}) tuple(%next)
}

ENTRY %main (a: f32[]) -> f32[] {
  %w = (s32[]{:T(128)}) while(%init), condition=%cond, body=%body
  ROOT %r = (f32[2]{0}, f32[]) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""

# Shards going around a ring of 32, two each way a turn, while they are multiplied; in a loop of 4 turns.
RING = """
%ring_cond (p: (bf16[8,4], u32[])) -> pred[] {
  %p = (bf16[8,4]{1,0}, u32[]{:T(128)}) parameter(0)
  %limit = u32[]{:T(128)} constant(15), metadata={op_name="jit(f)/dot_general"}
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT, metadata={op_name="jit(f)/dot_general"}
}

%ring_body (p.1: (bf16[8,4], u32[])) -> (bf16[8,4], u32[]) {
  %p.1 = (bf16[8,4]{1,0}, u32[]{:T(128)}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %x = bf16[8,4]{1,0} get-tuple-element(%p.1), index=0
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  %there = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %back = bf16[8,4]{1,0} collective-permute-done(%there)
  %sum = u32[]{:T(128)S(6)} add(%i.1, %two)
  %next = u32[]{:T(128)} copy(%sum)
  ROOT %t = (bf16[8,4]{1,0}, u32[]{:T(128)}) tuple(%back, %next)
}

%cond (p.2: (s32[])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(4)
  %p.2 = (s32[]{:T(128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.2, %constant.1), direction=LT
}

%body (p.3: (s32[])) -> (s32[]) {
  %p.3 = (s32[]{:T(128)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i.3 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  %w.1 = (bf16[8,4]{1,0}, u32[]{:T(128)}) while(%init), condition=%ring_cond, body=%ring_body
  ROOT %t.1 = (s32[]{:T(128)}) tuple(%next.1)
  %next.1 = s32[]{:T(128)} add(%one, %i.3)
}

ENTRY %main (a: f32[]) -> f32[] {
  ROOT %w = (s32[]{:T(128)}) while(%start), condition=%cond, body=%body
}
"""


def test_asynchronous_and_scattered_forms_of_the_tpu_compiler():
    found = hlo.collectives(TPU_LINES)
    assert found.count == {"all-gather": 7, "reduce-scatter": 7, "all-reduce": 1}
    assert found.bytes == {"all-gather": 7 * 64 * 4 * 2, "reduce-scatter": 7 * 8 * 8 * 4 * 4, "all-reduce": 12}


def test_shards_that_go_around_a_ring_count_every_turn():
    found = hlo.collectives(RING)
    assert found.count == {"collective-permute": 4 * 8}
    assert found.bytes == {"collective-permute": 4 * 8 * 8 * 4 * 2}
    assert not found.at_least


@pytest.mark.parametrize(
    "old, new",
    [("direction=LT", "direction=NE"), ("add(%i.1, %two)", "shift-left(%i.1, %two)"), ("constant(15)", "copy(%n)")],
)
def test_loops_of_unknown_turns_count_once_and_are_said(old, new):
    found = hlo.collectives(RING.replace(old, new))
    assert found.count["collective-permute"] in (1, 4)
    assert found.at_least
