"""The adapter `prompt_guided`: a CLIP says which frames, and which part of each, a question is about.

Only those are kept at many tokens each, beside a few uniform frames and all frames at few tokens.
"""

import math

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from .frame_paths import GridPool, Path, few_or_all, make_fast, uniform


class VideoAdapter(nn.Module):
    """Prompt-picked frames, uniform frames, fast path; time order within each."""

    needs_prompt = True

    def __init__(self, config, connector):
        super().__init__()
        self.options = config.adapter["options"]
        for key in ("frame_select", "roi_box"):
            if self.options[key] == "random":
                raise ValueError(f"config.json: adapter.options.{key} is 'random', which only vlvm_jax draws")
        self.connector = connector
        self.side = round(connector.num_tokens**0.5)
        paths = {name: self.options[f"{name}_path"] for name in ("prompt", "uniform")}
        self.paths = {
            name: RoiPath(path, self.side, self.options["roi_layout"])
            for name, path in paths.items()
            if path["num_frames"] != 0
        }
        self.fast = make_fast(self.options["fast_path"], self.side)
        self.clip = GuidingClip(config, self.options["clip"])
        self.shares_tower = self.clip.vision_model is None

    def num_image_tokens(self) -> int:
        return self.connector.num_tokens

    def num_video_tokens(self, num_frames: int) -> int:
        tokens = sum(path.num_tokens(self.frames_taken(name, num_frames)) for name, path in self.paths.items())
        return tokens if self.fast is None else tokens + self.fast.num_tokens(len(self.fast_frames(num_frames)))

    def frames_taken(self, name: str, num_frames: int) -> int:
        wanted = self.paths[name].num_frames
        if name == "uniform":
            return len(uniform(wanted, num_frames))
        left = num_frames - len(self.left_to_uniform(num_frames))
        return left if wanted == "all" else min(wanted, left)

    def left_to_uniform(self, num_frames: int) -> set[int]:
        """Frames that the first path may not take."""
        if not self.options["dedupe_frames"] or "uniform" not in self.paths:
            return set()
        return set(uniform(self.paths["uniform"].num_frames, num_frames))

    def fast_frames(self, num_frames: int, scores=None) -> list[int]:
        """Frames of the fast path; without scores as many of them."""
        wanted = self.options["fast_path"]["num_frames"]
        picks = self.options["fast_path"]["select"] == "prompt" and wanted != "all" and wanted < num_frames
        return best(scores, int(wanted)) if picks and scores is not None else few_or_all(wanted, num_frames)

    def forward(self, patches, attention, frames_per_medium: list[int], is_video: bool, guide=None):
        """Patches [F, N, D] of media of one kind to their tokens [V, C], medium after medium.

        Args:
          guide: `modeling_vlvm.Guide` of the clips.
        """
        tokens = self.connector(patches)
        if not is_video:
            return tokens.flatten(0, 1)
        if guide is None:
            raise ValueError("this model looks at a clip by a question: give `prompt_ids`")
        of_frames, on_grid = self.seen(guide)
        texts = self.clip.texts(guide.prompt_ids)
        split = (part.split(frames_per_medium) for part in (tokens, of_frames, on_grid))
        return torch.cat([self.clip_tokens(*parts) for parts in zip(*split, texts, strict=True)])

    def seen(self, guide):
        """What the CLIP says of every frame, [F, E], and of its patches on the grid of tokens, [F, N, E].

        Args:
          guide: `modeling_vlvm.Guide` of the clips.
        """
        final, norm = self.clip.final(guide)
        of_patches = final[:, 1:]
        patches = self.clip.visual_projection(norm(of_patches) if self.options["patch_post_ln"] else of_patches)
        of_frames = self.clip.visual_projection(norm(final[:, 0]))
        if self.options["frame_feature"] == "mean_patch":
            of_frames = patches.float().mean(1).to(patches)
        return of_frames, regridded(patches, self.side)

    def clip_tokens(self, tokens, of_frames, on_grid, text):
        """Tokens of one clip.

        Args:
          tokens: [T, N, C] of the connector.
          of_frames, on_grid: of the CLIP, as in `seen`.
          text: [E] of the question.
        """
        scores = self.cosine(text, of_frames)
        parts = []
        for name, path in self.paths.items():
            frames = self.chosen(name, path, tokens, scores)
            places = path.pool(on_grid[frames])
            parts.append(path.cropped_tokens(tokens[frames], self.boxes(path, places, text)))
        if self.fast is not None:
            parts.append(self.fast.tokens(tokens[self.fast_frames(len(tokens), scores)]))
        return torch.cat(parts)

    def chosen(self, name: str, path: "RoiPath", tokens, scores) -> list[int]:
        """The frames of a path."""
        count = len(tokens)
        if name == "uniform":
            return uniform(path.num_frames, count)
        select = self.options["frame_select"]
        if select == "uniform":
            return few_or_all(path.num_frames, count)
        ranking = scores if select == "prompt" else change(tokens)
        taken = self.left_to_uniform(count)
        allowed = torch.tensor([frame not in taken for frame in range(count)], device=ranking.device)
        wanted = count if path.num_frames == "all" else path.num_frames
        return best(ranking.masked_fill(~allowed, -math.inf), min(wanted, int(allowed.sum())))

    def boxes(self, path: "RoiPath", places, text) -> list[tuple[int, int]]:
        """Left and top of each frame's box."""
        region = path.region
        if region is None:
            return []
        if self.options["roi_box"] == "centre":
            return [region.at((region.columns - 1) // 2, (region.rows - 1) // 2)] * len(places)
        return [region.around(scores) for scores in self.cosine(text, places)]

    def cosine(self, text, images):
        """Cosines [*K] of a text [E] with vectors [*K, E], worked out in the chosen dtype."""
        dtype = getattr(torch, self.options["score_dtype"])
        text, images = (unit(x.to(dtype)) for x in (text, images))
        return (images.float() @ text.float()) if dtype == torch.float32 else (images @ text).float()


class GuidingClip(nn.Module):
    """A CLIP, or its text side beside the model's own tower."""

    def __init__(self, config, sizes: dict):
        super().__init__()
        text = CLIPTextConfig(**sizes["text"], bos_token_id=None, pad_token_id=None)
        model = CLIPTextModel(text)
        self.text_model = getattr(model, "text_model", model)
        self.text_projection = nn.Linear(text.hidden_size, sizes["projection_dim"], bias=False)
        width, self.vision_model = config.vision_config.hidden_size, None
        shared = config.adapter["options"]["clip_towers"] == "shared"
        if not shared:
            given = sizes["vision"] or own_sizes(config)
            self.mean, self.std, self.size = given["image_mean"], given["image_std"], given["image_size"]
            self.own = config.image_mean, config.image_std
            kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
            kept = (*kept, "patch_size", "hidden_act", "layer_norm_eps")
            vision = CLIPVisionModel(CLIPVisionConfig(**{name: given[name] for name in kept}))
            self.vision_model = getattr(vision, "vision_model", vision)
            width = given["hidden_size"]
        self.visual_projection = nn.Linear(width, sizes["projection_dim"], bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def texts(self, token_ids):
        """[clips, E] of token ids [clips, P], not yet of length 1."""
        return self.text_projection(self.text_model(input_ids=token_ids).pooler_output)

    def final(self, guide):
        """The last layer's output [F, M, D] for every frame, and the layer norm after it."""
        if self.vision_model is None:
            return guide.final, guide.tower.post_layernorm
        pixels = self.pixels(guide.pixel_values)
        return self.vision_model(pixel_values=pixels).last_hidden_state, self.vision_model.post_layernorm

    def pixels(self, pixel_values):
        """The model's pixels as this tower wants them: of its size, normalised by its statistics."""
        mean, std = (torch.tensor(values).to(pixel_values)[:, None, None] for values in self.own)
        frames = ((pixel_values.float() * std + mean) * 255).round()
        if frames.shape[-1] != self.size:
            frames = nn.functional.interpolate(frames, (self.size, self.size), mode="bicubic", antialias=True)
            frames = frames.round().clamp(0, 255)
        mean, std = (torch.tensor(values).to(frames)[:, None, None] for values in (self.mean, self.std))
        return ((frames / 255 - mean) / std).to(pixel_values)


def own_sizes(config) -> dict:
    """Sizes of a CLIP's tower that are those of the model's own."""
    vision = config.vision_config.to_dict()
    return vision | {"image_mean": config.image_mean, "image_std": config.image_std}


class RoiPath(Path):
    """A path whose frames are cropped."""

    def __init__(self, options: dict, side: int, layout: str):
        super().__init__(options, side)
        self.region = make_region(self.pool, options["roi_alpha"], layout)

    def num_tokens(self, num_frames: int) -> int:
        if self.region is None:
            return super().num_tokens(num_frames)
        return num_frames * self.region.height * self.region.width

    def cropped_tokens(self, tokens, boxes: list[tuple[int, int]]):
        if self.region is None:
            return self.tokens(tokens)
        pooled = self.pool(tokens)
        return torch.cat([self.region.crop(frame, box) for frame, box in zip(pooled, boxes, strict=True)])


class Region:
    """A box of `height` x `width` cells within a view of `rows` x `columns`, around the mean of the `best` places."""

    def __init__(self, rows: int, columns: int, height: int, width: int, best: int):
        self.rows, self.columns, self.height, self.width, self.best = rows, columns, height, width, best

    def around(self, scores) -> tuple[int, int]:
        places = torch.tensor(best(scores, self.best))
        x, y = places % self.columns, places // self.columns
        return self.at(int(x.sum()) // self.best, int(y.sum()) // self.best)

    def at(self, x: int, y: int) -> tuple[int, int]:
        left = min(max(x - self.width // 2, 0), self.columns - self.width)
        return left, min(max(y - self.height // 2, 0), self.rows - self.height)

    def crop(self, tokens, box: tuple[int, int]):
        left, top = box
        view = tokens.unflatten(0, (self.rows, self.columns))
        return view[top : top + self.height, left : left + self.width].flatten(0, 1)


def make_region(pool: GridPool, alpha: float, layout: str) -> Region | None:
    """The region of a pooled frame that keeps about a share `alpha` of it; None for all of it."""
    if alpha >= 1:
        return None
    rows, columns = len(pool.rows), len(pool.columns)
    if layout == "released" and pool.paired_columns:
        rows, columns = columns, rows
    height, width = (max(1, round(side * math.sqrt(alpha))) for side in (rows, columns))
    return Region(rows, columns, height, width, max(1, int(rows * columns * alpha)))


def best(scores, wanted: int) -> list[int]:
    """The places of the largest scores, in order of place; ties go to the lower one."""
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:wanted].tolist())


def change(tokens):
    """1 - cosine of each frame's mean token with that of the frame before; frame 0 before all others."""
    means = tokens.float().mean(1)
    before = means.roll(1, 0)
    norms = means.norm(dim=-1) * before.norm(dim=-1)
    changes = 1 - (means * before).sum(-1) / norms.clamp(min=1e-20)
    return torch.cat([changes.new_full((1,), 2.0), changes[1:]])


def regridded(patches, side: int):
    """[F, N, E] on a grid of `side` x `side`, by bilinear interpolation with antialiasing."""
    own = round(patches.shape[1] ** 0.5)
    if own == side:
        return patches
    grid = patches.unflatten(1, (own, own)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, (side, side), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)


def unit(x):
    """Of length 1; zero stays zero."""
    square = (x * x).sum(-1, keepdim=True)
    return x * square.clamp(min=torch.finfo(x.dtype).tiny).rsqrt()
