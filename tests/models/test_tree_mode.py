"""The model works in NNX's tree mode too, which is to become the default (FLIP 5310)."""

import os
import subprocess
import sys

from support.recipes import ROOT

SCRIPT = """
import jax, jax.numpy as jnp
import flax
from support.recipes import small
from vlvm_jax.models.params import Model
from vlvm_jax.models.video_llm import Batch
assert flax.config.nnx_graph_mode is False  # the environment variable took effect
model = Model(small().model, {"encoder": (1,)})
params = jax.jit(lambda: model.init(0))()
shape = (2, 40)
batch = Batch(
    frames=jnp.zeros((2, 2, 48, 48, 3), jnp.uint8), media=jnp.ones((2, 2), jnp.int32), is_video=jnp.ones((2, 2), bool),
    token_ids=jnp.ones(shape, jnp.int32), media_mask=jnp.arange(40)[None] < jnp.full((2, 1), 8),
    positions=jnp.tile(jnp.arange(40), (2, 1)), segment_ids=jnp.ones(shape, jnp.int32), loss_mask=jnp.ones(shape, bool),
)
hidden, _ = jax.jit(lambda p: model.bind(p)(batch))(params)
assert hidden.shape == (2, 40, 96) and bool(jnp.isfinite(hidden).all())
print("tree mode works")
"""


def test_init_and_forward_in_tree_mode():
    environment = {**os.environ, "NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false", "PYTHONPATH": "tests:."}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert "tree mode works" in done.stdout, done.stderr[-2000:]
