"""Low-rank adapters (LoRA, arXiv 2106.09685) on the dense layers of tower and decoder.

The parameters stand beside the kernel they adapt: `decoder/layers/self_attn/q_proj/lora_a`, [layers, in, rank].
Merging them into the kernels and handing them to PEFT: `vlvm_jax.weights.export.lora`.
"""

from collections.abc import Mapping

from flax import nnx

from vlvm_jax.config import LoraConfig
from vlvm_jax.models.layers import Linear


def attach(parts: Mapping[str, nnx.Module], config: LoraConfig, *, rngs: nnx.Rngs) -> None:
    """Adds adapters to the layers that `config` names, in place. The model computes what it did before.

    Draws from `rngs` after all else is made, so that adapters do not change how the rest is initialised.

    Args:
      parts: `{"encoder": tower, "decoder": decoder}`; those of `config.parts` must be there.
    """
    for part in config.parts:
        targets = config.targets_in(part)
        layers = [
            module
            for path, module in nnx.iter_modules(parts[part])
            if isinstance(module, Linear) and "layers" in path and path[-1] in targets
        ]
        for layer in layers:
            layer.add_lora(config.rank, config.scale, rngs=rngs)
