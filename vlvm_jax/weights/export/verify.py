"""Compares an exported directory, loaded by transformers, with this model on one clip.

Both run in fp32; the logits of every position and a greedy answer are compared. If the export does not round, it is
compared with the model as trained, LoRA unmerged. If it rounds, it is compared with the rounded weights, and the
difference between these and the model as trained is reported too.
torch is imported here and nowhere else in the package, and only when an export is checked.
"""

import dataclasses
import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlvm_jax.config import ClipConfig, ModelConfig
from vlvm_jax.data.images import anyres
from vlvm_jax.errors import InputError, brief
from vlvm_jax.models import decoding
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.clip import Clip, cosine
from vlvm_jax.models.decoder import Decoder
from vlvm_jax.models.params import Model, Params
from vlvm_jax.models.vision import VisionTower
from vlvm_jax.weights.export import lora
from vlvm_jax.weights.export.clip import ClipExport
from vlvm_jax.weights.export.export import Export, ModelExport
from vlvm_jax.weights.hf.clip_source import PLACE
from vlvm_jax.weights.torch_model import names as own_names

TOLERANCE = 1e-4  # of the largest logit
ANSWER_TOKENS = 16
_MAX_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Report:
    """What was compared and how it came out.

    Attributes:
      difference: largest difference of a logit, divided by the largest logit.
      same_answer: the greedy answers are equal, None where nothing is generated (a bare tower).
      rounding: if the export rounds, the largest difference of a logit to the model as trained, likewise, and the
        export's dtype.
    """

    what: str
    difference: float
    same_answer: bool | None
    versions: str
    rounding: tuple[float, str] | None = None

    def __str__(self) -> str:
        answer = "" if self.same_answer is None else f"; greedy answers {'equal' if self.same_answer else 'DIFFER'}"
        rounded = ""
        if self.rounding is not None:
            rounded = f"; rounded to {self.rounding[1]}, they differ from the trained model's by {self.rounding[0]:.1e}"
        compared = f"{self.what}: logits differ by {self.difference:.1e} of the largest (fp32)"
        return f"{compared}{answer}{rounded}; {self.versions}"


def missing(lora: str) -> list[str]:
    """Packages that `compare` needs and that are not installed.

    Args:
      lora: as in `export.Options`.
    """
    needed = ["torch", "peft"] if lora == "peft" else ["torch"]
    return [name for name in needed if importlib.util.find_spec(name) is None]


def compare(export: Export, folder: Path) -> Report | None:
    """Loads the export with transformers and runs both models; None if torch is not installed.

    Raises:
      InputError: they differ by more than `TOLERANCE`: the export is not to be used.
    """
    if missing(export.options.lora):
        return None
    with jax.default_matmul_precision("highest"):
        if isinstance(export, ModelExport):
            report = _compare(export, folder)
        elif isinstance(export, ClipExport):
            report = _compare_clip(export, folder)
        else:
            report = _compare_bare(export, folder)
    if not report.difference <= TOLERANCE or report.same_answer is False:
        raise InputError(
            f"{folder}: the exported model does not say the same in PyTorch: {report}; nothing was written"
        )
    return report


def _compare(export: ModelExport, folder: Path) -> Report:
    import torch
    import transformers

    versions = _versions()
    sample = _sample(export)
    own = export.rung.stock is None
    theirs = _load(folder, "AutoModelForImageTextToText", export.model.adapter.name if own else None)
    theirs.generation_config = transformers.GenerationConfig()  # greedy, whatever the checkpoint's own says
    if export.options.lora == "peft":
        from peft import PeftModel

        theirs = PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    batch = sample.batch
    model, params, rounding = Model(export.source_model), _trained_parameters(export), None
    ours = _logits(model, params, batch)
    if export.rounds:
        del params  # there may be no room for both
        trained, model, params = ours, Model(export.model), _parameters(export)
        ours = _logits(model, params, batch)
        rounding = _difference(ours, trained), export.dtype
    inputs = {name: torch.as_tensor(value) for name, value in sample.inputs.items()}
    with torch.no_grad():
        reference = theirs(**inputs).logits[0].numpy()[:, : ours.shape[1]]
        answer = theirs.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=None)
    tokens, _ = jax.jit(lambda params, batch: decoding.generate(model.bind(params), batch, ANSWER_TOKENS))(
        params, batch
    )
    same = bool((np.asarray(tokens)[0] == answer[0, -ANSWER_TOKENS:].numpy()).all())
    return Report(sample.what, _difference(ours, reference), same, versions, rounding)


