"""From tower width to decoder width."""

import torch
from torch import nn


class Connector(nn.Module):
    """Features [F, N, D] of frames to tokens [F, M, C] in decoder width.

    `linear`: one affine map. `mlp2x_gelu`: affine, exact GELU, affine. `pixel_shuffle`: each square of patches joined
    to one token, then a linear map.
    """

    def __init__(self, config):
        super().__init__()
        settings, vision = config.adapter["connector"], config.vision_config
        self.kind, self.scale_factor = settings["kind"], settings["scale_factor"]
        self.grid = vision.image_size // vision.patch_size
        width, out_features = vision.hidden_size, config.text_config.hidden_size
        if self.kind == "pixel_shuffle":
            proj = nn.Linear(width * self.scale_factor**2, out_features, bias=False)
            self.modality_projection = nn.ModuleDict({"proj": proj})
            self.num_tokens = (self.grid // self.scale_factor) ** 2
            return
        if self.kind not in ("linear", "mlp2x_gelu"):
            raise ValueError(f"config.json: adapter.connector.kind is {self.kind!r}, which this code does not know")
        self.num_tokens = self.grid**2
        self.linear_1 = nn.Linear(width, out_features, bias=settings["bias"])
        if self.kind == "mlp2x_gelu":
            self.linear_2 = nn.Linear(out_features, out_features, bias=settings["bias"])

    def forward(self, features):
        if self.kind == "pixel_shuffle":
            return self.modality_projection["proj"](self.shuffle(features))
        hidden = self.linear_1(features)
        return hidden if self.kind == "linear" else self.linear_2(nn.functional.gelu(hidden))

    def shuffle(self, features: torch.Tensor) -> torch.Tensor:
        """Raster order in and out; within a joined token: rows, then columns, then channels."""
        frames, _, width = features.shape
        scale, side = self.scale_factor, self.grid // self.scale_factor
        squares = features.reshape(frames, side, scale, side, scale, width).permute(0, 1, 3, 2, 4, 5)
        return squares.reshape(frames, side * side, scale * scale * width)
