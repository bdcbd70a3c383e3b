"""What a Hugging Face directory's `config.json` says, in our settings; what cannot be run exactly is refused by name.

`read` understands the class configs of transformers and the ones of the original LLaVA repositories. transformers fills
in the values that a `config.json` leaves to its class; it is used without torch.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pydantic

from vlvm_jax.config import ClipConfig, ConnectorConfig, DecoderConfig, RopeScaling, TextConfig, VisionConfig
from vlvm_jax.data import files, llava_layout
from vlvm_jax.data.files import read_json
from vlvm_jax.errors import InputError
from vlvm_jax.weights import unreadable

VLM_FAMILIES = ("llava", "llava_next", "llava_next_video", "llava_onevision", "smolvlm", "idefics3")
TOWERS = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "idefics3_vision": "idefics3",
    "idefics3": "idefics3",  # as in files of before it had a name of its own
    "smolvlm_vision": "idefics3",
}
DECODERS = ("llama", "mistral", "qwen2")
CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF_STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class HFModel:
    """A checkpoint directory, read.

    Attributes:
      family: key of `tables.LAYOUTS`: the model_type, or `original`.
      hf_family: the transformers class it is or corresponds to.
      vision, decoder, connector: None for what the checkpoint does not have (bare towers and decoders).
      frames_options: options of the `frames` adapter with which it computes what the HF class does.
      has_newline: whether `image_newline` is among the tensors.
      tower_source: for `original` checkpoints that leave the tower in its own repository, its id.
      raw: `config.json`, but for what names code.
    """

    directory: Path
    family: str
    hf_family: str
    vision: VisionConfig | None
    decoder: DecoderConfig | None
    connector: ConnectorConfig | None
    frames_options: dict[str, Any]
    has_newline: bool
    tower_source: str | None
    raw: dict[str, Any]


def read(directory: Path) -> HFModel:
    """Reads `config.json` and, for the pixel statistics, the image processor's file.

    Raises:
      InputError: no config, a family that is not known, or a setting that this library cannot run exactly.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json here; expected a directory in the Hugging Face format")
    raw = files.without_code(read_json(directory / "config.json"))
    unreadable.check_config(raw, f"{directory / 'config.json'}")
    unreadable.check_files(directory)
    if (language := llava_layout.language(raw)) is not None:
        from vlvm_jax.weights import original_llava

        return original_llava.read(directory, raw, language)
    family = raw.get("model_type")
    config = files.transformers_config(directory)
    where = f"{directory / 'config.json'}"
    if family in VLM_FAMILIES:
        return _vlm(directory, family, config, raw, where)
    if family in ("clip", "clip_vision_model", "siglip", "siglip_vision_model"):
        vision = tower(getattr(config, "vision_config", config), where, statistics=pixel_statistics(directory))
        name = "clip" if family.startswith("clip") else "siglip"
        return HFModel(directory, name, name, vision, None, None, {}, False, None, raw)
    if family in DECODERS:
        return HFModel(
            directory, family, family, None, decoder(config, where, config.tie_word_embeddings), None, {}, False, None,
            raw,
        )  # fmt: skip
    known = ", ".join((*VLM_FAMILIES, "clip", "siglip", *DECODERS))
    raise InputError(f"{where}: model_type {family!r} is not one this library knows; it knows {known}")


def read_clip(directory: Path, where: str) -> ClipConfig:
    """The settings of a whole CLIP, its image tower's among them.

    Args:
      where: the key that named the directory, for messages.

    Raises:
      InputError: it is not a whole CLIP, or one that cannot be run exactly.
    """
    path = directory / "config.json"
    family = read_json(path).get("model_type") if path.is_file() else None
    if family != "clip":
        raise InputError(
            f"{where}: {directory} is not a whole CLIP (model_type 'clip', text side and projections too); its "
            f"config.json says {family!r}"
        )
    unreadable.check_config(read_json(path), str(path))
    unreadable.check_files(directory)
    config = files.transformers_config(directory)
    text = config.text_config
    settings = _settings(
        TextConfig, f"{path}: text_config", **{name: getattr(text, name) for name in TextConfig.model_fields}
    )
    vision = tower(config.vision_config, str(path), statistics=pixel_statistics(directory))
    return _settings(ClipConfig, str(path), text=settings, vision=vision, projection_dim=config.projection_dim)


def base_family(raw: dict[str, Any] | None) -> str | None:
    """The transformers class that a checkpoint is or corresponds to, from its `config.json` alone."""
    if raw is None:
        return None
    if llava_layout.language(raw) is not None:
        return llava_layout.hf_family(raw)
    family = raw.get("model_type", "")
    return {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}.get(family, family)


