import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from support.hf import fill
from support.recipes import small
from transformers import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from vlvm_jax.config import ConnectorConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models.connector import Connector, num_tokens

VISION = small().model.vision


def tower(side):
    return VISION.model_copy(update={"image_size": side * VISION.patch_size})


def connector(side, **settings):
    return fill(lambda: Connector(ConnectorConfig(**settings), tower(side), 24, dtype=jnp.float32, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("side", "scale"), [(4, 2), (6, 3), (6, 2), (4, 4)])
def test_pixel_shuffle_is_idefics3s(side, scale):
    ours = connector(side, kind="pixel_shuffle", bias=False, scale_factor=scale)
    config = Idefics3Config(
        vision_config={"hidden_size": VISION.hidden_size},
        text_config={"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2},
        scale_factor=scale,
    )
    theirs = Idefics3Connector(config)
    kernel = np.array(ours.modality_projection.proj.kernel[...])
    theirs.modality_projection.proj.weight.data = torch.from_numpy(kernel.T.copy())
    x = np.random.default_rng(0).standard_normal((3, side**2, VISION.hidden_size)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    assert expected.shape[1] == ours.num_tokens == (side // scale) ** 2
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, atol=1e-4)


def test_a_scale_that_does_not_divide_the_grid_is_named():
    with pytest.raises(InputError, match="scale_factor: 2 does not divide the tower's grid of 5 x 5"):
        num_tokens(ConnectorConfig(kind="pixel_shuffle", scale_factor=2), tower(5))


def test_no_bias_where_there_is_to_be_none():
    assert connector(4, kind="mlp2x_gelu", bias=False).linear_1.bias is None
    assert connector(4, kind="mlp2x_gelu").linear_2.bias is not None
    assert connector(4, kind="linear").linear_2 is None
