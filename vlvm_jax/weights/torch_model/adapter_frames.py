"""The adapter `frames`: every frame is an image; its tokens go on as they are, or pooled within the frame."""

import torch
from torch import nn


class VideoAdapter(nn.Module):
    """Connector per frame. Frames of clips may be pooled, images never. A learned vector may end a medium, or every
    frame or row of a clip."""

    def __init__(self, config, connector):
        super().__init__()
        options = config.adapter["options"]
        self.pool, self.stride = options["pool"], options["pool_stride"]
        self.before_connector = options["pool_place"] == "before_connector"
        self.newline, self.newline_place = options["newline"], options["newline_place"]
        self.connector = connector
        if self.newline != "none":
            self.image_newline = nn.Parameter(torch.zeros(config.text_config.hidden_size))

    def num_image_tokens(self) -> int:
        return self.connector.num_tokens + self.ends_with_newline(is_video=False)

    def num_video_tokens(self, num_frames: int) -> int:
        return num_frames * (self.pooled_size() + self.newlines_per_frame()) + self.ends_with_newline(is_video=True)

    def forward(self, patches, attention, frames_per_medium: list[int], is_video: bool):
        """Patches [F, N, D] of media of one kind to their tokens [V, C], medium after medium."""
        if not is_video or self.pool == "none":
            tokens = self.connector(patches)
        elif self.before_connector:
            tokens = self.connector(self.pool_patches(patches))
        else:
            tokens = self.pool_patches(self.connector(patches))
        if is_video and (count := self.newlines_per_frame()):
            rows = tokens.unflatten(1, (count, -1))
            newlines = self.image_newline.to(tokens.dtype).expand(*rows.shape[:2], 1, -1)
            return torch.cat([rows, newlines], 2).flatten(0, 2)
        if not self.ends_with_newline(is_video):
            return tokens.flatten(0, 1)
        newline = self.image_newline.to(tokens.dtype)[None]
        media = tokens.split(frames_per_medium)
        return torch.cat([torch.cat([medium.flatten(0, 1), newline]) for medium in media])

    def ends_with_newline(self, is_video: bool) -> bool:
        if is_video and self.newline_place != "end":
            return False
        return self.newline in ("all", "video" if is_video else "image")

    def newlines_per_frame(self) -> int:
        """Of clips; 0 where they have one at their end, or none."""
        if self.newline_place == "end" or self.newline not in ("all", "video"):
            return 0
        return 1 if self.newline_place == "frame" else round(self.pooled_size() ** 0.5)

    def pooled_size(self) -> int:
        if self.pool == "none":
            return self.connector.num_tokens
        side = round(self.connector.num_tokens**0.5)
        return (-(-side // self.stride) if self.pool == "bilinear" else side // self.stride) ** 2

    def pool_patches(self, x):
        """[F, N, D] -> [F, K, D], raster order in and out."""
        frames, num_patches, width = x.shape
        side = round(num_patches**0.5)
        grid = x.transpose(1, 2).reshape(frames, width, side, side)
        if self.pool == "bilinear":
            resized = -(-side // self.stride)
            pooled = nn.functional.interpolate(grid, size=(resized, resized), mode="bilinear", align_corners=False)
        elif self.pool == "average":
            pooled = nn.functional.avg_pool2d(grid, self.stride)
        else:
            pooled = nn.functional.max_pool2d(grid, self.stride)
        return pooled.flatten(2).transpose(1, 2)