def _vlm(directory: Path, family: str, config: Any, raw: dict, where: str) -> HFModel:
    text = config.text_config
    if text.model_type not in DECODERS:
        raise InputError(
            f"{where}: text_config.model_type {text.model_type!r}: this library runs {', '.join(DECODERS)} decoders"
        )
    language = decoder(text, f"{where}: text_config", config.tie_word_embeddings)
    statistics = pixel_statistics(directory)
    if family in ("smolvlm", "idefics3"):
        vision = tower(config.vision_config, where, feature_layer=-1, post_norm=True, statistics=statistics)
        if vision.grid % config.scale_factor:
            raise InputError(
                f"{where}: scale_factor {config.scale_factor} does not divide the tower's grid of {vision.grid} x "
                f"{vision.grid} patches"
            )
        connector = ConnectorConfig(kind="pixel_shuffle", bias=False, scale_factor=config.scale_factor)
        return HFModel(directory, family, family, vision, language, connector, {}, False, None, raw)
    vision = tower(config.vision_config, where, feature_layer=config.vision_feature_layer, statistics=statistics)
    check_strategy(vision, config.vision_feature_select_strategy, where)
    if config.projector_hidden_act != "gelu":
        raise InputError(
            f"{where}: projector_hidden_act {config.projector_hidden_act!r}: only 'gelu' can be run exactly"
        )
    connector = ConnectorConfig(kind="mlp2x_gelu", bias=config.multimodal_projector_bias)
    options = frames_options(family, getattr(config, "spatial_pool_mode", None), where)
    if family == "llava_next_video":
        options["pool_stride"] = config.spatial_pool_stride
    newline = family != "llava"
    return HFModel(directory, family, family, vision, language, connector, options, newline, None, raw)


def frames_options(family: str, pool_mode: str | None = None, where: str = "") -> dict[str, Any]:
    """Options of the `frames` adapter that compute what a transformers class does with videos."""
    if family == "llava_next":
        return {"newline": "image"}
    if family == "llava_next_video":
        if pool_mode not in (None, "average", "max"):
            raise InputError(f"{where}: spatial_pool_mode {pool_mode!r}: only 'average' and 'max' can be run exactly")
        return {"pool": pool_mode or "average", "pool_stride": 2, "pool_place": "before_connector", "newline": "image"}
    if family == "llava_onevision":
        return {"pool": "bilinear", "pool_stride": 2, "pool_place": "after_connector", "newline": "all"}
    return {}


def check_strategy(vision: VisionConfig, strategy: str, where: str) -> None:
    wanted = "default" if vision.kind == "clip" else "full"
    if strategy != wanted:
        raise InputError(
            f"{where}: vision_feature_select_strategy {strategy!r} with a {vision.kind} tower: only {wanted!r} (all "
            "patches, no class token) can be run exactly"
        )


def tower(
    config: Any, where: str, *, feature_layer: Any = None, post_norm: bool = False, statistics: tuple | None = None
) -> VisionConfig:
    """Settings of a tower. `feature_layer` None (a bare tower) takes LLaVA's: -2 for CLIP, -1 for SigLIP."""
    if config.model_type not in TOWERS:
        raise InputError(
            f"{where}: vision_config.model_type {config.model_type!r}: this library runs {', '.join(TOWERS)}"
        )
    kind = TOWERS[config.model_type]
    if feature_layer is None:
        feature_layer = -2 if kind == "clip" else -1
    if not isinstance(feature_layer, int):
        raise InputError(f"{where}: vision_feature_layer {feature_layer}: features of several layers are not supported")
    if feature_layer >= 0:  # HF counts the embeddings as hidden state 0
        feature_layer -= config.num_hidden_layers + 1
    mean, std = statistics or (CLIP_STATISTICS if kind == "clip" else HALF_STATISTICS)
    return _settings(
        VisionConfig,
        f"{where}: vision_config",
        kind=kind,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        feature_layer=feature_layer,
        post_norm=post_norm,
        image_mean=tuple(mean),
        image_std=tuple(std),
    )


def decoder(config: Any, where: str, tied: bool) -> DecoderConfig:
    """Settings of a Llama, Mistral or Qwen2 config object."""
    if getattr(config, "mlp_bias", False):
        raise InputError(f"{where}: mlp_bias true: this library has no biases in the decoder's MLP")
    longest = config.max_position_embeddings
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    if config.model_type == "mistral" and config.sliding_window:
        # Within the window, sliding attention is full attention; beyond it, this library would not be exact.
        longest = min(longest, config.sliding_window)
    elif windowed:
        raise InputError(f"{where}: use_sliding_window true: this library has no sliding attention")
    qwen = config.model_type == "qwen2"
    attention_bias = bool(getattr(config, "attention_bias", False))
    return _settings(
        DecoderConfig,
        where,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        hidden_act=config.hidden_act,
        rope_theta=config.rope_parameters["rope_theta"],
        rope_scaling=_rope_scaling(config.rope_parameters, where),
        rms_norm_eps=config.rms_norm_eps,
        attention_bias=attention_bias or qwen,
        attention_out_bias=attention_bias and not qwen,
        tie_word_embeddings=tied,
        max_position_embeddings=longest,
    )


def _rope_scaling(parameters: dict[str, Any], where: str) -> RopeScaling | None:
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise InputError(
            f"{where}: rope scaling of type {kind!r} is not one this library can run exactly (linear, llama3)"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{where}: partial_rotary_factor is not 1: this library rotates whole heads")
    known = {key: parameters[key] for key in RopeScaling.model_fields if key in parameters}
    return _settings(RopeScaling, f"{where}: rope scaling", **known)


def pixel_statistics(directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the image processor's file, None where there is no such file."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        values = read_json(directory / name)
        values = values.get("image_processor", values)
        if "image_mean" in values and "image_std" in values:
            return tuple(values["image_mean"]), tuple(values["image_std"])
    return None


def _settings(cls, where: str, **values):
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        found = f" {values[key]!r}" if key in values else ""
        raise InputError(
            f"{where}: {key}{found} cannot be run exactly: {message}" if key else f"{where}: {message}"
        ) from None
