"""Every family against transformers: tower features, connector output, logits and greedy answers, fp32.

Both sides read the same directory. Differences are recorded as properties of the tests (`pytest --junitxml=FILE -o
junit_family=xunit1`); the table in docs/weights.md is made of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from support import families
from support.families import DECODERS, IMAGE, SPECS, TOWERS, VIDEO, VLMS

from vlvm_jax.config import ModelConfig
from vlvm_jax.data.images import anyres
from vlvm_jax.models import decoding
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.decoder import Decoder
from vlvm_jax.models.params import Model, Params
from vlvm_jax.models.vision import VisionTower
from vlvm_jax.weights.sources import HFDirectory, Stored, open_source

TOLERANCE = 1e-4
NEW = 8
CPU = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def load(source: HFDirectory | Stored) -> Params:
    """Whole parameters, fp32."""
    wanted = {p: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=CPU) for p, a in source.shapes.items()}
    return source.load(wanted)


def same(record_property, what: str, ours, theirs) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.5, "nothing to compare"
    difference = float(np.abs(np.asarray(ours) - theirs).max())
    record_property(what, difference)
    assert difference < TOLERANCE


# --- what both models are given


@dataclasses.dataclass(frozen=True)
class Medium:
    """An image (with its tiles, if any) or a clip.

    Attributes:
      layout: where its tokens come from; None where they are the valid slots in order.
    """

    frames: np.ndarray
    is_video: bool
    tokens: int
    layout: anyres.Layout | None = None
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Given:
    """A prompt with media, as token ids that transformers takes, and which of them are visual."""

    ids: np.ndarray
    media: tuple[Medium, ...]

    @property
    def visual(self) -> np.ndarray:
        return (self.ids == IMAGE) | (self.ids == VIDEO)


def prompt(media: Sequence[Medium]) -> Given:
    rng = np.random.default_rng(len(media))
    ids = list(rng.integers(3, IMAGE, 3))
    for medium in media:
        ids += [VIDEO if medium.is_video else IMAGE] * medium.tokens
        ids += list(rng.integers(3, IMAGE, 2))
    return Given(np.asarray(ids), tuple(media))


class Pair:
    """A checkpoint in transformers and here."""

    def __init__(self, name: str, folder: Path):
        self.family = SPECS[name].family
        self.theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        source = open_source(str(folder), "SRC")
        assert isinstance(source, HFDirectory) and source.vision and source.decoder and source.adapter
        self.vision = source.vision
        config = ModelConfig(vision=source.vision, decoder=source.decoder, adapter=source.adapter, dtype="float32")
        self.model = Model(config)
        self.params = params_lib.split(load(source), {})
        self.adapter = self.model.adapter
        self.greedy = jax.jit(lambda params, batch: decoding.generate(self.model.bind(params), batch, NEW))
        self.forward = jax.jit(self._forward)

    def _forward(self, params: Params, batch: Batch):
        model = self.model.bind(params)
        features = model.encoder(batch.frames)
        return features.patches, model.adapter.connector(features.patches), model.decoder.logits(model(batch)[0])

    @functools.cached_property
    def given(self) -> dict[str, Given]:
        """The inputs that the class has."""
        return {name: prompt([make() for make in media]) for name, media in self._inputs().items()}

    def _inputs(self) -> dict[str, list[Callable[[], Medium]]]:
        text: dict[str, list[Callable[[], Medium]]] = {"text": []}
        match self.family:
            case "llava":
                return text | {"image": [self.square], "images": [self.square] * 3}
            case "smolvlm" | "idefics3" | "internvl":
                few = 1 if self.vision.grid > 9 else 3
                return text | {"image": [self.square], "frames of a clip": [self.square] * few}
            case "llava_next":
                return text | {"image": [self.tiled(0.7, 2.1)], "images": [self.tiled(1.9, 0.8), self.tiled(0.6, 0.6)]}
            case "llava_next_video":
                return text | {
                    "video": [self.clip], "image": [self.tiled(0.7, 2.1)],
                    "image and video": [self.tiled(1.9, 0.8), self.packed_clip],
                }  # fmt: skip
            case "llava_onevision":
                return text | {
                    "video": [self.clip], "image": [self.tiled(1.5, 2.0)], "images": [self.base_tile] * 3,
                    "image and video": [self.tiled(0.7, 2.1), self.packed_clip],
                }  # fmt: skip
        raise AssertionError(self.family)

    def frames(self, count: int) -> np.ndarray:
        rng = np.random.default_rng(count)
        return rng.integers(0, 256, (count, self.vision.image_size, self.vision.image_size, 3), dtype=np.uint8)

    def square(self) -> Medium:
        return Medium(self.frames(1), False, self.adapter.num_image_tokens())

    def clip(self) -> Medium:
        return Medium(self.frames(4), True, self.adapter.num_video_tokens(4))

    def packed_clip(self) -> Medium:
        """The same tokens as of `clip`, named slot by slot."""
        newline = self.family == "llava_onevision"
        pooled = self.adapter.num_video_tokens(2) - self.adapter.num_video_tokens(1)
        layout = anyres.in_order(3, pooled, self.vision.num_patches, newline=newline, taps=self.taps)
        assert len(layout) == self.adapter.num_video_tokens(3)
        return Medium(self.frames(3), True, len(layout), layout)

    def tiled(self, tall: float, wide: float) -> Callable[[], Medium]:
        """An image of a size given in tiles, cut as the class does."""

        def make() -> Medium:
            config, side = self.theirs.config, self.vision.image_size
            size = round(tall * side), round(wide * side)
            pinpoints = config.image_grid_pinpoints
            most = int(config.vision_aspect_ratio.split("_")[-1]) if self.family == "llava_onevision" else None
            layout = anyres.tiled(size, pinpoints, side, self.vision.grid, taps=self.taps, max_tiles=most)
            frames = self.frames(anyres.num_tiles(size, pinpoints, side))
            return Medium(frames, False, len(layout), layout, size)

        return make

    def base_tile(self) -> Medium:
        """One of several images of OneVision: not cut."""
        patches = self.vision.num_patches
        layout = anyres.in_order(1, patches, patches, newline=True, taps=self.taps)
        side = self.vision.image_size
        return Medium(self.frames(1), False, len(layout), layout, (side // 2, side))

    @property
    def taps(self) -> int:
        return 4 if self.family == "llava_onevision" else 1

    def batch(self, given: Given) -> Batch:
        """One row, padded to one of two shapes: with a layout or without."""
        packed = any(medium.layout is not None for medium in given.media)
        alike = [g for g in self.given.values() if packed == any(m.layout is not None for m in g.media)]
        length = max(len(g.ids) for g in alike)
        frames = max(1, *(sum(len(m.frames) for m in g.media) for g in alike))
        used = len(given.ids)
        count = sum(len(medium.frames) for medium in given.media)
        media = np.zeros((1, frames), np.int32)
        is_video = np.zeros((1, frames), bool)
        media[0, :count] = np.repeat(np.arange(len(given.media)) + 1, [len(m.frames) for m in given.media])
        is_video[0, :count] = np.repeat([m.is_video for m in given.media], [len(m.frames) for m in given.media])
        pixels = np.concatenate([*(m.frames for m in given.media), self.frames(frames - count)])[None]
        values: dict[str, Any] = {
            "frames": pixels,
            "media": media,
            "is_video": is_video,
            "token_ids": np.zeros((1, length), np.int32),
            "media_mask": np.zeros((1, length), bool),
            "positions": np.arange(length, dtype=np.int32)[None],
            "segment_ids": (np.arange(length) < used).astype(np.int32)[None],
            "loss_mask": np.zeros((1, length), bool),
        }
        values["token_ids"][0, :used] = np.where(given.visual, 5, given.ids)
        values["media_mask"][0, :used] = given.visual
        if packed:
            index, weight = self._layout(given)
            for name, part in (("visual_index", index), ("visual_weight", weight)):
                values[name] = np.zeros((1, length, self.taps), part.dtype)
                values[name][0, :used][given.visual] = part
        return Batch(**{name: jnp.asarray(value) for name, value in values.items()})

    def _layout(self, given: Given) -> tuple[np.ndarray, np.ndarray]:
        starts = np.cumsum([0, *(len(medium.frames) for medium in given.media)]) * (self.vision.num_patches + 1)
        layouts = [medium.layout for medium in given.media if medium.layout is not None]
        index = [layout.index + start for layout, start in zip(layouts, starts[:-1], strict=True)]
        return np.concatenate(index), np.concatenate([layout.weight for layout in layouts])

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        mean, std = np.asarray(self.vision.image_mean), np.asarray(self.vision.image_std)
        return torch.from_numpy(((frames / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))

    def inputs(self, given: Given) -> dict[str, torch.Tensor]:
        """For transformers."""
        inputs = {"input_ids": torch.from_numpy(given.ids)[None]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        images = [self.pixels(medium.frames) for medium in given.media if not medium.is_video]
        clips = [self.pixels(medium.frames) for medium in given.media if medium.is_video]
        if clips:
            inputs["pixel_values_videos"] = torch.stack(clips)
        if not images:
            return inputs
        if self.family in ("llava", "internvl"):
            return inputs | {"pixel_values": torch.cat(images)}
        if self.family in ("smolvlm", "idefics3"):
            return inputs | {"pixel_values": torch.cat(images)[None]}
        most = max(len(tiles) for tiles in images)
        padded = [torch.cat([tiles, torch.zeros(most - len(tiles), *tiles.shape[1:])]) for tiles in images]
        sizes = [medium.size for medium in given.media if not medium.is_video]
        inputs |= {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}
        if self.family == "llava_onevision":
            inputs["batch_num_images"] = torch.tensor([len(images)])
        return inputs


@pytest.fixture(scope="module")
def pairs(checkpoints):
    """Pairs by name, from the files of the layout and dtype whose turn it is."""

    @functools.cache
    def make(name: str) -> Pair:
        ways = families.layouts(name)
        return Pair(name, checkpoints(name, ways[VLMS.index(name) % len(ways)]))

    return make


INPUTS = {
    "llava": ("text", "image", "images"),
    "smolvlm": ("text", "image", "frames of a clip"),
    "idefics3": ("text", "image", "frames of a clip"),
    "internvl": ("text", "image", "frames of a clip"),
    "llava_next": ("text", "image", "images"),
    "llava_next_video": ("text", "video", "image", "image and video"),
    "llava_onevision": ("text", "video", "image", "images", "image and video"),
}
CASES = [(name, given) for name in VLMS for given in INPUTS[SPECS[name].family]]


def test_every_input_of_every_class_is_tried(pairs):
    for name in VLMS:
        assert tuple(pairs(name).given) == INPUTS[SPECS[name].family]


def squared(features: torch.Tensor) -> torch.Tensor:
    """[F, N, D] to [F, rows, columns, D]."""
    side = round(features.shape[1] ** 0.5)
    return features.unflatten(1, (side, side))


@pytest.mark.parametrize("name", VLMS)
def test_features_and_connector(pairs, name, record_property):
    pair: Pair = pairs(name)
    given = pair.given["image"]
    features, tokens, _ = pair.forward(pair.params, pair.batch(given))
    count = sum(len(medium.frames) for medium in given.media)
    pixels = pair.pixels(np.concatenate([medium.frames for medium in given.media]))
    with torch.no_grad():
        inner = pair.theirs.model
        if pair.family in ("smolvlm", "idefics3"):
            everywhere = torch.ones(count, pair.vision.grid, pair.vision.grid, dtype=torch.bool)
            expected = inner.vision_model(pixels, patch_attention_mask=everywhere).last_hidden_state
            connected = inner.connector(expected)
        else:
            layer = pair.theirs.config.vision_feature_layer
            out = inner.vision_tower(pixels, output_hidden_states=True)
            expected = out.hidden_states[layer][:, pair.vision.has_class_token :]
            joined = expected
            if pair.family == "internvl":
                joined = inner.pixel_shuffle(squared(expected), pair.theirs.config.downsample_ratio).flatten(1, 2)
            connected = inner.multi_modal_projector(joined)
    same(record_property, "features", features[0, :count], expected)
    same(record_property, "connector", tokens[0, :count], connected)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_logits_and_greedy_answers(pairs, name, given, record_property):
    pair: Pair = pairs(name)
    given = pair.given[given]
    batch, inputs = pair.batch(given), pair.inputs(given)
    with torch.no_grad():
        expected = pair.theirs(**inputs).logits[0]
        answer = pair.theirs.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(given.ids) :]  # fmt: skip
    _, _, logits = pair.forward(pair.params, batch)
    same(record_property, "logits", logits[0, : len(given.ids)], expected)
    tokens, counts = pair.greedy(pair.params, batch)
    assert tokens[0].tolist() == answer.tolist()
    assert counts.tolist() == [NEW]


def test_onevision_shrinks_one_image_and_not_the_other(pairs):
    """The case that needs interpolation is among those above."""
    shrunk = pairs("llava_onevision odd-grid shrink").given["image"].media[0].layout
    whole = pairs("llava_onevision remainder tied").given["image"].media[0].layout
    assert (shrunk.weight > 0).sum(1).max() == 4 and (whole.weight > 0).sum(1).max() == 1


def only_part(folder: Path, part: str, cls: type[nnx.Module]):
    """The one part that a checkpoint has, and its settings."""
    source = open_source(str(folder), "SRC")
    (config,) = (found for found in (source.vision, source.decoder, source.connector) if found is not None)
    params = params_lib.of_part(params_lib.split(load(source), {}), part)
    return params_lib.build(lambda: cls(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), params), config


@pytest.mark.parametrize("name", TOWERS)
def test_bare_towers(checkpoints, name, record_property):
    """The hidden state before the last layer for CLIP, after it for SigLIP, as LLaVA reads them."""
    folder = checkpoints(name, "hub")
    tower, vision = only_part(folder, "encoder", VisionTower)
    frames = np.random.default_rng(0).integers(0, 256, (2, vision.image_size, vision.image_size, 3), dtype=np.uint8)
    pixels = (frames / 255 - np.asarray(vision.image_mean)) / np.asarray(vision.image_std)
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = getattr(theirs, "vision_model", theirs)
    with torch.no_grad():
        out = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(), output_hidden_states=True)
    layer, skip = (-2, 1) if vision.kind == "clip" else (-1, 0)
    features = nnx.jit(lambda tower, frames: tower(frames))(tower, frames[None]).patches[0]
    same(record_property, "features", features, out.hidden_states[layer][:, skip:])


@pytest.mark.parametrize("name", DECODERS)
def test_bare_decoders(checkpoints, name, record_property):
    folder = checkpoints(name, "hub")
    decoder, config = only_part(folder, "decoder", Decoder)
    length = 24 if config.sliding_window is None else config.sliding_window + 16
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
    places = np.arange(length)[None]
    ours = nnx.jit(lambda decoder, ids: decoder.logits(decoder(decoder.embed(ids), places, places * 0 + 1)[0]))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits
    same(record_property, "logits", ours(decoder, ids), expected)
