"""The adapter `spatiotemporal`: a clip's mean over time keeps its space, its mean over space keeps its time."""

import torch
from torch import nn

from .connector import Connector, line_positions


class VideoAdapter(nn.Module):
    """Space tokens through the connector, time tokens through another; an image is its own space tokens."""

    def __init__(self, config, connector):
        super().__init__()
        options = config.adapter["options"]
        self.join, self.pad_frames = options["join"], options["pad_frames"]
        self.connector = connector
        width, out_features = config.vision_config.hidden_size, config.text_config.hidden_size
        if options["temporal"] == "same":
            self.temporal_connector = Connector(config)
        elif options["temporal"] == "linear":
            self.temporal_connector = FrameConnector(width, out_features)
        else:
            self.temporal_connector = None

    @property
    def time_resampler(self):
        connector = self.connector if self.temporal_connector is None else self.temporal_connector
        return getattr(connector, "resampler", None)

    def num_image_tokens(self) -> int:
        return self.connector.num_tokens

    def num_video_tokens(self, num_frames: int) -> int:
        if self.pad_frames is not None and num_frames > self.pad_frames:
            raise ValueError(f"a clip has {num_frames} frames; this model takes at most {self.pad_frames}")
        space, time = self.connector.num_tokens, self.num_time_tokens(num_frames)
        return {"space_only": space, "time_only": time, "add": space}.get(self.join, space + time)

    def num_time_tokens(self, num_frames: int) -> int:
        if self.time_resampler is not None:
            return self.connector.num_tokens
        return self.pad_frames or num_frames

    def forward(self, patches, attention, frames_per_medium: list[int], is_video: bool):
        """Patches [F, N, D] of media of one kind to their tokens [V, C], medium after medium."""
        if not is_video:
            return self.connector(patches).flatten(0, 1)
        return torch.cat([self.clip_tokens(clip) for clip in patches.split(frames_per_medium)])

    def clip_tokens(self, patches):
        """Patches [T, N, D] of one clip to its tokens."""
        space = self.connector(patches.mean(0, keepdim=True))[0]
        time = self.time_tokens(patches.mean(1))
        if self.join == "add":
            return space + time
        blocks = {"time_first": [time, space], "space_first": [space, time], "space_only": [space], "time_only": [time]}
        return torch.cat(blocks[self.join])

    def time_tokens(self, features):
        """Means [T, D] of frames to their tokens."""
        if self.time_resampler is not None:
            positions = line_positions(torch.arange(len(features)), self.time_resampler.query.shape[1])
            return self.time_resampler(features[None], positions)[0]
        spare = self.num_time_tokens(len(features)) - len(features)
        connector = self.connector if self.temporal_connector is None else self.temporal_connector
        return connector(nn.functional.pad(features, (0, 0, 0, spare))[None])[0]


class FrameConnector(nn.Module):
    """Layer norm and one affine map: a token from each frame's mean."""

    def __init__(self, width: int, out_features: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear_1 = nn.Linear(width, out_features)

    def forward(self, features):
        return self.linear_1(self.norm(features))
