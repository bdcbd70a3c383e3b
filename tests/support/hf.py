"""Modules with chosen parameters: drawn at random, or copied from a Hugging Face torch model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def _build(make, value_of):
    """Calls `make` abstractly (nothing is compiled for the initialisers) and sets each parameter to `value_of`."""
    graphdef, state = nnx.split(nnx.eval_shape(make))

    def leaf(path, abstract):
        names = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None)))) for key in path]
        value = value_of([name for name in names if name not in ("value", "raw_value")], abstract.shape)
        assert value.shape == abstract.shape, f"{'/'.join(names)}: {value.shape} for {abstract.shape}"
        return jnp.asarray(value, abstract.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(leaf, state))


def fill(make, seed: int = 0, gain: float = 1.0):
    """The module that `make` builds with every parameter random, biases and norm scales too."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        noise = rng.standard_normal(shape)
        if path[-1] == "scale":
            return 1 + 0.2 * noise
        return gain * noise / np.sqrt(shape[-2]) if path[-1] == "kernel" else 0.5 * noise

    return _build(make, draw)


def randomize(model, seed: int = 0):
    """The same for a torch model, whose own initialisers leave norms at 1 and biases at 0."""
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(np.asarray(rng.standard_normal(parameter.shape))).float()
            if parameter.ndim <= 1:
                parameter.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise if "embed_tokens" in name else noise / np.sqrt(parameter[0].numel()))
    return model.eval()


def load(make, model, ignore: tuple[str, ...] = ()):
    """The module that `make` builds with the parameters of a torch model; those of it that are left over are an error.

    Names are equal on both sides. Linear weights are [out, in] there; a patch convolution [D, 3, P, P] is a
    [P * P * 3, D] kernel here; the layers are stacked.
    """
    theirs = {
        re.sub(r"^((vision_)?model\.|embeddings\.|encoder\.)+", "", name): value.detach().numpy()
        for name, value in model.state_dict().items()
    }
    left = {name for name in theirs if not name.startswith(ignore or ("-",))}

    def take(path):
        *parts, last = path
        name = ".".join([*parts, {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(last, last)])
        name = name if name in theirs else f"{name}.weight"
        left.discard(name)
        value = theirs[name]
        if "patch_embedding" in parts and last == "kernel":
            return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
        return value.T if last == "kernel" else value

    def value_of(path, shape):
        if path[:3] == ["layers", "segments", "0"]:
            return np.stack([take(["layers", str(i), *path[3:]]) for i in range(shape[0])])
        return take(path)

    module = _build(make, value_of)
    assert not left, f"not copied: {sorted(left)}"
    return module
