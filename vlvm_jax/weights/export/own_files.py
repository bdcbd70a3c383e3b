"""What stands beside the weights of an export that has no checkpoint of somebody else's behind it: how its text and
pixels are prepared, in the files that transformers reads."""

from typing import Any

from vlvm_jax.config import FrameFit, VisionConfig

_BICUBIC = 3  # as Pillow and transformers number it


def image_processor(vision: VisionConfig, fit: FrameFit) -> dict[str, Any]:
    """`preprocessor_config.json`: a picture as one square of the tower's size (`data.images.squares`)."""
    square = {"height": vision.image_size, "width": vision.image_size}
    common = {
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "do_convert_rgb": True,
    }
    if fit == "squash":
        return {"image_processor_type": "SiglipImageProcessor", "size": square, **common}
    cut = {"size": {"shortest_edge": vision.image_size}, "crop_size": square, "do_center_crop": True}
    if fit == "pad":
        return {"image_processor_type": "LlavaImageProcessor", "do_pad": True, **cut, **common}
    return {"image_processor_type": "CLIPImageProcessor", **cut, **common}


def processor(config: dict[str, Any], image_token: str) -> dict[str, Any] | None:
    """`processor_config.json` of a LLaVA; None for other classes, whose processors take what we do not have.

    Args:
      config: the export's `config.json`.
    """
    if config["model_type"] != "llava":
        return None
    extra = int(config["vision_feature_select_strategy"] == "default")  # a class token that the class leaves out
    return {
        "processor_class": "LlavaProcessor",
        "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        "image_token": image_token,
        "num_additional_image_tokens": extra,
    }
