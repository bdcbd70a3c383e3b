"""`prompt_guided`: Free Video-LLM (arXiv 2410.10441). A CLIP says which frames, and which part of each, the question is
about; only those are kept at many tokens each, beside a few uniform frames and all frames at few tokens.

The rules are the released code's (contrastive/FreeVideoLLM, arXiv 2410.10441), slips included where they can be chosen.
Ours, where that code says nothing: `dedupe_frames`, boxes and frames at random or in the centre (controls), odd grids
(`_pools`), a CLIP whose patches lie on another grid than the tokens, or that wants images of another size: both
are resized.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8
from pydantic import Field

from vlvm_jax.config import ClipConfig, ModelConfig, Settings
from vlvm_jax.errors import InputError
from vlvm_jax.models.adapters._frame_paths import (
    Chosen,
    Count,
    FastOptions,
    Path,
    PathFeatures,
    PathOptions,
    PathsAdapter,
    Picks,
    best_picks,
    clip_frames,
    few_or_all,
    make_path,
    take,
    uniform_picks,
)
from vlvm_jax.models.adapters._pools import GridPool
from vlvm_jax.models.adapters._regions import Boxes, region
from vlvm_jax.models.adapters.base import FrameLayout, Guidance, LearnsByItself, Losses
from vlvm_jax.models.clip import Clip, contrastive_losses, cosine, resized
from vlvm_jax.models.vision import VisionTower

_WHERE = "config.model.adapter.options"


class RoiPathOptions(PathOptions):
    """A path whose frames are cropped.

    Attributes:
    roi_alpha: share of each pooled frame that is kept; 1.0 keeps all of it.
    """

    roi_alpha: float = Field(default=0.8, gt=0, le=1)


class GuidedFastOptions(FastOptions):
    """The fast path, whose frames the question may pick.

    Attributes:
    select: which frames, where a clip has more than the path takes: those that fit the question best, or uniform ones.
    """

    num_frames: Count = 50
    select: Literal["prompt", "uniform"] = "prompt"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GuidedFeatures(PathFeatures):
    """What the paths and the scores take their tokens from.

    Attributes:
    frames: [B, T, E] of the CLIP, one a frame.
    places: [B, T, K, E] of the CLIP's patches, pooled, for each of the adapter's `score_pools`.
    change: [B, T] how little a frame is like the one before it; None unless frames are picked by that.
    """

    frames: Float[Array, "B T E"]
    places: tuple[Float[Array, "B T K E"], ...]
    change: Float[Array, "B T"] | None


class Adapter(PathsAdapter, LearnsByItself):
    """Prompt-picked frames, uniform frames, fast path; time order within each."""

    needs_prompt = True

    class Options(Settings):
        """The paths and what guides them.

        Attributes:
        prompt_path, uniform_path, fast_path: in this order in the sequence; a path of 0 frames is left out.
        frame_select: which frames the first path takes: those that fit the `prompt`; frame 0 and those least like the
          frame before (`change`: cosine of their mean tokens; in the public code, never called); `uniform` ones; or a
          draw that depends on the question alone (`random`, a control).
        frame_feature: what of a frame is compared with the question: its class token, as the released code does, or
          the mean of its patches, as a summary of the paper says.
        dedupe_frames: the first path takes its frames among those that the uniform path leaves.
        roi_box: around the places that fit the `prompt`, or a control.
        roi_layout: see `_regions.region`.
        patch_post_ln: apply the CLIP's last layer norm to patches before their projection.
        clip_towers: `separate`: a CLIP beside the model's tower, with one of its own (LLaVA-1.6's was tuned and no
          longer fits CLIP's projection); `shared`: the model's tower is the CLIP's, run to its last layer.
        clip: sizes of that CLIP.
        score_dtype: of the cosines.
        """

        prompt_path: RoiPathOptions = RoiPathOptions(num_frames=3)
        uniform_path: RoiPathOptions = RoiPathOptions(num_frames=5)
        fast_path: GuidedFastOptions = GuidedFastOptions()
        frame_select: Literal["prompt", "change", "uniform", "random"] = "prompt"
        frame_feature: Literal["cls", "mean_patch"] = "cls"
        dedupe_frames: bool = False
        roi_box: Literal["prompt", "centre", "random"] = "prompt"
        roi_layout: Literal["released", "corrected"] = "released"
        patch_post_ln: bool = False
        clip_towers: Literal["separate", "shared"] = "separate"
        clip: ClipConfig = ClipConfig()
        score_dtype: Literal["float32", "float16"] = "float32"

    def __init__(self, options: Options, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        super().__init__(options.fast_path, config, dtype=dtype, rngs=rngs)
        self.options = options
        self.set_paths(
            _cropped("prompt", options.prompt_path, self.side, options.roi_layout),
            _cropped("uniform", options.uniform_path, self.side, options.roi_layout),
        )
        if options.dedupe_frames and options.frame_select == "uniform":
            raise InputError(f"{_WHERE}.dedupe_frames: with frame_select uniform both paths are uniform; choose one")
        guided = options.roi_box == "prompt"
        self.score_pools: tuple[GridPool, ...] = tuple(
            dict.fromkeys(path.pool for path in self.paths if path.region is not None and guided)
        )
        settings = _clip_config(options, config)
        width = (settings.vision or config.vision).hidden_size
        self.clip = Clip(settings, width, dtype=dtype, remat=config.vision_remat, rngs=rngs)

    @property
    def clip_config(self) -> ClipConfig:
        return self.clip.config

    @property
    def only_here(self) -> str | None:
        drawn = next((key for key in ("frame_select", "roi_box") if getattr(self.options, key) == "random"), None)
        return None if drawn is None else f"{drawn}: 'random' is drawn by JAX's generator, which PyTorch does not have"

    @property
    def prompt_length(self) -> int:
        return self.clip.config.text.max_position_embeddings

    # --- the image side ----------------------------------------------------------------------------------------------

    def encode_media(self, encoder: VisionTower, frames: UInt8[Array, "B T H W 3"]) -> GuidedFeatures:
        """Both towers' view of every frame, and the fast path's tokens."""
        own = self.clip.vision_model
        features = encoder(frames, final=own is None)
        if own is None:
            tower, final = encoder, features.final
        else:
            tower, final = own, own(resized(frames, own.config.image_size), final=True).final
        assert final is not None
        paths = self.path_features(features.patches)
        patches = self.clip.patches(tower, final, post_norm=self.options.patch_post_ln)
        if self.options.frame_feature == "cls":
            of_frames = self.clip.images(tower, final)
        else:
            of_frames = patches.mean(axis=2, dtype=jnp.float32).astype(patches.dtype)
        on_grid = _regridded(patches, self.side)
        change = None
        if self.options.frame_select == "change":
            change = _change(self.connector(features.patches) if paths.tokens is None else paths.tokens)
        places = tuple(pool(on_grid) for pool in self.score_pools)
        return GuidedFeatures(paths.patches, paths.tokens, paths.fast, of_frames, places, change)

    # --- the question's side -----------------------------------------------------------------------------------------

    def choose(self, features: GuidedFeatures, layout: FrameLayout, guidance: Guidance | None) -> list[Chosen]:
        question = self._question(guidance)
        text = self.clip.texts(question.prompt_ids)
        clip, num_frames = clip_frames(layout), layout.media.shape[1]
        chosen = []
        for path in self.paths:
            if path.name == "uniform":
                picks = uniform_picks(clip, path.num_frames, num_frames)
            elif self.options.frame_select == "uniform":
                picks = few_or_all(clip, path.num_frames, num_frames)
            else:
                scores = self._ranking(features, layout, question, text)
                picks = best_picks(jnp.where(self._candidates(layout), scores, -jnp.inf), path.num_frames)
            chosen.append(Chosen(path, picks, self._boxes(path, picks, features, question, text)))
        return chosen

    def choose_fast(
        self, fast: Path, features: GuidedFeatures, layout: FrameLayout, guidance: Guidance | None
    ) -> Chosen:
        wanted, num_frames = fast.num_frames, layout.media.shape[1]
        if self.options.fast_path.select == "uniform" or wanted == "all" or wanted >= num_frames:
            return super().choose_fast(fast, features, layout, guidance)
        scores = self.frame_scores(features, self.clip.texts(self._question(guidance).prompt_ids))
        return Chosen(fast, best_picks(jnp.where(layout.is_video, scores, -jnp.inf), wanted))

    def frame_scores(self, features: GuidedFeatures, text: Float[Array, "B E"]) -> Float[Array, "B T"]:
        """Cosine of the question (`Clip.texts`) with every frame."""
        return cosine(text, features.frames, jnp.dtype(self.options.score_dtype))

    def patch_scores(
        self, pool: GridPool, picks: Picks, features: GuidedFeatures, text: Float[Array, "B E"]
    ) -> Float[Array, "B S K"]:
        """Cosine of the question with every place of the picked frames."""
        places = take(features.places[self.score_pools.index(pool)], picks)
        return cosine(text, places, jnp.dtype(self.options.score_dtype))

    def _question(self, guidance: Guidance | None) -> Guidance:
        if guidance is None:
            raise ValueError("prompt_guided reads the question: give guidance, in a batch `prompt_ids`")
        return guidance

    def _ranking(
        self, features: GuidedFeatures, layout: FrameLayout, guidance: Guidance, text: Float[Array, "B E"]
    ) -> Float[Array, "B T"]:
        """By what the first path picks frames: the larger, the sooner."""
        if self.options.frame_select == "prompt":
            return self.frame_scores(features, text)
        if self.options.frame_select == "change":
            assert features.change is not None
            return jnp.where(layout.index_in_medium == 0, 2.0, features.change)  # more than any change: frame 0 first
        draw = jax.vmap(lambda key: jax.random.uniform(key, layout.media.shape[1:]))
        return jnp.take_along_axis(draw(_keys(guidance)), layout.index_in_medium, axis=1)

    def _candidates(self, layout: FrameLayout) -> Array:
        """[B, T] frames that the first path may take."""
        uniform = next((path for path in self.paths if path.name == "uniform"), None)
        if not self.options.dedupe_frames or uniform is None:
            return layout.is_video
        num_frames = layout.media.shape[1]
        picks = uniform_picks(clip_frames(layout), uniform.num_frames, num_frames)
        taken = (jax.nn.one_hot(picks.index, num_frames) * picks.valid[..., None]).sum(1) > 0
        return layout.is_video & ~taken

    def frames_taken(self, path: Path, num_frames: int) -> int:
        if path.name == "uniform":
            return super().frames_taken(path, num_frames)
        left = num_frames
        uniform = next((other for other in self.paths if other.name == "uniform"), None)
        if self.options.dedupe_frames and uniform is not None:
            left -= min(super().frames_taken(uniform, num_frames), num_frames)
        return left if path.num_frames == "all" else min(path.num_frames, left)

    def _boxes(
        self, path: Path, picks: Picks, features: GuidedFeatures, guidance: Guidance, text: Float[Array, "B E"]
    ) -> Boxes | None:
        if path.region is None:
            return None
        batch, slots = picks.index.shape
        if self.options.roi_box == "prompt":
            return path.region.around(self.patch_scores(path.pool, picks, features, text))
        if self.options.roi_box == "centre":
            return path.region.centre(batch, slots)
        return path.region.random(_keys(guidance), slots)

    # --- beside the tokens -------------------------------------------------------------------------------------------

    def picked(
        self, features: GuidedFeatures, layout: FrameLayout, guidance: Guidance | None = None
    ) -> dict[str, Array]:
        """As `PathsAdapter.picked`, and `frame_scores` [B, T]: the clip's, from its first frame on; 0 behind them."""
        clip, num_frames = clip_frames(layout), layout.media.shape[1]
        scores = self.frame_scores(features, self.clip.texts(self._question(guidance).prompt_ids))
        frame = jnp.arange(num_frames)
        scores = jnp.take_along_axis(scores, jnp.minimum(clip.first[:, None] + frame, num_frames - 1), axis=1)
        scores = jnp.where(frame < clip.count[:, None], scores, 0.0)
        return {"frame_scores": scores, **super().picked(features, layout, guidance)}

    def own_losses(self, features: GuidedFeatures, layout: FrameLayout, guidance: Guidance | None = None) -> Losses:
        """CLIP's contrastive loss between the rows' media and texts, over all rows of the batch that have a medium.

        A row's medium is one image; of more frames the mean is taken.
        """
        texts = self.clip.texts(self._question(guidance).prompt_ids)
        weight = layout.mask / jnp.maximum(layout.mask.sum(axis=1, keepdims=True), 1)
        images = jnp.einsum("bt,bte->be", weight, features.frames.astype(jnp.float32))
        return contrastive_losses(texts, images, self.clip.logit_scale[...], layout.mask.any(axis=1))


