"""LLaVA-1.5: images and frames are squares, and all their patches go to the decoder."""

from typing import Any

from vlvm_jax.config import FrameFit, VisionConfig
from vlvm_jax.families._llava import LlavaLike
from vlvm_jax.families._tower import square_processor
from vlvm_jax.families.base import Exported


class Family(LlavaLike):
    name = "llava"
    model_types = ("llava",)
    architecture = "LlavaForConditionalGeneration"
    rung = 1

    def own_fields(self, exported: Exported, base: dict[str, Any] | None) -> dict[str, Any]:
        assert exported.vision is not None
        return super().own_fields(exported, base) | {"image_seq_length": exported.vision.num_patches}

    def image_processor(
        self, tower: dict[str, Any], size: int, pinpoints: list[list[int]] | None, padded: bool
    ) -> dict[str, Any]:
        return {**tower, "image_processor_type": "LlavaImageProcessor", "do_pad": True} if padded else tower

    def made_files(
        self, vision: VisionConfig, fit: FrameFit, config: dict[str, Any], image_token: str
    ) -> dict[str, dict[str, Any]]:
        tower = square_processor(vision.image_size, vision.image_mean, vision.image_std, fit)
        strategy = config["vision_feature_select_strategy"]
        return {
            "preprocessor_config.json": self.image_processor(tower, vision.image_size, None, fit == "pad"),
            "processor_config.json": {
                "processor_class": "LlavaProcessor",
                "patch_size": vision.patch_size,
                "vision_feature_select_strategy": strategy,
                "image_token": image_token,
                "num_additional_image_tokens": int(strategy == "default"),  # the class token, which is left out
            },
        }
