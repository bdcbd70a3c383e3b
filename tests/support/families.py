"""Tiny random checkpoints on disk: several configs for each family, in every layout that such files come in.

Layouts: `saved`, what `save_pretrained` writes; `transformers-5`, the same with `save_original_format=False`; `hub`,
names and config keys as in checkpoints of before transformers 5; `original`, that of the LLaVA repositories.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (numpy learns bfloat16 from it)
import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

from support import hf

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

VOCAB, IMAGE, VIDEO = 96, 90, 91  # ids of text are below IMAGE
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAVA_FAMILIES = ("llava", "llava_next", "llava_next_video", "llava_onevision")
SHARD_BYTES = 6_000  # makes several shards of each


def clip(size: int = 16, **changes):
    return transformers.CLIPVisionConfig(**(VISION | {"image_size": size, "patch_size": 4} | changes))


def siglip(size: int = 16, head: bool = False, **changes):
    sizes = VISION | {"image_size": size, "patch_size": 4, "vision_use_head": head}
    return transformers.SiglipVisionConfig(**(sizes | changes))


def llama(**changes):
    return transformers.LlamaConfig(**(TEXT | changes))


def mistral(**changes):
    return transformers.MistralConfig(**(TEXT | {"head_dim": 12, "sliding_window": None} | changes))


def qwen2(**changes):
    return transformers.Qwen2Config(**(TEXT | changes))


def qwen3(**changes):
    return transformers.Qwen3Config(**(TEXT | {"head_dim": 12} | changes))


def rope(kind: str, theta: float = 10000.0, **values) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


LLAMA3_ROPE = rope(
    "llama3", 5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
NAMES = {
    "llava": "Llava", "llava_next": "LlavaNext", "llava_next_video": "LlavaNextVideo",
    "llava_onevision": "LlavaOnevision", "smolvlm": "SmolVLM", "idefics3": "Idefics3", "internvl": "InternVL",
}  # fmt: skip


def vlm(family: str, vision, text, **changes):
    """A random model of the family; what follows from its parts in the class's config is set accordingly."""
    values: dict[str, Any] = {"vision_config": vision, "text_config": text}
    values["tie_word_embeddings"] = text.tie_word_embeddings
    if family in LLAVA_FAMILIES:
        siglip_tower = vision.model_type == "siglip_vision_model"
        values |= {"image_token_index": IMAGE, "vision_feature_layer": -1 if family == "llava_onevision" else -2}
        values["vision_feature_select_strategy"] = "full" if siglip_tower else "default"
        size = vision.image_size
        if family == "llava":
            values["image_seq_length"] = (size // vision.patch_size) ** 2
        else:
            shapes = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
            values["image_grid_pinpoints"] = [[size * rows, size * columns] for rows, columns in shapes]
        if family in ("llava_next_video", "llava_onevision"):
            values["video_token_index"] = VIDEO
    elif family == "internvl":
        grid = vision.image_size[0] // vision.patch_size[0]
        values |= {"image_token_id": IMAGE, "image_seq_length": (grid // 2) ** 2}
    else:
        values |= {"image_token_id": IMAGE, "scale_factor": 2}
    config = getattr(transformers, f"{NAMES[family]}Config")(**(values | changes))
    return randomized(getattr(transformers, f"{NAMES[family]}ForConditionalGeneration"), config)


def internvit(size: int = 16, **changes):
    sides = {"image_size": [size, size], "patch_size": [4, 4]}
    return transformers.InternVLVisionConfig(**(VISION | sides | changes))


def idefics_tower(kind: str, size: int, **changes):
    return getattr(transformers, f"{kind}VisionConfig")(**(VISION | {"image_size": size, "patch_size": 2} | changes))


def randomized(cls, config):
    model = cls(config)
    hf.randomize(model)
    model.tie_weights()
    return model


def bare(cls: str, config):
    return randomized(getattr(transformers, cls), config)


def full(kind: str, tower):
    """CLIP or SigLIP with its text side."""
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(vision_config=tower.to_dict(), text_config=text)
    model = getattr(transformers, f"{kind}Model")(config)
    hf.randomize(model.vision_model)
    return model


@dataclasses.dataclass(frozen=True)
class Spec:
    """Attributes:
    family: key of the mapping tables.
    make: builds the torch model, fp32.
    dtype: of the files, where a test does not ask for another.
    """

    family: str
    make: Callable[[], Any]
    dtype: str = "float32"


SPECS: Mapping[str, Spec] = {
    "llava clip llama": Spec("llava", lambda: vlm("llava", clip(), llama(num_key_value_heads=4))),
    "llava siglip qwen2 tied": Spec(
        "llava", lambda: vlm("llava", siglip(), qwen2(tie_word_embeddings=True), vision_feature_layer=-1), "bfloat16"
    ),
    "llava siglip-head mistral gqa1": Spec(
        "llava", lambda: vlm("llava", siglip(head=True), mistral(num_key_value_heads=1)), "float16"
    ),
    "llava odd-grid biases linear-rope": Spec(
        "llava",
        lambda: vlm(
            "llava", clip(20, hidden_act="gelu"),
            llama(num_key_value_heads=1, attention_bias=True, **rope("linear", factor=2.0)),
            multimodal_projector_bias=False, vision_feature_layer=-1,
        ),
    ),
    "llava layer-from-start llama3-rope": Spec(
        "llava", lambda: vlm("llava", clip(), llama(**LLAMA3_ROPE), vision_feature_layer=1)
    ),
    "llava_next clip mistral": Spec("llava_next", lambda: vlm("llava_next", clip(), mistral()), "float16"),
    "llava_next odd-grid llama gqa1": Spec(
        "llava_next", lambda: vlm("llava_next", clip(12), llama(num_key_value_heads=1))
    ),
    "llava_next_video average": Spec(
        "llava_next_video", lambda: vlm("llava_next_video", clip(), llama()), "bfloat16"
    ),
    "llava_next_video max odd-grid": Spec(
        "llava_next_video",
        lambda: vlm("llava_next_video", clip(20), mistral(num_key_value_heads=1), spatial_pool_mode="max"),
    ),
    "llava_onevision odd-grid shrink": Spec(
        "llava_onevision",
        lambda: vlm("llava_onevision", siglip(20), qwen2(num_key_value_heads=1), vision_aspect_ratio="anyres_max_2"),
        "float16",
    ),
    # Towers whose patches do not fill the image, as SigLIP's 14 do not fill 384: the rest is not seen.
    "llava_onevision remainder tied": Spec(
        "llava_onevision", lambda: vlm("llava_onevision", siglip(18), qwen2(tie_word_embeddings=True))
    ),
    "smolvlm remainder tied": Spec(
        "smolvlm", lambda: vlm("smolvlm", idefics_tower("SmolVLM", 9), llama(tie_word_embeddings=True)), "bfloat16"
    ),
    "idefics3 scale3 gqa1": Spec(
        "idefics3",
        lambda: vlm("idefics3", idefics_tower("Idefics3", 12), llama(num_key_value_heads=1), scale_factor=3),
    ),
    # On this grid rounding moves positions (models/vision.py: fractional_positions).
    "idefics3 rounded-positions": Spec(
        "idefics3",
        lambda: vlm(
            "idefics3", idefics_tower("Idefics3", 62, hidden_size=8, num_hidden_layers=1),
            mistral(max_position_embeddings=2048), scale_factor=1,
        ),
    ),
    "internvl qwen2": Spec("internvl", lambda: vlm("internvl", internvit(attention_bias=True), qwen2()), "bfloat16"),
    "internvl qwen3 tied gqa1": Spec(
        "internvl", lambda: vlm("internvl", internvit(24), qwen3(tie_word_embeddings=True, num_key_value_heads=1))
    ),
    "internvl shuffle4 qwen3": Spec(
        "internvl",
        lambda: vlm("internvl", internvit(32), qwen3(), downsample_ratio=0.25, image_seq_length=4), "float16",
    ),
    "clip": Spec("clip", lambda: full("CLIP", clip())),
    "clip vision": Spec("clip", lambda: bare("CLIPVisionModel", clip(20, hidden_act="gelu")), "float16"),
    "siglip": Spec("siglip", lambda: full("Siglip", siglip(head=True))),
    "siglip vision": Spec("siglip", lambda: bare("SiglipVisionModel", siglip(12)), "bfloat16"),
    "llama biases": Spec("llama", lambda: bare("LlamaForCausalLM", llama(attention_bias=True)), "bfloat16"),
    "llama tied llama3-rope": Spec(
        "llama", lambda: bare("LlamaForCausalLM", llama(tie_word_embeddings=True, head_dim=6, **LLAMA3_ROPE))
    ),
    "mistral window": Spec("mistral", lambda: bare("MistralForCausalLM", mistral(sliding_window=64)), "float16"),
    "qwen2 tied": Spec("qwen2", lambda: bare("Qwen2ForCausalLM", qwen2(tie_word_embeddings=True))),
    "qwen3 gqa1": Spec("qwen3", lambda: bare("Qwen3ForCausalLM", qwen3(num_key_value_heads=1)), "bfloat16"),
    "llava siglip qwen3 tied": Spec(
        "llava", lambda: vlm("llava", siglip(), qwen3(tie_word_embeddings=True), vision_feature_layer=-1)
    ),
}  # fmt: skip
VLMS = tuple(name for name, spec in SPECS.items() if spec.family in NAMES)
TOWERS = tuple(name for name, spec in SPECS.items() if spec.family in ("clip", "siglip"))
DECODERS = tuple(name for name, spec in SPECS.items() if spec.family in ("llama", "mistral", "qwen2", "qwen3"))


def layouts(name: str) -> tuple[str, ...]:
    """In what ways the tensors of a family are named on disk."""
    return ("saved", "transformers-5", "hub") if SPECS[name].family in LLAVA_FAMILIES else ("saved", "hub")


class Checkpoints:
    """Makes directories on demand, each once."""

    def __init__(self, root: Path):
        self.root = root
        self._models: dict[str, Any] = {}
        self._folders: dict[tuple, Path] = {}

    def model(self, name: str):
        """The torch model, fp32, values as drawn."""
        if name not in self._models:
            self._models[name] = SPECS[name].make()
        return self._models[name]

    def __call__(self, name: str, layout: str = "saved", dtype: str | None = None, shards: bool = False) -> Path:
        dtype = dtype or SPECS[name].dtype
        key = (name, layout, dtype, shards)
        if key not in self._folders:
            folder = self.root / "-".join(map(str, key)).replace(" ", "_")
            self._write(folder, name, layout, dtype, shards)
            self._folders[key] = folder
        return self._folders[key]

    def original(self, name: str, language: str, *, with_tower: bool) -> Path:
        """The same weights in the layout of the LLaVA repositories."""
        key = (name, "original", language, with_tower)
        if key not in self._folders:
            self._folders[key] = write_original(
                self(name, dtype="float32"), self.root / f"original-{len(self._folders)}", language, with_tower
            )
        return self._folders[key]

    def _write(self, folder: Path, name: str, layout: str, dtype: str, shards: bool) -> None:
        model = copy.deepcopy(self.model(name)).to(getattr(torch, dtype))
        size = SHARD_BYTES if shards else "1GB"
        model.save_pretrained(folder, max_shard_size=size, save_original_format=layout != "transformers-5")
        if shards:
            assert len(list(folder.glob("model-*.safetensors"))) > 1
        if layout == "hub":
            names = hub_name(SPECS[name].family, full=hasattr(model, "text_model"))
            rename(folder, names)
            edit_config(folder, legacy_keys)


def hub_name(family: str, full: bool) -> Callable[[str], str]:
    """Names of before transformers 5, from what `save_pretrained` gives: towers had an inner prefix."""
    if family in LLAVA_FAMILIES:
        return lambda name: re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)
    if family in ("clip", "siglip") and not full:
        return lambda name: f"vision_model.{name}"
    return lambda name: name


def legacy_keys(config: dict[str, Any]) -> None:
    """Keys as transformers 4 wrote them, derived values left out."""
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "idefics3":
        config["vision_config"]["model_type"] = "idefics3"
    for part in (config, config.get("text_config", {})):
        if (parameters := part.pop("rope_parameters", None)) is not None:
            part["rope_theta"] = parameters.pop("rope_theta")
            scaled = parameters["rope_type"] != "default"
            part["rope_scaling"] = parameters if scaled else None
        part.pop("layer_types", None)
        if part.get("model_type") in ("qwen2", "qwen3"):
            part["use_sliding_window"], part["sliding_window"], part["max_window_layers"] = False, 512, 2
    if "text_config" in config and config["model_type"] not in ("smolvlm", "internvl"):
        config["tie_word_embeddings"] = False  # transformers 4 wrote it with the language model only


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, by name; one that stands in two files fails."""
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                assert name not in tensors, name
                tensors[name] = opened.get_tensor(name)
    return tensors


def rename(folder: Path, new_name: Callable[[str], str]) -> None:
    """Renames tensors within their files, and in the index if there is one."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            tensors = {new_name(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        values = json.loads(index.read_text())
        values["weight_map"] = {new_name(name): file for name, file in values["weight_map"].items()}
        index.write_text(json.dumps(values))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def write_original(source: Path, folder: Path, language: str, with_tower: bool) -> Path:
    """As the LLaVA repositories save a model: the decoder's config with `mm_*` keys, names of their modules.

    Without the tower, that stands in a directory of its own: a whole CLIP, as published. With it, the tower's directory
    tells sizes only, among them the last layer of SigLIP, which those repositories throw away.
    """
    config = json.loads((source / "config.json").read_text())
    vision, tensors = config["vision_config"], read_tensors(source)
    tower = folder.with_name(f"{folder.name}-tower")
    tower.mkdir(parents=True)
    folder.mkdir()
    inner = {name.removeprefix("vision_tower."): v for name, v in tensors.items() if name.startswith("vision_tower.")}
    rest = {original_name(name): v for name, v in tensors.items() if not name.startswith("vision_tower.")}
    sizes = dict(vision)
    if with_tower:
        rest |= {f"model.vision_tower.vision_tower.vision_model.{name}": v for name, v in inner.items()}
        sizes["num_hidden_layers"] += vision["model_type"] == "siglip_vision_model"
        tower_config = sizes
    else:
        whole = {f"vision_model.{name}": v for name, v in inner.items()}
        whole["logit_scale"] = whole["text_model.final_layer_norm.weight"] = np.ones(1, np.float32)
        save_file(whole, tower / "model.safetensors", metadata={"format": "pt"})
        tower_config = {"model_type": "clip", "vision_config": sizes}
    (tower / "config.json").write_text(json.dumps(tower_config))
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    text = {key: value for key, value in config["text_config"].items() if key != "model_type"}
    onevision, tiled = config["model_type"] == "llava_onevision", config["model_type"] != "llava"
    own = {
        "architectures": [f"Llava{language}ForCausalLM"],
        "model_type": "llava" if language == "Llama" else f"llava_{language.lower()}",
        "torch_dtype": "float32",
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": vision["hidden_size"],
        "mm_patch_merge_type": "spatial_unpad" if tiled else "flat",
        "image_aspect_ratio": config["vision_aspect_ratio"] if onevision else "anyres" if tiled else "pad",
    }
    if tiled:  # width first, unlike in transformers
        own["image_grid_pinpoints"] = [[wide, tall] for tall, wide in config["image_grid_pinpoints"]]
    (folder / "config.json").write_text(json.dumps(text | own))
    return folder


def original_name(name: str) -> str:
    renamed = {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "image_newline": "model.image_newline",
    }
    for theirs, originals in renamed.items():
        if name.startswith(theirs):
            return originals + name.removeprefix(theirs)
    raise AssertionError(f"{name} has no name there")
