"""Our prompts and pixels in the form that transformers' classes take."""

import numpy as np
import torch

from vlvm_jax.inference.answering import Answering
from vlvm_jax.inference.requests import Request


def inputs_of(
    answering: Answering, request: Request, family: str, sizes: list[tuple[int, int]]
) -> dict[str, torch.Tensor]:
    """The arguments of `forward` and `generate` for one request.

    Args:
      sizes: height and width of each image, for families that cut images into tiles.
    """
    prompts, vision = answering.prompts, answering.engine.model.config.vision
    media = prompts.media(request)
    sample = prompts.sample(request, prompts.prompt(request), media)
    ids = torch.from_numpy(sample["token_ids"].astype(np.int64))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def pixels(frames):
        mean, std = np.asarray(vision.image_mean), np.asarray(vision.image_std)
        return torch.from_numpy(((frames / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))

    if not media:
        return inputs
    if media[0].kind == "video" and family in ("llava_next_video", "llava_onevision"):
        return inputs | {"pixel_values_videos": pixels(media[0].frames)[None]}
    if family == "llava":
        return inputs | {"pixel_values": torch.cat([pixels(medium.frames) for medium in media])}
    if family in ("idefics3", "smolvlm"):
        return inputs | {"pixel_values": torch.cat([pixels(medium.frames) for medium in media])[None]}
    tiles = [pixels(medium.frames) for medium in media]
    most = max(map(len, tiles))
    padded = [torch.cat([each, torch.zeros(most - len(each), *each.shape[1:])]) for each in tiles]
    inputs |= {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}
    return inputs | ({"batch_num_images": torch.tensor([len(media)])} if family == "llava_onevision" else {})
