"""The count against the formulas, and against what changes it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from support.recipes import small

from vlvm_jax.models import attention
from vlvm_jax.training import abstract
from vlvm_jax.training.flops import count

CONFIG = small()


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_products_through_loops_and_gradients():
    def layers(x, w):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])

    x, w = shape(5, 16), shape(7, 16, 16)
    forward = 7 * 2 * 5 * 16 * 16
    assert count(layers, x, w) == forward
    assert count(jax.grad(layers, argnums=(0, 1)), x, w) == 3 * forward
    assert count(jax.grad(layers), x, w) == 2 * forward

    def recomputed(x, w):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), prevent_cse=False)
        return jnp.sum(jax.lax.scan(body, x, w)[0])

    assert count(jax.grad(recomputed, argnums=(0, 1)), x, w) == 4 * forward


def of_stage(name, **changes):
    stage = next(stage for stage in CONFIG.stages if stage.name == name).model_copy(update=changes)
    model = CONFIG.model.model_copy(update={"decoder_remat": "none", "vision_remat": "none"})
    config = CONFIG.model_copy(update={"model": model})
    return abstract.count_step(config, stage), stage


def test_the_forward_pass_is_the_formula():
    flops, stage = of_stage("instruct")
    vision, decoder = CONFIG.model.vision, CONFIG.model.decoder
    frames, tokens, length = stage.batch_size * stage.frames, stage.batch_size * stage.length, stage.length
    patches, width = vision.num_patches, vision.hidden_size
    layer = 8 * patches * width**2 + 4 * patches * width * vision.intermediate_size + 4 * patches**2 * width
    embed = 2 * patches * vision.patch_size**2 * 3 * width
    assert flops.tower == frames * (embed + vision.num_used_layers * layer)
    hidden, heads = decoder.hidden_size, decoder.num_attention_heads * decoder.head_dim
    layer = 2 * 4 * hidden * heads + 2 * 3 * hidden * decoder.intermediate_size + 4 * length * heads
    assert flops.decoder == tokens * (decoder.num_hidden_layers * layer + 2 * hidden * decoder.vocab_size)


def test_training_everything_costs_two_forward_passes_more():
    flops, stage = of_stage("base")
    forward = flops.tower + flops.adapter + flops.decoder
    vision = CONFIG.model.vision
    embed = stage.batch_size * 2 * vision.num_patches * vision.patch_size**2 * 3 * vision.hidden_size
    # Less: no gradient of the pixels is wanted, and none of the sampler, which images pass by.
    assert 2 * forward - embed - flops.adapter <= flops.backward < 2 * forward
    assert flops.recomputed == 0
    assert flops.model == forward + flops.backward


def test_a_frozen_tower_has_no_backward_pass():
    trained, _ = of_stage("base")
    frozen, stage = of_stage("align")
    assert frozen.tower == trained.tower
    assert frozen.backward < trained.backward - 1.5 * trained.tower
    assert dataclasses.replace(frozen, recomputed=5.0).hardware == frozen.model + 5
    assert stage.name == "align"


def test_what_a_step_needs_depends_on_the_learned_tokens():
    flops, stage = of_stage("base")  # the head is trained
    product = 2 * stage.batch_size * stage.length * CONFIG.model.decoder.hidden_size * CONFIG.model.decoder.vocab_size
    assert flops.head == 3 * product and of_stage("align")[0].head == 2 * product
    assert flops.needed(1.0) == flops.model and flops.needed(0.25) == flops.model - 0.75 * 3 * product


def test_a_frozen_head_s_gradient_does_not_count_however_it_is_cut():
    whole, _ = of_stage("align")
    cut, _ = of_stage("align", loss_chunks=4)
    assert cut.backward == pytest.approx(whole.backward, rel=0.01)
    assert cut.recomputed > whole.recomputed


def test_long_causal_attention_counts_in_full():
    """No halving, whatever way this host would run it: 2 products of L x L x (heads x width), 2 operations each."""
    length, heads, width = 1024, 2, 8
    x = jax.ShapeDtypeStruct((1, length, heads, width), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def attend(x, segments):
        return attention.attention(x, x, x, attention.causal_mask(segments, segments, x.dtype))

    assert count(attend, x, segments) == 2 * 2 * length**2 * heads * width