def _versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}, jax {jax.__version__}"


def _logits(model: Model, params: Params, batch: Batch) -> np.ndarray:
    """[L, vocabulary] of the one row."""

    def logits(params: Params, batch: Batch):
        bound = model.bind(params)
        return bound.decoder.logits(bound(batch)[0])

    return np.asarray(jax.jit(logits)(params, batch))[0]


def _compare_bare(export: Export, folder: Path) -> Report:
    """A tower by the features of the layer in use, a decoder by its logits on text."""
    import torch

    params, versions = _parameters(export), _versions()
    if export.vision is not None:
        vision = export.vision
        tower = params_lib.build(
            lambda: VisionTower(vision, dtype=jnp.float32, rngs=nnx.Rngs(0)), params_lib.of_part(params, "encoder")
        )
        frames = _clip(2, vision.image_size)
        ours = np.asarray(tower(jnp.asarray(frames[None])).patches)[0]
        with torch.no_grad():
            out = _load(folder, "AutoModel")(torch.as_tensor(_pixels(frames, vision)), output_hidden_states=True)
        reference = out.hidden_states[vision.feature_layer].numpy()[:, -ours.shape[1] :]
        return Report("two images, features of the layer in use", _difference(ours, reference), None, versions)
    config = export.source.decoder
    assert config is not None
    decoder = params_lib.build(
        lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), params_lib.of_part(params, "decoder")
    )
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 4 * _TEXT)).astype(np.int32)
    positions = jnp.arange(ids.shape[1])[None]
    hidden, _ = decoder(decoder.embed(jnp.asarray(ids)), positions, jnp.ones_like(positions))
    ours = np.asarray(decoder.logits(hidden))[0]
    with torch.no_grad():
        reference = _load(folder, "AutoModelForCausalLM")(torch.as_tensor(ids.astype(np.int64))).logits[0].numpy()
    return Report("text, logits", _difference(ours, reference), None, versions)


def _compare_clip(export: ClipExport, folder: Path) -> Report:
    """Both of its towers, by the cosines of two images and two texts."""
    import torch

    vision, text = export.vision, export.clip.text
    state = {rule.path: jnp.asarray(export.parameter(f"{PLACE}/{rule.path}"), jnp.float32) for rule in export.rules()}
    model = params_lib.build(
        lambda: Clip(export.clip, vision.hidden_size, dtype=jnp.float32, rngs=nnx.Rngs(0)), params_lib.split(state, {})
    )
    frames = _clip(2, vision.image_size)
    ids = np.random.default_rng(0).integers(0, text.vocab_size, (2, text.max_position_embeddings))
    ids[:, -1] = text.eos_token_id
    tower = model.vision_model
    assert tower is not None
    features = tower(jnp.asarray(frames[None]), final=True)
    assert features.final is not None
    images = model.images(tower, features.final)
    ours = np.asarray(cosine(model.texts(jnp.asarray(ids, jnp.int32)), jnp.repeat(images, 2, axis=0)))
    with torch.no_grad():
        theirs = _load(folder, "AutoModel")(torch.as_tensor(ids), torch.as_tensor(_pixels(frames, vision)))
    reference = (theirs.text_embeds @ theirs.image_embeds.T).numpy()
    return Report("two images and two texts, cosines", _difference(ours, reference), None, _versions())


def _parameters(export: Export) -> Params:
    """What was exported, in fp32 after the rounding to the export's dtype, segmented."""
    kept = [path for path in export.source.shapes if export.options.lora == "peft" or not lora.is_lora(path)]
    return params_lib.split({path: jnp.asarray(export.parameter(path), jnp.float32) for path in kept}, {})


