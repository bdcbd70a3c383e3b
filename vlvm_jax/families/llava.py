"""LLaVA-1.5: images and frames are squares, and all their patches go to the decoder."""

from typing import Any

from vlvm_jax.families._llava import LlavaLike
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
