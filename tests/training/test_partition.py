"""Patterns to trainable leaves, and stacks cut and joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recipes import small

from vlvm_jax.config import StageConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model
from vlvm_jax.training.partition import copies, matching, resolve
from vlvm_jax.training.stages import as_it_begins, with_reset

MODEL = small().model


def stage(**trainable: float) -> StageConfig:
    return small().stages[0].model_copy(update={"trainable": tuple(trainable.items())})


def test_last_three_layers_cut_the_tower_and_train_only_those():
    partition = resolve(MODEL, stage(**{"encoder/layers/[-3:]/**": 1e-5}))
    assert partition.splits["encoder"] == (1,)
    assert partition.rates and all(path.startswith("encoder/layers/segments/1/") for path in partition.rates)
    shapes = Model(MODEL, partition.splits).abstract()
    assert shapes["encoder/layers/segments/1/mlp/fc1/kernel"].shape[0] == 3
    assert shapes["encoder/layers/segments/0/mlp/fc1/kernel"].shape[0] == 1


def test_a_slice_in_the_middle_is_cut_at_both_ends():
    partition = resolve(MODEL, stage(**{"encoder/layers/[1:3]/**": 1e-5}))
    assert partition.splits["encoder"] == (1, 3)
    assert {path.split("/")[3] for path in partition.rates} == {"1"}


def test_slices_count_from_the_layers_that_run():
    vision = MODEL.vision.model_copy(update={"feature_layer": -2})
    partition = resolve(MODEL.model_copy(update={"vision": vision}), stage(**{"encoder/layers/[-2:]/**": 1e-5}))
    assert partition.splits["encoder"] == (1, 3)
    assert {path.split("/")[3] for path in partition.rates} == {"1"}


def test_a_layer_that_never_runs_is_never_trained():
    vision = MODEL.vision.model_copy(update={"feature_layer": -2})
    partition = resolve(
        MODEL.model_copy(update={"vision": vision}), stage(**{"encoder/**": 1e-4, "encoder/layers/[-1:]/**": 1e-5})
    )
    rates = {path.split("/")[3]: rate for path, rate in partition.rates.items() if "/segments/" in path}
    assert rates == {"0": 1e-4, "1": 1e-5}


def test_last_match_wins():
    partition = resolve(MODEL, stage(**{"decoder/**": 1e-3, "decoder/norm/*": 5e-4}))
    assert partition.rates["decoder/norm/scale"] == 5e-4
    assert partition.rates["decoder/embed_tokens/embedding"] == 1e-3


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("decoder/nothing/**", "matches no parameter"),
        ("encoder/layers/[7:]/**", "addresses no layer; encoder runs 4"),
        ("adapter/layers/[-1:]/**", "only encoder and decoder have layers"),
    ],
)
def test_a_pattern_that_cannot_be_is_named(pattern, message):
    with pytest.raises(InputError, match=message):
        resolve(MODEL, stage(**{pattern: 1e-3}))


def test_a_reset_that_matches_nothing_is_named():
    with pytest.raises(InputError, match=r"align\.reset: 'x/\*\*' matches no parameter"):
        matching(["x/**"], ["a/b", "c/d"], "config.stages.align.reset")


def test_reset_draws_only_what_it_matches():
    config = small()
    whole = params_lib.join(jax.jit(lambda: Model(config.model).init(0))())
    after = with_reset(config, config.stages[1], whole)
    changed = {path for path in whole if not np.array_equal(whole[path], after[path])}
    assert changed == {f"adapter/connector/linear_{n}/kernel" for n in (1, 2)}  # fresh biases are zeros again


COPIED = {"adapter/temporal_connector": "adapter/connector"}


def with_two_connectors(**stage):
    """A recipe whose second stage makes one connector a copy of the other."""
    config = small()
    adapter = config.model.adapter.model_copy(update={"name": "spatiotemporal", "options": {}})
    model = config.model.model_copy(update={"adapter": adapter})
    stages = (config.stages[0], config.stages[1].model_copy(update=stage), *config.stages[2:])
    return config.model_copy(update={"model": model, "stages": stages})


def test_copies_are_of_what_the_stage_begins_with():
    config = with_two_connectors(copied=tuple(COPIED.items()))
    whole = params_lib.join(jax.jit(lambda: Model(config.model).init(0))())
    whole["adapter/temporal_connector/linear_1/bias"] = jnp.ones_like(
        whole["adapter/connector/linear_1/bias"], jnp.bfloat16
    )
    after = as_it_begins(config, config.stages[1], whole)
    for path in (path for path in whole if path.startswith("adapter/temporal_connector/")):
        np.testing.assert_array_equal(after[path], after[path.replace("temporal_connector", "connector")])
        assert after[path].dtype == whole[path].dtype
        assert after[path].unsafe_buffer_pointer() != after[path.replace("temporal_", "")].unsafe_buffer_pointer()
    changed = {path for path in whole if not np.array_equal(whole[path], after[path])}
    assert changed and all("connector/" in path for path in changed)  # the stage also resets the connector


@pytest.mark.parametrize(
    ("copied", "message"),
    [
        ({"adapter/temporal": "adapter/connector"}, "there is no module 'adapter/temporal' with parameters"),
        ({"adapter/temporal_connector": "encoder"}, "cannot be a copy of 'encoder'"),
    ],
)
def test_copies_that_cannot_be_are_named(copied, message):
    config = with_two_connectors(copied=tuple(copied.items()))
    with pytest.raises(InputError, match=f"config.stages.align.copied: .*{message}"):
        copies(config.stages[1], Model(config.model).abstract())


def test_split_and_join_are_inverse():
    whole = params_lib.join(jax.jit(lambda: Model(MODEL).init(0))())
    splits = {"encoder": (1, 2), "decoder": (2,)}
    cut = params_lib.split(whole, splits)
    assert cut.keys() == Model(MODEL, splits).abstract().keys()
    back = params_lib.join(cut)
    assert back.keys() == whole.keys()
    for path in whole:
        np.testing.assert_array_equal(back[path], whole[path])


def test_join_takes_the_widest_dtype():
    mixed = {
        "encoder/layers/segments/0/x": jnp.ones((1, 2), jnp.bfloat16),
        "encoder/layers/segments/1/x": jnp.ones((2, 2), jnp.float32),
    }
    assert params_lib.join(mixed)["encoder/layers/x"].dtype == jnp.float32
