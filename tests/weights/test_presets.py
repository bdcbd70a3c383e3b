"""The presets that start from pretrained models, at their real sizes: as many parameters as transformers' classes have.

Nothing is allocated: shapes on this side, the meta device on that.
"""

import math
from collections import Counter

import pytest
import torch
import transformers
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from configs import ftfv, red_villm
from vlvm_jax.config import Config, build
from vlvm_jax.models.params import Model


def llava_1_5_7b() -> dict[str, list[torch.nn.Module]]:
    """The class's defaults are this model but for the vocabulary."""
    text = {"model_type": "llama", "vocab_size": 32064}
    whole = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(text_config=text))
    return {
        "encoder": [whole.model.vision_tower],
        "adapter/connector": [whole.model.multi_modal_projector],
        "decoder": [whole.model.language_model, whole.lm_head],
    }


def vicuna_7b() -> dict[str, list[torch.nn.Module]]:
    """Llama's defaults are Vicuna's sizes. The connector is of LLaVA's kind: the widths are the same."""
    return {
        "encoder": [clip_tower(224)],
        "adapter/connector": [LlavaMultiModalProjector(transformers.LlavaConfig())],
        "decoder": [transformers.LlamaForCausalLM(transformers.LlamaConfig())],
    }


def smolvlm2_256m() -> dict[str, list[torch.nn.Module]]:
    tower = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    text = {
        "model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    }  # fmt: skip
    config = transformers.SmolVLMConfig(
        vision_config=tower, text_config=text, scale_factor=4, tie_word_embeddings=False
    )
    whole = transformers.SmolVLMForConditionalGeneration(config)
    return {
        "encoder": [whole.model.vision_model],
        "adapter/connector": [whole.model.connector],
        "decoder": [whole.model.text_model, whole.lm_head],
    }


def clip_tower(image_size: int) -> torch.nn.Module:
    return transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
            image_size=image_size,
        )
    )  # fmt: skip


def llava_v1_7b() -> dict[str, list[torch.nn.Module]]:
    return {
        "encoder": [clip_tower(224)],
        "adapter/connector": [torch.nn.Linear(1024, 4096)],
        "decoder": [transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32003))],
    }


def qwen2_7b() -> dict[str, list[torch.nn.Module]]:
    """The connector is Qwen-VL's resampler, of the modules of which its public code makes it."""
    width = 3584
    config = transformers.Qwen2Config(
        vocab_size=152064, hidden_size=width, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4,
    )  # fmt: skip
    resampler = [
        torch.nn.Embedding(256, width),
        torch.nn.Linear(1024, width, bias=False),
        torch.nn.MultiheadAttention(width, 28),
        *(torch.nn.LayerNorm(width) for _ in range(3)),
        torch.nn.Linear(width, width, bias=False),
    ]
    return {
        "encoder": [clip_tower(336)],
        "adapter/connector": resampler,
        "decoder": [transformers.Qwen2ForCausalLM(config)],
    }


def internvl3(decoder: str, tied: bool, **sizes: int) -> dict[str, list[torch.nn.Module]]:
    """InternVLConfig's tower is InternViT-300M by default, but for the biases that the checkpoints have."""
    text = {"model_type": decoder, "tie_word_embeddings": tied, **sizes}
    config = transformers.InternVLConfig(
        vision_config={"attention_bias": True}, text_config=text, tie_word_embeddings=tied
    )
    whole = transformers.InternVLForConditionalGeneration(config)
    return {
        "encoder": [whole.model.vision_tower],
        "adapter/connector": [whole.model.multi_modal_projector],
        "decoder": [whole.model.language_model, whole.lm_head],
    }


def internvl3_1b() -> dict[str, list[torch.nn.Module]]:
    return internvl3(
        "qwen2", False, vocab_size=151674, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2,
    )  # fmt: skip


def internvl3_8b() -> dict[str, list[torch.nn.Module]]:
    return internvl3(
        "qwen2", False, vocab_size=151674, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4,
    )  # fmt: skip


def internvl3_5_4b() -> dict[str, list[torch.nn.Module]]:
    return internvl3(
        "qwen3", False, vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    )  # fmt: skip


CLASSES = {
    "llava-1.5-7b": llava_1_5_7b,
    "vicuna-7b": vicuna_7b,
    "smolvlm2-256m": smolvlm2_256m,
    "llava-v1-7b": llava_v1_7b,
    "qwen2-7b": qwen2_7b,
    "internvl3-1b": internvl3_1b,
    "internvl3-8b": internvl3_8b,
    "internvl3.5-4b": internvl3_5_4b,
}


@pytest.mark.parametrize(
    ("recipe", "preset"), [(recipe, preset) for recipe in (ftfv, red_villm) for preset in recipe.PRESETS[1:]]
)
def test_a_preset_has_the_parameters_of_its_classes(recipe, preset):
    """All of them: transformers' towers keep the layers above the features and the last norm, and so do ours."""
    with torch.device("meta"):
        modules = CLASSES[preset]()
    expected = {part: sum(p.numel() for m in found for p in m.parameters()) for part, found in modules.items()}
    sizes = Counter()
    for path, a in Model(build(Config, recipe.get_config(preset)).model).abstract().items():
        sizes[next((part for part in expected if path.startswith(f"{part}/")), "new")] += math.prod(a.shape)
    new = sizes.pop("new")
    assert sizes == expected
    if recipe is red_villm and "internvl" not in preset:  # whose connector joins patches
        assert new == expected["adapter/connector"]  # the temporal one is another of its kind
    else:
        assert 0 < new < 5e6  # the sampler, or a norm and an affine map
