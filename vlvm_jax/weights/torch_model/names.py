"""What an export with our own PyTorch code holds: its files, the names of the adapter's tensors, its `config.json`.

The code itself stands beside this file and is copied as it is. Nothing here imports torch.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from vlvm_jax.config import ClipConfig, ModelConfig, to_json
from vlvm_jax.errors import InputError
from vlvm_jax.families.base import Rule
from vlvm_jax.models import adapters
from vlvm_jax.weights import tables

AUTO_MAP = {
    "AutoConfig": "configuration_vlvm.VlvmConfig",
    "AutoModelForCausalLM": "modeling_vlvm.VlvmForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_vlvm.VlvmForConditionalGeneration",
}
# Each file after those that it imports.
IMPORT_ORDER = ("connector.py", "frame_paths.py", "video_adapter.py", "configuration_vlvm.py", "modeling_vlvm.py")
_LAST = {"kernel": "weight", "scale": "weight"}


def adapter_tensor_name(path: str) -> tuple[str, bool]:
    """The tensor of a parameter of the adapter, and whether it is transposed.

    `adapter/sampler/key_proj/kernel` -> (`model.adapter.sampler.key_proj.weight`, True): PyTorch keeps the weights of
    linear maps as [out, in].
    """
    part, *names, last = path.split("/")
    if part != "adapter":
        raise ValueError(f"{path} is not a parameter of the adapter")
    return ".".join(["model", "adapter", *names, _LAST.get(last, last)]), last == "kernel"


def adapter_rules(paths: Iterable[str], clip: ClipConfig | None) -> list[Rule]:
    """Rules for parameters of an adapter that no other part's rules name.

    Args:
      clip: sizes of the CLIP that the adapter holds; its tensors have the names of `CLIPModel`.
    """
    of_clip = [] if clip is None else tables.clip_rules(clip)
    rules = [
        dataclasses.replace(rule, tensor=f"model.adapter.clip.{rule.tensor}", path=f"adapter/clip/{rule.path}")
        for rule in of_clip
    ]
    known = {rule.path for rule in rules}
    names = [(path, *adapter_tensor_name(path)) for path in paths if path not in known]
    return rules + [Rule(name, path, "transpose" if transposed else "same") for path, name, transposed in names]


def source_files(adapter: str) -> dict[str, Path]:
    """The code of an export, by the names under which it stands there.

    Raises:
      InputError: there is no PyTorch code for this adapter.
    """
    folder = Path(__file__).parent
    chosen = folder / f"adapter_{adapter}.py"
    if not chosen.is_file():
        known = ", ".join(sorted(file.stem.removeprefix("adapter_") for file in folder.glob("adapter_*.py")))
        raise InputError(
            f"config.model.adapter.name: {adapter!r} has no PyTorch code, so it cannot be exported; use it from here, "
            f"or add {chosen.name} beside those of {known}"
        )
    shared = ["configuration_vlvm.py", "modeling_vlvm.py", "connector.py"]
    if "from .frame_paths import" in chosen.read_text(encoding="utf-8"):
        shared.append("frame_paths.py")
    return {name: folder / name for name in shared} | {"video_adapter.py": chosen}


def config_fields(config: ModelConfig, *, image_token_id: int, video_token_id: int) -> dict:
    """The fields of `config.json` but for `vision_config` and `text_config`, which are transformers' own."""
    vision, adapter = config.vision, config.adapter
    options = adapters.options_of(adapter.name, adapter.options)
    return {
        "model_type": "vlvm",
        "architectures": ["VlvmForConditionalGeneration"],
        "auto_map": AUTO_MAP,
        "adapter": {"name": adapter.name, "connector": to_json(adapter.connector), "options": to_json(options)},
        "image_token_id": image_token_id,
        "video_token_id": video_token_id,
        "vision_feature_layer": vision.feature_layer,
        "vision_post_norm": vision.post_norm,
        "attention_layer": vision.attention_layer,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "tie_word_embeddings": config.decoder.tie_word_embeddings,
    }