def _trained_parameters(export: ModelExport) -> Params:
    """Those of `ModelExport.source_model` in fp32, segmented."""
    source = export.source
    return params_lib.split({path: jnp.asarray(source.read(path), jnp.float32) for path in source.shapes}, {})


_TEXT = 8  # tokens of text before the visual ones, and after


def _difference(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30))


def _load(folder: Path, auto_class: str, adapter: str | None = None) -> Any:
    """The exported model in fp32. Of code that is no part of transformers only our own runs: `adapter` names it."""
    import torch
    import transformers

    loader = own_class(folder, adapter) if adapter is not None else getattr(transformers, auto_class)
    try:
        return loader.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).eval()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: transformers cannot load the exported model ({brief(error)})") from None


def own_class(folder: Path, adapter: str) -> Any:
    """Our own PyTorch class, of the code in an export.

    The code is this package's, with which the export's files are compared byte by byte; `auto_map` is not asked.

    Raises:
      InputError: a file in the export is another.
    """
    sources = own_names.source_files(adapter)
    for name, ours in sources.items():
        if (folder / name).read_bytes() != ours.read_bytes():
            raise InputError(f"{folder / name}: not the file that this version exports; export again")
    package = f"vlvm_jax_export_{adapter}"
    if f"{package}.modeling_vlvm" not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        for name in (name for name in own_names.IMPORT_ORDER if name in sources):
            full = f"{package}.{Path(name).stem}"
            spec = importlib.util.spec_from_file_location(full, sources[name])
            assert spec is not None and spec.loader is not None
            module = sys.modules[full] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    return sys.modules[f"{package}.modeling_vlvm"].VlvmForConditionalGeneration


@dataclasses.dataclass(frozen=True)
class Sample:
    what: str
    batch: Batch
    inputs: Mapping[str, np.ndarray]


def _sample(export: ModelExport) -> Sample:
    """A clip between two runs of text, as this model and as the exported class take it."""
    model, tokens, stock = export.model, export.tokens, export.rung.stock
    vision = model.vision
    adapter = Model(model).adapter
    longest = model.decoder.max_position_embeddings
    room = longest - 2 * _TEXT - ANSWER_TOKENS
    only_tiles = stock is not None and stock.only_tiles
    if only_tiles or (export.options.media == "image" and "image_grid_pinpoints" in export.config()):
        return _tiled_image(export, room)
    frames = next((n for n in range(_MAX_FRAMES, 0, -1) if adapter.num_video_tokens(n) <= room), None)
    if frames is None:
        raise InputError(
            f"SRC: a single frame takes {adapter.num_video_tokens(1)} tokens, which leaves no room for text in the "
            f"decoder's {longest} positions; nothing can be compared"
        )
    clip = _clip(frames, vision.image_size)
    pixels = _pixels(clip, vision)
    as_video = export.rung.has_video
    count = adapter.num_video_tokens(frames)
    ids = _token_ids(model, count, tokens.video if as_video else tokens.image)
    if as_video:
        inputs = {"pixel_values_videos": pixels[None]}
    else:
        inputs = {"pixel_values": pixels[None] if stock is not None and stock.batched_images else pixels}
    batch = _batch(clip, np.ones((1, frames), np.int32), True, ids, count)
    if adapter.needs_prompt:
        asked = _question(adapter.clip_config)
        batch = dataclasses.replace(batch, prompt_ids=jnp.asarray(asked, jnp.int32))
        inputs["prompt_ids"] = asked
    inputs = {"input_ids": ids.astype(np.int64), "attention_mask": np.ones_like(ids, np.int64), **inputs}
    return Sample(f"a clip of {frames} frames{'' if as_video else ' sent as images'}", batch, inputs)


