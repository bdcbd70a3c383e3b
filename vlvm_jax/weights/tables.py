"""The two-way mapping between Hugging Face tensor names and our parameter paths.

Module names are equal on both sides, so a table is short: one per part (tower, decoder, connector) with names relative
to the part, and one row of prefixes per on-disk layout of a family. Everything is strict both ways: `match` accepts a
checkpoint only if each tensor has one place and each place one tensor.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from vlvm_jax.config import ClipConfig, ConnectorConfig, DecoderConfig, TextConfig, VisionConfig
from vlvm_jax.errors import InputError

Transform = Literal["same", "transpose", "patches"]
Part = Literal["tower", "decoder", "head", "connector", "newline"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter.

    Attributes:
      tensor: its name in HF, `{i}` standing for the layer.
      path: its path here; layers are stacked on a leading axis.
      transform: `same`; `transpose` (HF keeps Linear weights as [out, in]); `patches` (a convolution [D, 3, P, P] that
        is a [P * P * 3, D] kernel here, in row, column, channel order).
      layers: how many layers there are, None for a parameter outside the stacks.
    """

    tensor: str
    path: str
    transform: Transform = "same"
    layers: int | None = None

    def tensors(self) -> list[str]:
        return [self.tensor] if self.layers is None else [self.tensor.format(i=i) for i in range(self.layers)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parts of a model stand on disk: the prefix of each. A part that is not named is not in the files."""

    name: str
    prefixes: Mapping[Part, str]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


LLAVA_LAYOUTS = (
    Layout(
        "legacy",
        {
            "tower": "vision_tower.vision_model.",
            "decoder": "language_model.model.",
            "head": "language_model.",
            "connector": "multi_modal_projector.",
            "newline": "",
        },
    ),
    # What transformers 5 writes by default: the tower's inner prefix is gone.
    Layout(
        "legacy-flat-tower",
        {
            "tower": "vision_tower.",
            "decoder": "language_model.model.",
            "head": "language_model.",
            "connector": "multi_modal_projector.",
            "newline": "",
        },
    ),
    Layout(
        "transformers-5",
        {
            "tower": "model.vision_tower.",
            "decoder": "model.language_model.",
            "head": "",
            "connector": "model.multi_modal_projector.",
            "newline": "model.",
        },
    ),
    Layout(
        "transformers-5-nested-tower",
        {
            "tower": "model.vision_tower.vision_model.",
            "decoder": "model.language_model.",
            "head": "",
            "connector": "model.multi_modal_projector.",
            "newline": "model.",
        },
    ),
)
IDEFICS3_LAYOUTS = (
    Layout(
        "legacy",
        {"tower": "model.vision_model.", "decoder": "model.text_model.", "head": "", "connector": "model.connector."},
    ),
)
# The LLaVA repositories' own checkpoints: haotian-liu/LLaVA, LLaVA-VL/LLaVA-NeXT (lmms-lab). As LLaVA-1.5 is
# published, the tower stays in its own repository. A connector of one layer has no number.
_ORIGINAL: Mapping[Part, str] = {
    "decoder": "model.",
    "head": "",
    "connector": "model.mm_projector.",
    "newline": "model.",
}
_ORIGINAL_TOWER: Mapping[Part, str] = {"tower": "model.vision_tower.vision_tower.vision_model."}
_TWO_LAYERS = {"mm_projector.0.": "mm_projector.linear_1.", "mm_projector.2.": "mm_projector.linear_2."}
_ONE_LAYER = {"mm_projector.": "mm_projector.linear_1."}
ORIGINAL_LAYOUTS = (
    Layout("original-without-tower", _ORIGINAL, _TWO_LAYERS),
    Layout("original", {**_ORIGINAL, **_ORIGINAL_TOWER}, _TWO_LAYERS),
    Layout("original-linear-without-tower", _ORIGINAL, _ONE_LAYER),
    Layout("original-linear", {**_ORIGINAL, **_ORIGINAL_TOWER}, _ONE_LAYER),
)
TOWER_LAYOUTS = (Layout("legacy", {"tower": "vision_model."}), Layout("transformers-5", {"tower": ""}))
DECODER_LAYOUTS = (Layout("legacy", {"decoder": "model.", "head": ""}),)

LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "llava": LLAVA_LAYOUTS,
    "llava_next": LLAVA_LAYOUTS,
    "llava_next_video": LLAVA_LAYOUTS,
    "llava_onevision": LLAVA_LAYOUTS,
    "idefics3": IDEFICS3_LAYOUTS,
    "smolvlm": IDEFICS3_LAYOUTS,
    "original": ORIGINAL_LAYOUTS,
    "clip": TOWER_LAYOUTS,
    "siglip": TOWER_LAYOUTS,
    "llama": DECODER_LAYOUTS,
    "mistral": DECODER_LAYOUTS,
    "qwen2": DECODER_LAYOUTS,
}

# Tensors that no model here uses. `dropped` are derived values and parts of another model (CLIP's text side); `carried`
# (SigLIP's pooling head) belong to the HF class, which wants them back: they are kept beside the parameters, by names
# relative to the tower, and exported unchanged.
DROPPED = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")
DROPPED_OF_TOWERS = re.compile(
    r"^(text_model\..*|logit_scale|logit_bias|text_projection\..*|visual_projection\..*|(vision_model\.)?head\..*)$"
)
# The LLaVA repositories save it even where `mm_patch_merge_type` has no use for it.
UNUSED_NEWLINE = re.compile(r"^model\.image_newline$")
CARRIED = re.compile(r"(^|\.)vision_tower\.(vision_tower\.)?(vision_model\.)?head\..*$")


def tower_rules(config: VisionConfig) -> list[Rule]:
    """CLIP, SigLIP and Idefics3 towers, names relative to the vision transformer."""
    rules = [Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", "patches")]
    if config.kind == "clip":
        rules += [Rule("embeddings.class_embedding", "class_embedding"), *_norm("pre_layrnorm")]
    else:
        rules.append(Rule("embeddings.patch_embedding.bias", "patch_embedding/bias"))
    rules.append(Rule("embeddings.position_embedding.weight", "position_embedding"))
    return [*rules, *_encoder_layers(config), *_norm("post_layernorm")]


def text_tower_rules(config: TextConfig) -> list[Rule]:
    """CLIP's text tower, names relative to it."""
    return [
        Rule("embeddings.token_embedding.weight", "token_embedding/embedding"),
        Rule("embeddings.position_embedding.weight", "position_embedding"),
        *_encoder_layers(config),
        *_norm("final_layer_norm"),
    ]


def clip_rules(config: ClipConfig) -> list[Rule]:
    """A whole CLIP, or one whose image tower is elsewhere (`vision` None); names are `CLIPModel`'s."""
    parts = [("text_model", text_tower_rules(config.text))]
    if config.vision is not None:
        parts.append(("vision_model", tower_rules(config.vision)))
    rules = [
        dataclasses.replace(rule, tensor=f"{name}.{rule.tensor}", path=f"{name}/{rule.path}")
        for name, part in parts
        for rule in part
    ]
    projections = [*_linear("text_projection", bias=False), *_linear("visual_projection", bias=False)]
    return [*rules, *projections, Rule("logit_scale", "logit_scale")]


def decoder_rules(config: DecoderConfig) -> list[Rule]:
    """Llama, Mistral, Qwen2, names relative to the model without its head."""
    layers = [Rule(f"{name}.weight", f"{name}/scale") for name in ("input_layernorm", "post_attention_layernorm")]
    for name in ("q_proj", "k_proj", "v_proj"):
        layers += _linear(f"self_attn.{name}", bias=config.attention_bias)
    layers += _linear("self_attn.o_proj", bias=config.attention_out_bias)
    for name in ("gate_proj", "up_proj", "down_proj"):
        layers += _linear(f"mlp.{name}", bias=False)
    stacked = [_in_stack(rule, "layers", config.num_hidden_layers) for rule in layers]
    return [Rule("embed_tokens.weight", "embed_tokens/embedding"), *stacked, Rule("norm.weight", "norm/scale")]


def connector_rules(config: ConnectorConfig) -> list[Rule]:
    if config.kind == "pixel_shuffle":
        return _linear("modality_projection.proj", bias=False)
    if config.kind == "resampler":
        return []  # no layout on disk has one; an export names its tensors as an adapter's
    names = ["linear_1"] + (["linear_2"] if config.kind == "mlp2x_gelu" else [])
    return [rule for name in names for rule in _linear(name, bias=config.bias)]


def rules_for(
    layout: Layout,
    *,
    vision: VisionConfig | None = None,
    decoder: DecoderConfig | None = None,
    connector: ConnectorConfig | None = None,
    newline: bool = False,
) -> list[Rule]:
    """All rules of a model in one on-disk layout, with full tensor names and parameter paths."""
    parts: list[tuple[Part, str, list[Rule]]] = []
    if vision is not None:
        parts.append(("tower", "encoder/", tower_rules(vision)))
    if connector is not None:
        parts.append(("connector", "adapter/connector/", connector_rules(connector)))
    if newline:
        parts.append(("newline", "adapter/", [Rule("image_newline", "image_newline")]))
    if decoder is not None:
        parts.append(("decoder", "decoder/", decoder_rules(decoder)))
        if not decoder.tie_word_embeddings:
            parts.append(("head", "decoder/", _linear("lm_head", bias=False)))
    return [
        dataclasses.replace(
            rule, tensor=_original(layout, f"{layout.prefixes[part]}{rule.tensor}"), path=f"{root}{rule.path}"
        )
        for part, root, rules in parts
        if part in layout.prefixes
        for rule in rules
    ]


def _original(layout: Layout, name: str) -> str:
    for theirs, ours in layout.renamed.items():
        name = name.replace(ours, theirs)
    return name


def match(
    available: Iterable[str],
    rules: Iterable[Rule],
    *,
    carried: re.Pattern | None,
    dropped: re.Pattern | None,
    where: str,
) -> list[str]:
    """Checks that the tensors of a checkpoint are exactly those of the rules; returns the carried ones.

    Raises:
      InputError: a tensor is missing, or there is one that nothing here has a place for.
    """
    names = set(available)
    expected: set[str] = set()
    for rule in rules:
        expected.update(rule.tensors())
    left = names - expected
    kept = sorted(name for name in left if carried is not None and carried.search(name))
    unknown = sorted(
        name
        for name in left.difference(kept)
        if not DROPPED.search(name) and not (dropped is not None and dropped.search(name))
    )
    if missing := sorted(expected - names):
        raise InputError(
            f"{where}: {_some(missing, 'tensor')} missing that its config.json asks for: {', '.join(missing[:3])}"
            + (f"; of its own there is {unknown[0]}" if unknown else "")
        )
    if unknown:
        raise InputError(
            f"{where}: {_some(unknown, 'tensor')} that this model has no place for: {', '.join(unknown[:3])}; the "
            "files and config.json are of different models, or of a variant this library does not know"
        )
    return kept


def _some(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def best_layout(family: str, available: Iterable[str], **parts) -> tuple[Layout, list[Rule]]:
    """The layout of the family that explains most tensors, the first of equals, with its rules."""
    names = set(available)
    candidates = [(layout, rules_for(layout, **parts)) for layout in LAYOUTS[family]]
    return max(candidates, key=lambda pair: sum(name in names for rule in pair[1] for name in rule.tensors()))


def _linear(name: str, bias: bool) -> list[Rule]:
    path = name.replace(".", "/")
    rules = [Rule(f"{name}.weight", f"{path}/kernel", "transpose")]
    return [*rules, Rule(f"{name}.bias", f"{path}/bias")] if bias else rules


def _norm(name: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{name}/scale"), Rule(f"{name}.bias", f"{name}/bias")]


def _encoder_layers(config: VisionConfig | TextConfig) -> list[Rule]:
    """The layers that towers of images and of text have alike."""
    layers = []
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layers += _linear(f"self_attn.{name}", bias=True)
    layers += [rule for name in ("mlp.fc1", "mlp.fc2") for rule in _linear(name, bias=True)]
    layers += _norm("layer_norm1") + _norm("layer_norm2")
    return [_in_stack(rule, "encoder.layers", config.num_hidden_layers) for rule in layers]


def _in_stack(rule: Rule, stack: str, layers: int) -> Rule:
    path = f"layers/{rule.path.replace('.', '/')}"
    return dataclasses.replace(rule, tensor=f"{stack}.{{i}}.{rule.tensor}", path=path, layers=layers)
