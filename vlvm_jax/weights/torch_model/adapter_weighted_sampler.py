"""The adapter `weighted_sampler`: few weighted tokens per frame of a clip, images left whole.

A sampler gives a weight matrix A [K, N] per frame from its N tokens X; what goes on is A X.
"""

import abc

import torch
from torch import nn


class VideoAdapter(nn.Module):
    """Connector, then K of N tokens per frame; frames in time order, a frame's K tokens together."""

    def __init__(self, config, connector):
        super().__init__()
        options = config.adapter["options"]
        self.apply_to_images = options["apply_to_images"]
        self.before_connector = options["placement"] == "before_connector"
        self.connector = connector
        decoder_width = config.text_config.hidden_size
        width = config.vision_config.hidden_size if self.before_connector else decoder_width
        self.sampler = make_sampler(options, width, self.connector.num_tokens)
        self.max_frames = options["max_frames"]
        learned = options["temporal_embed"] == "learned"
        self.temporal_embedding = nn.Parameter(torch.zeros(self.max_frames, decoder_width)) if learned else None

    @property
    def num_tokens(self) -> int:
        return self.connector.num_tokens if self.sampler is None else self.sampler.num_slots

    def num_image_tokens(self) -> int:
        return self.num_tokens if self.apply_to_images else self.connector.num_tokens

    def num_video_tokens(self, num_frames: int) -> int:
        return num_frames * self.num_tokens

    def forward(self, patches, attention, frames_per_medium: list[int], is_video: bool):
        """Patches [F, N, D] of media of one kind, and the attention [F, N] they receive, to their tokens [V, C]."""
        if not is_video and not self.apply_to_images:
            return self.connector(patches).flatten(0, 1)
        if self.sampler is None:
            tokens = self.connector(patches)
        elif self.before_connector:
            tokens = self.connector(self.sampler(patches, attention))
        else:
            tokens = self.sampler(self.connector(patches), attention)
        if self.temporal_embedding is not None:
            index = torch.cat([torch.arange(count) for count in frames_per_medium]).clamp(max=self.max_frames - 1)
            tokens = tokens + self.temporal_embedding[index.to(tokens.device)][:, None].to(tokens.dtype)
        return tokens.flatten(0, 1)


class Sampler(nn.Module, abc.ABC):
    """K tokens from N, per frame."""

    num_slots: int

    @abc.abstractmethod
    def weights(self, x, attention) -> torch.Tensor:
        """Tokens [F, N, C] and attention received [F, N] to weights [F, K, N], fp32."""

    def values(self, x):
        return x

    def forward(self, x, attention):
        return self.weights(x, attention).to(x.dtype) @ self.values(x)


class SoftSlots(Sampler):
    """K learned weighted means: softmax over the tokens of (queries . keys + prior) / tau."""

    def __init__(self, options, width: int, num_patches: int):
        super().__init__()
        self.num_slots, self.tau, self.mlp = options["num_tokens"], options["tau"], options["key_net"] == "mlp"
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=self.mlp)
        self.key_proj = nn.Linear(width, options["hidden"], bias=self.mlp)
        self.queries = nn.Linear(options["hidden"], self.num_slots, bias=False)
        self.value_proj = nn.Linear(width, width, bias=False) if options["value_net"] == "linear" else None
        self.fixed_sigma = options["prior_sigma"] if options["prior"] == "grid" else None
        learned = options["prior"] == "learned_grid"
        self.prior = nn.Parameter(torch.zeros(self.num_slots, num_patches)) if learned else None

    def weights(self, x, attention):
        keys = self.key_proj(self.norm(x))
        if self.mlp:
            keys = nn.functional.gelu(keys)
        logits = self.queries(keys).transpose(1, 2).float()
        if self.fixed_sigma is not None:
            logits = logits + grid_prior(self.num_slots, x.shape[1], self.fixed_sigma).to(x.device)
        elif self.prior is not None:
            logits = logits + self.prior.float()
        return (logits / self.tau).softmax(-1)

    def values(self, x):
        return x if self.value_proj is None else self.value_proj(x)


class ScoredTopK(Sampler):
    """The K best-scored tokens in raster order, each weighted by its score. No noise: that is for training."""

    def __init__(self, options, width: int):
        super().__init__()
        self.num_slots, self.weight = options["num_tokens"], options["weight"]
        self.merge_rest = bool(options["merge_rest"])
        bias = options["score_net"] == "mlp" or self.weight != "renorm"
        self.score = Scorer(width, options["score_net"], options["hidden"], bias)

    def weights(self, x, attention):
        return top_k_weights(self.score(x), self.num_slots, self.weight, self.merge_rest)


class EncoderAttention(Sampler):
    """The K patches that the tower itself attends to most."""

    def __init__(self, options):
        super().__init__()
        self.num_slots = options["num_tokens"]
        self.merge_rest = self.num_slots > 1 if options["merge_rest"] is None else options["merge_rest"]

    def weights(self, x, attention):
        if attention is None:
            raise ValueError("config.json: attention_layer is null, but this model ranks patches by that attention")
        return top_k_weights(attention.clamp(min=1e-20).log(), self.num_slots, "none", self.merge_rest)


class LocalWeightedPool(Sampler):
    """One token per block of patches: softmax of a score inside the block."""

    def __init__(self, options, width: int):
        super().__init__()
        self.num_slots = options["num_tokens"]
        self.score = Scorer(width, options["score_net"], options["hidden"], bias=options["score_net"] == "mlp")

    def weights(self, x, attention):
        inside = (block_weights(self.num_slots, x.shape[1]) > 0).to(x.device)
        return self.score(x)[:, None].masked_fill(~inside, -torch.inf).softmax(-1)


