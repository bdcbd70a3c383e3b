"""LoRA parameters out of a model: folded into the kernels they adapt, or as an adapter directory that PEFT loads.

Both work on whole parameters (`vlvm_jax.models.params`): path -> array, layer stacks [layers, ...].
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors.numpy import save_file

from vlvm_jax.config import LORA_MODULES, LoraConfig
from vlvm_jax.errors import InputError


def is_lora(path: str) -> bool:
    return path.endswith(("/lora_a", "/lora_b"))


def merged(path: str, get: Callable[[str], Any], config: LoraConfig) -> jax.Array:
    """One parameter of the model without adapters: kernel + scale * A B, computed in fp32, in the kernel's dtype.

    Args:
      path: of the (whole) parameter, `decoder/layers/mlp/up_proj/kernel`; one without an adapter comes back as it is.
      get: gives the array at a path. It may give one layer of each stack in place of all.
    """
    layer, _, leaf = path.rpartition("/")
    if leaf != "kernel" or not _has_adapter(layer, config):
        return get(path)
    kernel = get(path)
    total = _fold(kernel, get(f"{layer}/lora_a"), get(f"{layer}/lora_b"), scale=config.scale)
    return jax.device_put(total, kernel.sharding) if isinstance(kernel, jax.Array) else total


@functools.partial(jax.jit, static_argnames="scale")
def _fold(
    kernel: Float[Array, "*layers in out"],
    lora_a: Float[Array, "*layers in rank"],
    lora_b: Float[Array, "*layers rank out"],
    scale: float,
) -> Float[Array, "*layers in out"]:
    def one(weights):
        kernel, a, b = (value.astype(jnp.float32) for value in weights)
        return (kernel + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)).astype(weights[0].dtype)

    weights = (kernel, lora_a, lora_b)
    return one(weights) if kernel.ndim == 2 else jax.lax.map(one, weights)  # fp32 copies of one layer at a time


def write_peft(
    directory: str | os.PathLike,
    params: Mapping[str, Any],
    config: LoraConfig,
    prefix_of: Mapping[str, str],
    base_model: str | None = None,
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` (fp32) for `peft.PeftModel.from_pretrained`.

    The directory holds the LoRA parameters alone. It reproduces this model on a base whose other parameters are this
    model's.

    Args:
      params: whole parameters; those that are not LoRA's are not read.
      prefix_of: for each part, the name of the module that holds `layers` in the transformers class, as in memory in
        transformers 5: `{"decoder": "model.language_model", "encoder": "model.vision_tower.encoder"}` for
        `LlavaForConditionalGeneration`, `{"decoder": "model"}` for `LlamaForCausalLM`.
      base_model: hub id or directory of the model that the adapter belongs to, for PEFT's `Auto` classes.

    Raises:
      InputError: the LoRA parameters are not those of `config`, or `prefix_of` lacks their part.
    """
    tensors: dict[str, np.ndarray] = {}
    modules = []
    for layer in adapted_layers(params, config):
        part, _, within = layer.split("/", 2)
        if part not in prefix_of:
            raise InputError(f"--lora=peft: PEFT has no names for LoRA in this class's {part}; use --lora=merge")
        stacks = [np.asarray(params[f"{layer}/lora_{which}"], np.float32) for which in "ab"]
        for index, (a, b) in enumerate(zip(*stacks, strict=True)):
            module = f"{prefix_of[part]}.layers.{index}.{within.replace('/', '.')}"
            modules.append(module)
            tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(b.T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        # Full names: a tower has modules called q_proj too, and may have no adapters.
        "target_modules": modules,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _replace(directory / "adapter_model.safetensors", lambda path: save_file(tensors, path, {"format": "pt"}))
    _replace(directory / "adapter_config.json", lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))


def adapted_layers(params: Mapping[str, Any], config: LoraConfig) -> list[str]:
    """Paths of the layers that have adapters (`decoder/layers/self_attn/q_proj`), sorted.

    Raises:
      InputError: `params` has other LoRA parameters than `config` says, or of another rank.
    """
    layers = sorted({path.rpartition("/")[0] for path in params if is_lora(path)})
    for layer in layers:
        if not _has_adapter(layer, config):
            raise InputError(
                f"{layer}/lora_a: the checkpoint has this parameter, but config.model.lora asks for none here; give "
                "the config that it was trained with"
            )
        for leaf in ("lora_a", "lora_b"):
            if f"{layer}/{leaf}" not in params:
                raise InputError(f"{layer}/{leaf}: the checkpoint lacks this parameter, but has its other half")
        rank = params[f"{layer}/lora_a"].shape[-1]
        if rank != config.rank:
            raise InputError(f"{layer}/lora_a: has rank {rank}, but config.model.lora.rank is {config.rank}")
    for part in config.parts:
        for name in config.targets_in(part):
            if not any(layer.startswith(f"{part}/layers/") and layer.endswith(f"/{name}") for layer in layers):
                raise InputError(
                    f"{part}/layers/**/{name}/lora_a: the checkpoint lacks this parameter, but config.model.lora asks "
                    "for it; give the config that it was trained with"
                )
    return layers


def _has_adapter(layer: str, config: LoraConfig) -> bool:
    part, *within = layer.split("/")
    return part in LORA_MODULES and within[:1] == ["layers"] and within[-1] in config.targets_in(part)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """What is at `path` is complete, or not there."""
    temporary = path.with_name(f"{path.name}.new")
    write(temporary)
    temporary.replace(path)
