"""`slow_fast`: SlowFast-LLaVA (arXiv 2407.15841), a training-free baseline that does not look at the question.

A slow path of few uniform frames with many tokens each, then a fast path of all frames with few. By its options also
FreeVA (arXiv 2405.07798), whose frames all go one way: `slow_path` with `num_frames` "all" and `fast_path` with 0. D1
is 4 frames with pool `concat`, D2 is 8 frames with `spatial_1d_max_pool`, S1 is `temporal_global_pool`. The number of
frames is the stage's.
"""

from typing import Any

from flax import nnx

from vlvm_jax.config import ModelConfig, Settings
from vlvm_jax.models.adapters._frame_paths import (
    Chosen,
    FastOptions,
    PathOptions,
    PathsAdapter,
    clip_frames,
    make_path,
    uniform_picks,
)
from vlvm_jax.models.adapters.base import FrameLayout, Guidance


class Adapter(PathsAdapter):
    """Slow path, then fast path; frames in time order within each."""

    class Options(Settings):
        """The paths.

        Attributes:
        slow_path: uniform frames floor(T j / n) of a clip of T, some twice where T < n.
        fast_path: all frames, or as many uniform ones.
        """

        slow_path: PathOptions = PathOptions(num_frames=10)
        fast_path: FastOptions = FastOptions()

    def __init__(self, options: Options, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        super().__init__(options.fast_path, config, dtype=dtype, rngs=rngs)
        where = "config.model.adapter.options.slow_path"
        self.set_paths(make_path("uniform", options.slow_path, self.side, where))

    def choose(self, features: Any, layout: FrameLayout, guidance: Guidance | None) -> list[Chosen]:
        del features, guidance
        clip, num_frames = clip_frames(layout), layout.media.shape[1]
        return [Chosen(path, uniform_picks(clip, path.num_frames, num_frames)) for path in self.paths]
