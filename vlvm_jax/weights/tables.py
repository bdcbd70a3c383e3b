"""The two-way mapping between Hugging Face tensor names and our parameter paths.

Module names are equal on both sides, so a table is short: one per part (tower, decoder, connector) with names relative
to the part, and one row of prefixes per on-disk layout of a family. Everything is strict both ways: `match` accepts a
checkpoint only if each tensor has one place and each place one tensor.
"""

import dataclasses
import re
from collections.abc import Iterable

from vlvm_jax.config import ClipConfig, ConnectorConfig, DecoderConfig, TextConfig, VisionConfig
from vlvm_jax.errors import InputError
from vlvm_jax.families.base import Layout, Part, Rule

# Derived values, which no model here uses. What else a family drops, or carries along for its transformers class, its
# file in `families` says.
DROPPED = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")


def tower_rules(config: VisionConfig) -> list[Rule]:
    """CLIP, SigLIP, Idefics3 and InternViT towers, names relative to the vision transformer."""
    if config.kind == "internvl":
        return _internvit_rules(config)
    rules = [Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", "patches")]
    if config.kind == "clip":
        rules += [Rule("embeddings.class_embedding", "class_embedding"), *_norm("pre_layrnorm")]
    else:
        rules.append(Rule("embeddings.patch_embedding.bias", "patch_embedding/bias"))
    rules.append(Rule("embeddings.position_embedding.weight", "position_embedding"))
    return [*rules, *_encoder_layers(config), *_norm("post_layernorm")]


def _internvit_rules(config: VisionConfig) -> list[Rule]:
    layers = []
    for name in ("q_proj", "k_proj", "v_proj"):
        layers += _renamed(_linear(f"attention.{name}", bias=config.attention_bias), "attention", "self_attn")
    layers += _renamed(
        _linear("attention.projection_layer", bias=True), "attention/projection_layer", "self_attn/out_proj"
    )
    layers += [rule for name in ("mlp.fc1", "mlp.fc2") for rule in _linear(name, bias=True)]
    for theirs, ours in (("layernorm_before", "layer_norm1"), ("layernorm_after", "layer_norm2")):
        layers += _renamed(_norm(theirs), theirs, ours)
    layers += [Rule(name, f"{name}/scale") for name in ("lambda_1", "lambda_2")]
    return [
        Rule("embeddings.patch_embeddings.projection.weight", "patch_embedding/kernel", "patches"),
        Rule("embeddings.patch_embeddings.projection.bias", "patch_embedding/bias"),
        Rule("embeddings.cls_token", "class_embedding", outer=2),
        Rule("embeddings.position_embeddings", "position_embedding", outer=1),
        *(_in_stack(rule, "encoder.layer", config.num_hidden_layers) for rule in layers),
    ]


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
    """Llama, Mistral, Qwen2, Qwen3, names relative to the model without its head."""
    layers = [Rule(f"{name}.weight", f"{name}/scale") for name in ("input_layernorm", "post_attention_layernorm")]
    for name in ("q_proj", "k_proj", "v_proj"):
        layers += _linear(f"self_attn.{name}", bias=config.attention_bias)
    layers += _linear("self_attn.o_proj", bias=config.attention_out_bias)
    if config.qk_norm:
        layers += [Rule(f"self_attn.{name}.weight", f"self_attn.{name}/scale") for name in ("q_norm", "k_norm")]
    for name in ("gate_proj", "up_proj", "down_proj"):
        layers += _linear(f"mlp.{name}", bias=False)
    stacked = [_in_stack(rule, "layers", config.num_hidden_layers) for rule in layers]
    return [Rule("embed_tokens.weight", "embed_tokens/embedding"), *stacked, Rule("norm.weight", "norm/scale")]


def connector_rules(config: ConnectorConfig) -> list[Rule]:
    if config.kind == "pixel_shuffle":
        return _linear("modality_projection.proj", bias=False)
    if config.kind == "pixel_shuffle_mlp":
        return [*_norm("layer_norm"), *_linear("linear_1", bias=True), *_linear("linear_2", bias=True)]
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


def best_layout(layouts: Iterable[Layout], available: Iterable[str], **parts) -> tuple[Layout, list[Rule]]:
    """The layout that explains most tensors, the first of equals, with its rules."""
    names = set(available)
    candidates = [(layout, rules_for(layout, **parts)) for layout in layouts]
    return max(candidates, key=lambda pair: sum(name in names for rule in pair[1] for name in rule.tensors()))


def _linear(name: str, bias: bool) -> list[Rule]:
    path = name.replace(".", "/")
    rules = [Rule(f"{name}.weight", f"{path}/kernel", "transpose")]
    return [*rules, Rule(f"{name}.bias", f"{path}/bias")] if bias else rules


def _renamed(rules: list[Rule], theirs: str, ours: str) -> list[Rule]:
    """The rules with other paths, where our modules are named otherwise."""
    return [dataclasses.replace(rule, path=rule.path.replace(theirs, ours)) for rule in rules]


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