def _cropped(name: str, options: RoiPathOptions, side: int, layout: Literal["released", "corrected"]) -> Path:
    where = f"{_WHERE}.{name}_path"
    path = make_path(name, options, side, where)
    if path.pool.parts is not None and options.roi_alpha < 1:
        raise InputError(
            f"{where}.roi_alpha: {options.pool} averages frames, each of which has a box of its own; set it to 1.0"
        )
    return dataclasses.replace(path, region=region(path.pool, options.roi_alpha, layout))


def _clip_config(options: Adapter.Options, config: ModelConfig) -> ClipConfig:
    """The CLIP's settings with its tower's written out; None for that of a shared one."""
    given, own = options.clip.vision, config.vision
    if options.clip_towers == "shared":
        if own.kind != "clip":
            raise InputError(
                f"{_WHERE}.clip_towers: shared needs a CLIP tower; config.model.vision.kind is {own.kind!r}, so use "
                "separate and give the sizes in clip.vision"
            )
        if given is not None:
            raise InputError(f"{_WHERE}.clip.vision: a shared tower is config.model.vision; leave this out")
        if options.clip.dtype not in (None, config.dtype):
            raise InputError(f"{_WHERE}.clip.dtype: a shared tower runs in config.model.dtype; leave this out")
        return options.clip
    if given is None and own.kind != "clip":
        raise InputError(f"{_WHERE}.clip.vision: give the CLIP tower's sizes; the model's own is a {own.kind} tower")
    tower = given or own
    if tower.kind != "clip":
        raise InputError(f"{_WHERE}.clip.vision.kind: {tower.kind!r} has no class token; a CLIP tower has")
    whole = tower.model_copy(update={"feature_layer": -1, "post_norm": False, "attention_layer": None})
    return options.clip.model_copy(update={"vision": whole})