def _tiled_image(export: ModelExport, room: int) -> Sample:
    """An image in tiles: LLaVA-NeXT's only input, and what an export for images alone is given."""
    model, tokens = export.model, export.tokens
    vision = model.vision
    config = export.config()
    pinpoints = config["image_grid_pinpoints"]
    assert export.rung.stock is not None  # our own class has no such images
    limits = {"taps": export.rung.stock.taps, "max_tiles": anyres.max_tiles(config.get("vision_aspect_ratio"))}
    sizes = [(tall - tall // 4, wide) for tall, wide in pinpoints]
    layouts = [anyres.tiled(size, pinpoints, vision.image_size, vision.grid, **limits) for size in sizes]
    fitting = [(layout, size) for layout, size in zip(layouts, sizes, strict=True) if len(layout) <= room]
    if not fitting:
        raise InputError(
            f"SRC: an image in tiles takes {min(map(len, layouts))} tokens or more, which leaves no room for text in "
            f"the decoder's {model.decoder.max_position_embeddings} positions; nothing can be compared"
        )
    layout, size = fitting[0]
    tiles = _clip(anyres.num_tiles(size, pinpoints, vision.image_size), vision.image_size)
    ids = _token_ids(model, len(layout), tokens.image)
    batch = _batch(tiles, np.ones((1, len(tiles)), np.int32), False, ids, len(layout), layout)
    inputs = {
        "input_ids": ids.astype(np.int64),
        "attention_mask": np.ones_like(ids, np.int64),
        "pixel_values": _pixels(tiles, vision)[None],
        "image_sizes": np.asarray([size], np.int64),
    }
    return Sample(f"an image of {len(tiles)} tiles", batch, inputs)


def _question(clip: ClipConfig | None) -> np.ndarray:
    """Token ids [1, P] of a question, for the CLIP that an adapter holds."""
    assert clip is not None
    text = clip.text
    ids = np.random.default_rng(1).integers(0, text.vocab_size - 1, (1, text.max_position_embeddings))
    ids[ids == text.eos_token_id] = text.vocab_size - 2
    ids[:, -1] = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    return ids.astype(np.int64)


def _token_ids(model: ModelConfig, count: int, placeholder: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    before, after = rng.integers(3, min(model.decoder.vocab_size, 30000) - 1, (2, _TEXT))
    for text in (before, after):
        text[text == placeholder] = 1
    return np.concatenate([before, np.full(count, placeholder), after])[None].astype(np.int32)


def _batch(frames, media, is_video: bool, ids, count: int, layout: anyres.Layout | None = None) -> Batch:
    length = ids.shape[1]
    marked = np.zeros((1, length), bool)
    marked[:, _TEXT : _TEXT + count] = True
    fields = {
        "frames": frames[None],
        "media": media,
        "is_video": np.full(media.shape, is_video),
        "token_ids": np.where(marked, 0, ids),
        "media_mask": marked,
        "positions": np.arange(length, dtype=np.int32)[None],
        "segment_ids": np.ones((1, length), np.int32),
        "loss_mask": np.zeros((1, length), bool),
    }
    if layout is not None:
        index = np.zeros((1, length, layout.index.shape[1]), np.int32)
        weight = np.zeros((1, length, layout.index.shape[1]), np.float32)
        index[:, _TEXT : _TEXT + count], weight[:, _TEXT : _TEXT + count] = layout.index, layout.weight
        fields |= {"visual_index": index, "visual_weight": weight}
    return Batch(**{name: jnp.asarray(value) for name, value in fields.items()})


def _clip(frames: int, size: int) -> np.ndarray:
    """A bright square that moves over a gradient with some noise, uint8 [T, size, size, 3]."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    clip = np.stack([rows, columns, 1 - rows], -1)[None] * 160 + rng.integers(0, 60, (frames, size, size, 3))
    for number in range(frames):
        start = number * size // (2 * frames)
        clip[number, start : start + size // 4, start : start + size // 4] = 255
    return clip.astype(np.uint8)


def _pixels(frames: np.ndarray, vision) -> np.ndarray:
    """Normalised as the tower does it, [T, 3, S, S] fp32."""
    mean, std = np.asarray(vision.image_mean, np.float32), np.asarray(vision.image_std, np.float32)
    return ((frames.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
