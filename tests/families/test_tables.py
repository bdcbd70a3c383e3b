"""Which tensors of a checkpoint have a place."""

import pytest

from vlvm_jax.config import DecoderConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families._llava import POOLING_HEAD
from vlvm_jax.families._tower import OTHER_PARTS
from vlvm_jax.weights import tables

RULES = tables.decoder_rules(
    DecoderConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )
)  # fmt: skip
NAMES = [name for rule in RULES for name in rule.tensors()]


def match(names):
    return tables.match(names, RULES, carried=POOLING_HEAD, dropped=OTHER_PARTS, where="SRC")


@pytest.mark.parametrize("name", ["layers.0.self_attn.rotary_emb.inv_freq", "embeddings.position_ids", "logit_scale"])
def test_what_nothing_computes_with_is_passed_over(name):
    assert match([*NAMES, name]) == []


def test_what_the_class_wants_back_is_kept():
    assert match([*NAMES, "model.vision_tower.head.probe"]) == ["model.vision_tower.head.probe"]


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_proj.bias", "layers.2.self_attn.q_proj.weight", "layers.0.mlp.up_proj.lora_A.weight",
        "norm.bias", "layers.0.self_attn.inv_freq", "position_ids.weight", "lm_head.weight",
    ],
)  # fmt: skip
def test_what_has_no_place_is_refused(name):
    with pytest.raises(InputError, match=rf"SRC: 1 tensor that this model has no place for: {name}"):
        match([*NAMES, name])


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_is_needed(name):
    with pytest.raises(InputError, match=rf"SRC: 1 tensor missing .*: {name}$"):
        match([one for one in NAMES if one != name])
