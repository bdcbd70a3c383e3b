"""The comparison with PyTorch that ends an export."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.families import NAMES, SPECS, read_tensors

from vlvm_jax.errors import InputError
from vlvm_jax.weights.export import verify, write
from vlvm_jax.weights.export.export import Options, plan
from vlvm_jax.weights.sources import open_source

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        "llava siglip-head mistral gqa1", "llava_next odd-grid llama gqa1", "llava_next_video max odd-grid",
        "llava_onevision odd-grid shrink", "smolvlm remainder tied", "idefics3 scale3 gqa1", "clip vision", "siglip",
        "llama tied llama3-rope",
    ],
)  # fmt: skip
def test_the_comparison_agrees(checkpoints, name, tmp_path):
    result = write.export_checkpoint(str(checkpoints(name)), tmp_path / "out", Options())
    report = result.verified
    assert report is not None and report.difference < 1e-5
    assert report.same_answer is (True if SPECS[name].family in NAMES else None)
    assert str(report) in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["llava clip llama", "siglip vision", "qwen2 tied"])
def test_the_comparison_notices_one_wrong_tensor(checkpoints, name, tmp_path):
    export = plan(open_source(str(checkpoints(name, dtype="float32")), "SRC"), Options())
    write.write(export, tmp_path, None)
    tensors = read_tensors(tmp_path)
    wrong = next(
        key for key in tensors if key.endswith("layers.0.mlp.fc1.bias") or key.endswith("0.mlp.up_proj.weight")
    )
    tensors[wrong] = tensors[wrong] + np.float32(0.05)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="does not say the same in PyTorch"):
        verify.compare(export, tmp_path)