class FixedWeights(Sampler):
    """Looks at nothing: mean, block average or uniform stride."""

    def __init__(self, kind: str, num_slots: int):
        super().__init__()
        self.kind, self.num_slots = kind, num_slots

    def weights(self, x, attention):
        num_patches = x.shape[1]
        if self.kind == "block_average":
            matrix = block_weights(self.num_slots, num_patches)
        elif self.kind == "mean":
            matrix = torch.full((self.num_slots, num_patches), 1 / num_patches)
        else:
            kept = [int((slot + 0.5) * num_patches / self.num_slots) for slot in range(self.num_slots)]
            matrix = torch.eye(num_patches)[kept]
        return matrix.to(x.device).expand(len(x), -1, -1)


class RandomK(Sampler):
    """K random patches of each frame in raster order: one fixed draw, the one that evaluation in training used.

    It numbers the frames of a call from 0, as a row is numbered whose media are all of one kind.
    """

    def __init__(self, num_slots: int):
        super().__init__()
        self.num_slots = num_slots

    def weights(self, x, attention):
        frames, num_patches, _ = x.shape
        draws = threefry(torch.arange(frames * num_patches)) >> 9  # the bits that make a float
        ranking = draws.reshape(frames, num_patches).double().to(x.device)
        return top_k_weights(ranking, self.num_slots, "none", False)


class Scorer(nn.Module):
    """A score per token, fp32: linear, or through a hidden layer with GELU, after a layer norm."""

    def __init__(self, width: int, kind: str, hidden: int, bias: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=bias)
        self.score_in = nn.Linear(width, hidden) if kind == "mlp" else None
        self.score_out = nn.Linear(hidden if kind == "mlp" else width, 1, bias=False)

    def forward(self, x):
        x = self.norm(x)
        if self.score_in is not None:
            x = nn.functional.gelu(self.score_in(x))
        return self.score_out(x)[..., 0].float()


def make_sampler(options, width: int, num_patches: int) -> Sampler | None:
    reading, slots = options["reading"], options["num_tokens"]
    if reading == "none" or slots >= num_patches:
        return None
    if reading == "soft_slots":
        return SoftSlots(options, width, num_patches)
    if reading == "scored_topk":
        return ScoredTopK(options, width)
    if reading == "encoder_attn":
        return EncoderAttention(options)
    if reading == "local_weighted_pool":
        return LocalWeightedPool(options, width)
    if reading == "random":
        return RandomK(slots)
    if reading in ("mean", "block_average", "stride"):
        return FixedWeights(reading, slots)
    raise ValueError(f"config.json: adapter.options.reading is {reading!r}, which this code does not know")


def top_k_weights(scores, num_slots: int, weight: str, merge_rest: bool):
    """Scores [F, N] to weights [F, K, N]: a row per kept token, and one for all others when `merge_rest`."""
    # A stable sort, because equal scores go to the lower index, which topk does not promise.
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    kept = order[:, : num_slots - merge_rest].sort(-1).values
    chosen = nn.functional.one_hot(kept, scores.shape[1]).float()
    probability = scores.float().softmax(-1)
    rows = chosen
    if weight == "renorm":
        share = probability.gather(-1, kept)
        rows = rows * (kept.shape[1] * share / share.sum(-1, keepdim=True).clamp(min=1e-20))[..., None]
    elif weight == "sigmoid":
        rows = rows * scores.gather(-1, kept).sigmoid()[..., None]
    if not merge_rest:
        return rows
    rest = probability * (1 - chosen.sum(1))
    rest = rest / rest.sum(-1, keepdim=True).clamp(min=1e-20)
    return torch.cat([rows, rest[:, None]], dim=1)


def near_square(count: int) -> tuple[int, int]:
    """The factorisation rows x columns of `count` nearest to a square, rows <= columns."""
    rows = max(r for r in range(1, int(count**0.5) + 1) if count % r == 0)
    return rows, count // rows


def block_weights(num_slots: int, num_patches: int):
    """[K, N] average over the cells of a near-square partition of the grid."""
    side = round(num_patches**0.5)
    rows, columns = near_square(num_slots)
    row = torch.arange(side) * rows // side
    column = torch.arange(side) * columns // side
    cell = (row[:, None] * columns + column[None]).flatten()
    member = (cell[None] == torch.arange(num_slots)[:, None]).float()
    return member / member.sum(1, keepdim=True)


def grid_prior(num_slots: int, num_patches: int, sigma: float):
    """[K, N] -distance^2 / (2 sigma^2), in patches, to the centres of a near-square partition of the grid."""
    side = round(num_patches**0.5)
    rows, columns = near_square(num_slots)
    place = torch.arange(side).double()
    down = place[None] - ((torch.arange(rows).double() + 0.5) * side / rows - 0.5)[:, None]
    across = place[None] - ((torch.arange(columns).double() + 0.5) * side / columns - 0.5)[:, None]
    distance = (down**2)[:, None, :, None] + (across**2)[None, :, None, :]
    return (-distance.reshape(num_slots, num_patches) / (2 * sigma**2)).float()


def threefry(counter):
    """32 random bits for each counter: Threefry-2x32 under the key 0, its two words xored, as `jax.random` draws."""
    word = 0xFFFFFFFF
    keys = (0, 0, 0x1BD11BDA)
    high, low = torch.zeros_like(counter), counter
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            high = (high + low) & word
            low = ((low << turn | low >> (32 - turn)) & word) ^ high
        high = (high + keys[(group + 1) % 3]) & word
        low = (low + keys[(group + 2) % 3] + group + 1) & word
    return high ^ low
