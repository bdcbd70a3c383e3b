"""SmolVLM and SmolVLM2: Idefics3 with a video processor, which writes the time of each frame into the prompt."""

from vlvm_jax.data.images.image_rules import Settings, SplitRule, SquareRule
from vlvm_jax.families import idefics3


class Family(idefics3.Family):
    name = "smolvlm"
    model_types = ("smolvlm",)
    architecture = "SmolVLMForConditionalGeneration"
    rung = 1
    writes_clips = True
    stamps_frames = True
    tower_type = "smolvlm_vision"
    note = (
        "Give clips to the processor as videos: it writes the time of each frame into the prompt and passes the "
        "frames as images (`pixel_values`). It needs the packages torchvision and num2words, even for images."
    )

    def image_rule(self, settings: Settings) -> SquareRule:
        video = settings.video
        scale = video.get("video_sampling", {}).get("video_size") or video.get("size")
        sizes = {"size": scale, "max_image_size": video.get("max_image_size"), "resample": video.get("resample")}
        given = {key: value for key, value in sizes.items() if value is not None}
        return SplitRule(settings, "SmolVLMImageProcessor", video=given)