def _regridded(patches: Float[Array, "B T N E"], side: int) -> Float[Array, "B T M E"]:
    """On a grid of `side` x `side`, by bilinear interpolation with antialiasing; as they are where it is theirs."""
    batch, num_frames, count, width = patches.shape
    own = round(count**0.5)
    if own == side:
        return patches
    grid = patches.reshape(batch, num_frames, own, own, width)
    shape = (batch, num_frames, side, side, width)
    return jax.image.resize(grid, shape, "linear", antialias=True).reshape(batch, num_frames, side**2, width)


def _change(tokens: Float[Array, "B T N C"]) -> Float[Array, "B T"]:
    """1 - cosine of each frame's mean token with that of the frame before; fp32."""
    means = tokens.mean(axis=2, dtype=jnp.float32)
    before = jnp.roll(means, 1, axis=1)
    norms = jnp.linalg.norm(means, axis=-1) * jnp.linalg.norm(before, axis=-1)
    return 1 - (means * before).sum(-1) / jnp.maximum(norms, 1e-20)


def _keys(guidance: Guidance) -> Array:
    """[B] a key a row, from its question: controls do not depend on the place in a batch."""
    ids = guidance.prompt_ids.astype(jnp.uint32)
    odd = 2 * jnp.arange(ids.shape[1], dtype=jnp.uint32) + 1
    mixed = (ids * odd * jnp.uint32(2654435761)).sum(axis=1)
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(mixed)
