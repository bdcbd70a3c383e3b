"""What the tests of exports share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from etils import epath

from support.families import NAMES
from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.importing import import_checkpoint


def round_trip(source: Path, folder: Path, **options: Any) -> Path:
    """Out of one directory, through an import, into another."""
    import_checkpoint(str(source), epath.Path(folder / "imported"))
    write.export_checkpoint(str(folder / "imported"), folder / "exported", Options(verify=False, **options))
    return folder / "exported"


def load_strictly(folder: Path, family: str):
    """By transformers, in the dtype of the files; a missing, unexpected or misshapen tensor fails."""
    tower, decoder = family in ("clip", "siglip"), family not in NAMES
    auto_class = "AutoModel" if tower else "AutoModelForCausalLM" if decoder else "AutoModelForImageTextToText"
    model, info = getattr(transformers, auto_class).from_pretrained(folder, dtype="auto", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], f"{kind}: {info[kind]}"
    return model.eval()


def assert_same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def assert_same_tensors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name
