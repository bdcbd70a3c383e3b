"""The adapter `slow_fast`: few uniform frames with many tokens each, then many frames with few."""

import torch
from torch import nn

from .frame_paths import Path, few_or_all, make_fast, uniform


class VideoAdapter(nn.Module):
    """Every frame through the connector; a clip is the slow path's tokens, then the fast path's."""

    def __init__(self, config, connector):
        super().__init__()
        options = config.adapter["options"]
        self.connector = connector
        side = round(connector.num_tokens**0.5)
        slow = options["slow_path"]
        self.slow = None if slow["num_frames"] == 0 else Path(slow, side)
        self.fast = make_fast(options["fast_path"], side)

    def num_image_tokens(self) -> int:
        return self.connector.num_tokens

    def num_video_tokens(self, num_frames: int) -> int:
        return sum(path.num_tokens(len(frames)) for path, frames in self.taken(num_frames))

    def taken(self, num_frames: int) -> list[tuple[Path, list[int]]]:
        """The paths, and the frames that each takes of a clip."""
        taken = [] if self.slow is None else [(self.slow, uniform(self.slow.num_frames, num_frames))]
        return taken if self.fast is None else [*taken, (self.fast, few_or_all(self.fast.num_frames, num_frames))]

    def forward(self, patches, attention, frames_per_medium: list[int], is_video: bool):
        """Patches [F, N, D] of media of one kind to their tokens [V, C], medium after medium."""
        tokens = self.connector(patches)
        if not is_video:
            return tokens.flatten(0, 1)
        clips = tokens.split(frames_per_medium)
        return torch.cat([path.tokens(clip[frames]) for clip in clips for path, frames in self.taken(len(clip))])
