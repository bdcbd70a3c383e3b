"""From tower width to decoder width."""

import torch
from torch import nn


class Connector(nn.Module):
    """Features [F, N, D] of frames to tokens [F, M, C] in decoder width.

    `linear`: one affine map. `mlp2x_gelu`: affine, exact GELU, affine. `pixel_shuffle`: each square of patches joined
    to one token, then a linear map. `pixel_shuffle_mlp`: the same squares, a layer norm, affine, exact GELU, affine.
    `resampler`: learned queries read the frame.
    """

    def __init__(self, config):
        super().__init__()
        settings, vision = config.adapter["connector"], config.vision_config
        self.kind, self.scale_factor = settings["kind"], settings["scale_factor"]
        self.grid = side_of(vision, "image_size") // side_of(vision, "patch_size")
        width, out_features = vision.hidden_size, config.text_config.hidden_size
        if self.kind == "pixel_shuffle":
            proj = nn.Linear(width * self.scale_factor**2, out_features, bias=False)
            self.modality_projection = nn.ModuleDict({"proj": proj})
            self.num_tokens = (self.grid // self.scale_factor) ** 2
            return
        if self.kind == "resampler":
            self.resampler = Resampler(width, out_features, settings["num_queries"])
            self.num_tokens = settings["num_queries"]
            return
        if self.kind == "pixel_shuffle_mlp":
            shuffled = width * self.scale_factor**2
            self.num_tokens = (self.grid // self.scale_factor) ** 2
            self.layer_norm = nn.LayerNorm(shuffled)
            self.linear_1, self.linear_2 = nn.Linear(shuffled, out_features), nn.Linear(out_features, out_features)
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
        if self.kind == "resampler":
            of = round(self.num_tokens**0.5)
            return self.resampler(features, grid_positions(self.grid, self.resampler.query.shape[1], of))
        if self.kind == "pixel_shuffle_mlp":
            features = self.layer_norm(self.shuffle(features))
        hidden = self.linear_1(features)
        return hidden if self.kind == "linear" else self.linear_2(nn.functional.gelu(hidden))

    def shuffle(self, features: torch.Tensor) -> torch.Tensor:
        """Raster order in and out; within a joined token: rows, then columns, then channels."""
        frames, _, width = features.shape
        scale, side = self.scale_factor, self.grid // self.scale_factor
        squares = features.reshape(frames, side, scale, side, scale, width).permute(0, 1, 3, 2, 4, 5)
        return squares.reshape(frames, side * side, scale * scale * width)


def side_of(vision, key: str) -> int:
    """A size of the tower's, of which some configs give two alike."""
    value = getattr(vision, key)
    return value if isinstance(value, int) else value[0]


class Resampler(nn.Module):
    """Learned queries [Q, C] read features [F, N, D] by cross-attention, once: tokens [F, Q, C]."""

    def __init__(self, width: int, out_features: int, num_queries: int):
        super().__init__()
        self.num_heads = max(1, out_features // 128)
        self.query = nn.Parameter(torch.zeros(num_queries, out_features))
        self.kv_proj = nn.Linear(width, out_features, bias=False)
        self.q_norm, self.kv_norm, self.post_norm = (nn.LayerNorm(out_features, eps=1e-6) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(out_features, out_features) for _ in range(4))
        self.output_proj = nn.Linear(out_features, out_features, bias=False)

    def forward(self, features, positions):
        """`positions` [N, C] are added to the keys."""
        values = self.kv_norm(self.kv_proj(features))
        keys = values + positions.to(values)
        side = round(len(self.query) ** 0.5)
        queries = self.q_norm(self.query) + grid_positions(side, self.query.shape[1], side).to(values)
        queries = queries.expand(len(features), -1, -1)

        def heads(x):
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        read = nn.functional.scaled_dot_product_attention(
            heads(self.q_proj(queries)), heads(self.k_proj(keys)), heads(self.v_proj(values))
        )
        return self.output_proj(self.post_norm(self.out_proj(read.transpose(1, 2).flatten(2))))


def grid_positions(side: int, width: int, of: int) -> torch.Tensor:
    """[side * side, width] places of a grid, raster order, in the coordinates of one with `of` places along a side."""
    along = (torch.arange(side, dtype=torch.float64) + 0.5) * of / side - 0.5
    row, column = torch.meshgrid(along, along, indexing="ij")
    return torch.cat([line_positions(x.flatten(), width // 2) for x in (column, row)], dim=1)


def line_positions(places: torch.Tensor, width: int) -> torch.Tensor:
    """[n, width] sines, then cosines, of frequencies from 1 down to 1/10000."""
    steps = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    angles = places.double()[:, None] * 10000.0**-steps
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
