"""Checkpoints as the LLaVA repositories save them, used: data, answers, training, evaluation and exports."""

import importlib
import itertools
import json
import math
import shutil

import av
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from flax import nnx
from PIL import Image
from support import families, originals
from support import tiny_checkpoints as tiny

from configs import own
from vlvm_jax import samples
from vlvm_jax.config import AdapterConfig, Config, ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig, build
from vlvm_jax.data.sample.processor import load_processor
from vlvm_jax.data.sources import mixture
from vlvm_jax.data.tools import check
from vlvm_jax.errors import InputError
from vlvm_jax.evaluation import final
from vlvm_jax.families import _llava_layout as llava_layout
from vlvm_jax.families import image_rule, read_settings
from vlvm_jax.inference.answering import Decoding, Request
from vlvm_jax.inference.loading import load
from vlvm_jax.models.adapters import build_adapter
from vlvm_jax.models.adapters.base import FrameLayout
from vlvm_jax.models.vision import VisionFeatures
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options
from vlvm_jax.weights.importing import import_checkpoint
from vlvm_jax.weights.initial import Initial
from vlvm_jax.weights.sources import open_source

SIDE = 4  # patches along a side of the towers here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    originals.write(root / "plain", "plain")
    originals.write(root / "tiled", "tiled", with_tower=False)
    originals.write(
        root / "video", "onevision", mm_spatial_pool_mode="average", mm_newline_position="grid",
        mm_spatial_pool_stride=None, add_faster_video=False, mm_tunable_parts="mm_vision_tower,mm_language_model",
    )  # fmt: skip
    tiny.clip(root / "clip.mp4")
    tiny.picture(root / "picture.png", 60, 90)
    return root


def copied(folder, name, target, **keys):
    shutil.copytree(folder / name, target)
    families.edit_config(target, lambda config: config.update(keys))
    return target


def ask(source, folder, kind="video"):
    file = folder / ("clip.mp4" if kind == "video" else "picture.png")
    (answer,) = load(str(source), frames=3).answer(
        [Request("1", ((kind, str(file)),), "what is it ?")], Decoding(max_new_tokens=6)
    )
    return answer


@pytest.mark.parametrize(("name", "tokens"), [("plain", 3 * 16), ("tiled", 3 * 16), ("video", 3 * 2 * 3)])
def test_answers_from_the_directory_an_import_and_an_export(folder, tmp_path, name, tokens):
    """The import can be read where the tower's directory is no more."""
    import_checkpoint(str(folder / name), epath.Path(tmp_path / "imported"))
    write.export_checkpoint(str(folder / name), tmp_path / "exported", Options(verify=False))
    tower = folder / f"{name}-tower"
    answers = [ask(folder / name, folder)]
    tower.rename(tower.with_name("gone"))
    try:
        answers += [ask(tmp_path / "imported", folder)]
    finally:
        tower.with_name("gone").rename(tower)
    if name != "video":  # whose export has a class of its own
        answers += [ask(tmp_path / "exported", folder)]
    assert {answer.visual_tokens for answer in answers} == {tokens}
    assert len({answer.text for answer in answers}) == 1 and answers[0].new_tokens == 6


@pytest.mark.parametrize(
    ("name", "kind", "module"),
    [("plain", "Llava", "llava"), ("tiled", "LlavaNext", "llava_next"), ("video", "LlavaOnevision", "llava_onevision")],
)
def test_images_are_padded_and_tiled_as_the_config_says(folder, name, kind, module):
    settings = read_settings(str(folder / name))
    assert settings.image["image_processor_type"] == f"{kind}ImageProcessor"
    rule, picture = image_rule(settings), Image.open(folder / "picture.png")
    found = rule.tiles([picture])[0]
    code = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    cls = getattr(code, f"{kind}ImageProcessorPil")
    theirs = cls(**{key: value for key, value in settings.image.items() if not key.endswith("_type")})
    expected = np.asarray(theirs(images=[picture], return_tensors="np")["pixel_values"]).reshape(-1, 3, 32, 32)
    mean, std = (np.asarray(values)[:, None, None] for values in rule.statistics)
    np.testing.assert_allclose((found.transpose(0, 3, 1, 2) / 255 - mean) / std, expected, atol=1e-5)
    assert len(found) == (1 if name == "plain" else 5)  # 90 x 60 pixels fill 2 x 2 tiles
    if name == "plain":  # 90 x 60 pixels: a sixth above and below is the mean colour
        edge = [int(255 * value) for value in settings.image["image_mean"]]
        assert (found[0][0] == edge).all() and (found[0][-1] == edge).all() and (found[0][16] != edge).any()


def test_frames_of_clips_go_by_the_towers_own_processor(folder, tmp_path):
    """Where the config says something of clips: the shorter edge is scaled, the middle is kept, nothing is padded."""
    clips = copied(folder, "plain", tmp_path / "clips", mm_spatial_pool_mode="max")
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, 16:48] = np.random.default_rng(0).integers(0, 255, (32, 32, 3))
    (found,) = image_rule(read_settings(str(clips))).frames([frame])
    np.testing.assert_array_equal(found, frame[:, 16:48])
    (padded,) = image_rule(read_settings(str(folder / "plain"))).frames([frame])
    assert (padded[0] == padded[0, 0]).all()


MODES, POSITIONS = ("average", "max", "bilinear", None), ("one_token", "no_token", "frame", "grid", None)


def of_clips(frames, newline, mode, stride, position, merge):
    """[T, C, s, s] features after the projector to a clip's tokens, as `get_2dPool`, `add_token_per_grid`,
    `add_token_per_frame` and `prepare_inputs_labels_for_multimodal` of LLaVA-NeXT have it."""
    if stride > 1:
        side = math.ceil(frames.shape[-1] / stride)
        frames = {
            "average": lambda x: torch.nn.functional.avg_pool2d(x, stride),
            "max": lambda x: torch.nn.functional.max_pool2d(x, stride),
            "bilinear": lambda x: torch.nn.functional.interpolate(
                x, size=[side, side], mode="bilinear", align_corners=False
            ),
        }[mode](frames)
    if merge == "flat":
        return frames.flatten(2).transpose(1, 2).flatten(0, 1)
    if position == "grid":
        column = newline[None, :, None, None].expand(*frames.shape[:3], 1)
        return torch.cat([frames, column], -1).flatten(2).transpose(1, 2).flatten(0, 1)
    tokens = frames.flatten(2).transpose(1, 2)
    if position == "frame":
        return torch.cat([tokens, newline[None, None].expand(len(tokens), 1, -1)], 1).flatten(0, 1)
    return torch.cat([tokens.flatten(0, 1), newline[None]]) if position == "one_token" else tokens.flatten(0, 1)


@pytest.mark.parametrize("side", [4, 5])
def test_clips_are_pooled_and_broken_into_lines_as_in_llava_next(side):
    width, frames = 6, 3
    features = np.random.default_rng(0).normal(size=(frames, side**2, width)).astype(np.float32)
    grid = torch.from_numpy(features).transpose(1, 2).reshape(frames, width, side, side)
    for mode, stride, position, merge in itertools.product(MODES, (1, 2, None), POSITIONS, ("flat", "spatial_unpad")):
        raw = {"mm_spatial_pool_mode": mode, "mm_spatial_pool_stride": stride, "mm_newline_position": position}
        raw |= {"mm_patch_merge_type": merge, "image_aspect_ratio": "anyres" if merge != "flat" else "pad"}
        options = llava_layout.clip_options(raw)
        if mode is stride is position is None:
            assert options is None  # as the class of transformers
            continue
        assert options is not None
        if stride == 1 and position == "grid" and merge != "flat":
            with pytest.raises(InputError, match=r"newline_place: 'row' gives a frame .* pool frames"):
                adapter_of(options, side, width)
            continue
        adapter = adapter_of(options, side, width)
        tokens = adapter(VisionFeatures(jnp.asarray(features[None])), clip_layout(frames))
        found = np.asarray(tokens.tokens)[np.asarray(tokens.valid)]
        newline = np.zeros(width) if adapter.image_newline is None else np.array(adapter.image_newline[...])
        expected = of_clips(
            grid, torch.from_numpy(newline).float(), mode or "bilinear", stride or 2, position or "one_token", merge
        )
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, err_msg=str(raw))
        per_frame, end = llava_layout.clip_tokens(options, side)
        assert adapter.num_video_tokens(frames) == frames * per_frame + end == len(found)


def adapter_of(options, side, width):
    """The adapter with a connector that changes nothing."""
    sizes = {"hidden_size": width, "intermediate_size": 4, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = ModelConfig(
        vision=VisionConfig(**sizes, image_size=side, patch_size=1),
        adapter=AdapterConfig(name="frames", connector=ConnectorConfig(kind="linear", bias=False), options=options),
        decoder=DecoderConfig(**sizes, vocab_size=8, num_key_value_heads=1, head_dim=width),
        dtype="float32",
    )
    adapter = build_adapter(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    adapter.connector.linear_1.kernel[...] = jnp.eye(width)
    return adapter


def clip_layout(frames):
    media = jnp.ones((1, frames), jnp.int32)
    return FrameLayout(media, media > 0)


@pytest.mark.parametrize(("mode", "tokens"), [("average", 13 * 14), ("bilinear", 14 * 15), (None, 14 * 15)])
def test_llava_videos_tokens_of_a_frame(mode, tokens):
    """SigLIP's 27 x 27 patches, pooled by two, with a newline after every row."""
    raw = {"mm_spatial_pool_mode": mode, "mm_newline_position": "grid", "mm_patch_merge_type": "spatial_unpad"}
    options = llava_layout.clip_options(raw)
    assert options is not None and llava_layout.clip_tokens(options, 27) == (tokens, 0)


def test_llava_video_takes_its_frames_and_says_their_times(folder, tmp_path):
    """As its script does: from the first frame to the last, then a sentence in the words it was trained with."""
    source = copied(folder, "video", tmp_path / "timed", force_sample=True, add_time_instruction=True)
    asked = load(str(source), frames=3)
    (medium,) = asked.prompts.media(Request("1", (("video", str(folder / "clip.mp4")),), "what is it ?"))
    with av.open(str(folder / "clip.mp4")) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    wanted = [times[number] for number in np.linspace(0, len(times) - 1, 3, dtype=int)]
    assert medium.times == pytest.approx(wanted)
    stamps = ",".join(f"{time:.2f}s" for time in wanted)
    assert medium.expansion.note.startswith("The video lasts for ")
    assert medium.expansion.note.endswith(
        f" seconds, and 3 frames are uniformly sampled from it. These frames are located at {stamps}."
        "Please answer the following questions related to this video."
    )
    with pytest.raises(InputError, match="says its clips' times in words of its own"):
        load_processor(str(source), time_instruction=True)


def test_a_grid_of_newlines_has_a_class_of_its_own(folder, tmp_path):
    """The same in PyTorch, with a clip and with an image."""
    for media, family in (("all", "vlvm"), ("image", "llava_onevision")):
        result = write.export_checkpoint(str(folder / "video"), tmp_path / media, Options(media=media))
        assert result.rung.family == family and result.verified is not None and result.verified.same_answer


# --- keys


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("plain", {"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu': only 'linear', 'mlp2x_gelu'"),
        ("plain", {"mm_projector_type": "pooler"}, "mm_projector_type 'pooler': only"),
        ("plain", {"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch': only 'patch'"),
        ("plain", {"mm_resampler_type": "spatial_pool"}, "mm_resampler_type 'spatial_pool': only null"),
        ("plain", {"mm_future_trick": 3}, "mm_future_trick 3: a key that this library does not know"),
        ("plain", {"s2": True}, "s2 True: only False"),
        ("plain", {"mm_hidden_size": 17}, "mm_hidden_size 17, but features of the tower have 16 values"),
        ("plain", {"mm_vision_tower": None}, "mm_vision_tower is missing"),
        ("plain", {"mm_vision_tower": "gone/tower"}, "mm_vision_tower 'gone/tower' is neither a directory"),
        ("plain", {"image_aspect_ratio": "crop_split"}, "image_aspect_ratio 'crop_split': only 'square', 'pad'"),
        ("plain", {"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat' with image_aspect_ratio 'anyres'"),
        ("plain", {"vision_config": {}}, "holds mm_vision_tower of the original LLaVA layout and vision_config"),
        ("tiled", {"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type 'spatial' with image_aspect_ratio 'anyres'"),
        ("tiled", {"image_grid_pinpoints": None}, "image_grid_pinpoints are missing"),
        ("tiled", {"unfreeze_mm_vision_tower": True}, "unfreeze_mm_vision_tower True says that the tower was trained"),
        ("tiled", {"mm_tunable_parts": "mm_vision_tower"}, "mm_tunable_parts 'mm_vision_tower' says that the tower"),
        ("video", {"add_faster_video": True}, "add_faster_video True: only False"),
        ("video", {"mm_newline_position": "column"}, "mm_newline_position 'column': only 'one_token', 'no_token'"),
        ("video", {"mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode 'conv': only 'average', 'max', 'bilinear'"),
        ("video", {"mm_spatial_pool_stride": 0}, "mm_spatial_pool_stride 0: expected a whole number"),
    ],
)
def test_what_is_not_computed_is_refused_by_key_and_value(folder, tmp_path, name, keys, said):
    source = copied(folder, name, tmp_path / "source", **keys)
    with pytest.raises(InputError) as error:
        open_source(str(source), "SRC")
    assert "config.json: " in str(error.value) and said in str(error.value)
    if not set(keys) & {"mm_hidden_size", "unfreeze_mm_vision_tower", "mm_tunable_parts"}:  # these ask for tensors
        with pytest.raises(InputError) as error:
            read_settings(str(source))
        assert said in str(error.value)


@pytest.mark.parametrize(
    "canvases",
    ["axb", "x", "", "1x1", "(1x1),...", "(0x1),(2x2)", "(2x2),(1x1)", "(1x1),...,(99999x99999)", "[336", "336, 672",
     "[[336, 672], [672]]", [], [[]], [336, 672], [[336, 672, 3]], [[336, -672]], [[0, 336]], [["336", "672"]],
     [[336.5, 672]], [[True, True]], {"a": 1}, 7, [[20, 20]] * 2000],
)  # fmt: skip
def test_canvases_of_other_forms_are_refused_by_the_key(canvases):
    raw = {"mm_vision_tower": "openai/clip-vit-large-patch14", "mm_patch_merge_type": "spatial_unpad"}
    with pytest.raises(InputError, match=r"^config\.json: image_grid_pinpoints .*") as caught:
        llava_layout.check({**raw, "image_aspect_ratio": "anyres", "image_grid_pinpoints": canvases}, "config.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450


@pytest.mark.parametrize(
    "canvases",
    [[[20, 40], [40, 20]], [(20, 40), (40, 20)], "[[20, 40], [40, 20]]", "[(20, 40), (40, 20)]", "(20,40), (40,20)"],
)
def test_canvases_as_a_list_or_as_text(canvases):
    raw = {"mm_vision_tower": "openai/clip-vit-large-patch14", "mm_patch_merge_type": "spatial_unpad"}
    raw |= {"image_aspect_ratio": "anyres", "image_grid_pinpoints": canvases}
    llava_layout.check(raw, "config.json")
    assert llava_layout.tiling(raw, 20) == {"image_grid_pinpoints": [[40, 20], [20, 40]]}


def test_every_key_that_their_code_writes_is_in_the_table():
    """`model.config.* =` of llava/train/train.py and the builders; others are refused if they begin with mm_."""
    idle = {"mm_use_im_patch_token", "mm_projector_lr", "mm_vision_tower_lr", "mm_perceiver_depth", "mm_qformer_depth"}
    for key in idle:
        assert llava_layout.KEYS[key] == llava_layout.NO_EFFECT
    raw = {"mm_vision_tower": "openai/clip-vit-large-patch14", "tune_mm_mlp_adapter": True, "mm_future": None}
    llava_layout.check(raw | {"mm_projector_lr": 2e-5, "mm_perceiver_depth": 3, "add_faster_video": None}, "here")


def test_start_and_end_tokens_go_around_media(folder, tmp_path):
    marked = copied(folder, "plain", tmp_path / "marked", mm_use_im_start_end=True)
    processor = load_processor(str(marked))
    with pytest.raises(InputError, match="mm_use_im_start_end puts <im_start> around images, which is no token"):
        _ = processor.template
    tokenizer = transformers.AutoTokenizer.from_pretrained(marked)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    tokenizer.save_pretrained(marked)
    frames = [np.zeros((32, 32, 3), np.uint8)] * 2
    message = [{"role": "user", "content": "<video>\nwhat is it ?"}]
    sample = load_processor(str(marked)).sample(message, videos=[frames])
    ids, mask = np.asarray(sample["token_ids"]), np.asarray(sample["media_mask"])
    (places,) = np.nonzero(mask)
    assert len(places) == 2 * SIDE**2
    around = tokenizer.convert_ids_to_tokens([ids[places[0] - 1], ids[places[-1] + 1]])
    assert around == ["<im_start>", "<im_end>"]


def test_a_siglip_is_read_at_the_layer_that_their_class_reads(folder, tmp_path):
    source = copied(folder, "video", tmp_path / "last", mm_vision_select_layer=-1)
    assert open_source(str(source), "SRC").vision == open_source(str(folder / "video"), "SRC").vision


# --- data, training, evaluation


def test_it_trains_and_answers_from_the_run(folder, tmp_path):
    """`data check`, training, answers of the run: with newlines in rows, and after the directory is gone."""
    source = copied(folder, "video", tmp_path / "base")
    shutil.copy(folder / "clip.mp4", tmp_path / "clip.mp4")
    shutil.copy(folder / "picture.png", tmp_path / "picture.png")
    notes = [{"video": "clip.mp4", "question": "what is it ?", "answer": "a cat"}] * 6
    notes += [{"image": "picture.png", "question": "what is it ?", "answer": "a dog"}] * 2
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    recipe = own.get_config(f"llava-1.5-7b,base={source},frames=2,length=512,data={tmp_path}/notes.jsonl")
    recipe.update(tensorboard=False)
    recipe.data.workers = 0
    recipe.model.update(
        dtype="float32",
        adapter={**recipe.model.adapter.to_dict(), "options": dict(open_source(str(source), "").adapter.options)},
    )
    config = build(Config, recipe)
    ready = samples.with_checkpoint_files(config, Initial(config.model))
    found = mixture.read_mixture(ready.stages[0].data, 0)
    findings = check.examine(
        check.Checker(found, samples.sample_spec(ready, ready.stages[0])), range(8), 0, lambda _: None
    )
    assert check.summarise(findings, len(found), None)["usable"] == 8
    stages.run(config, epath.Path(tmp_path / "run"), StopSignal(), final.evaluate)
    source.rename(tmp_path / "gone")
    (folder / "video-tower").rename(folder / "away")
    try:
        answer = ask(tmp_path / "run", folder)
    finally:
        (folder / "away").rename(folder / "video-tower")
    assert answer.visual_tokens == 3 * 2 * 3


def test_a_tower_is_read_from_the_hubs_cache(folder, tmp_path, monkeypatch):
    """Its id stands in the config; sizes, processor and weights come from the cache, as `hf download` leaves it."""
    cached = tmp_path / "models--tiny--tower"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder / "tiled-tower", cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = copied(folder, "tiled", tmp_path / "source", mm_vision_tower="tiny/tower")
    mine, theirs = open_source(str(source), "SRC"), open_source(str(folder / "tiled"), "SRC")
    assert mine.shapes == theirs.shapes and mine.vision == theirs.vision
    path = "encoder/patch_embedding/kernel"
    np.testing.assert_array_equal(mine.read(path), theirs.read(path))
    assert read_settings(str(source)).image == read_settings(str(folder / "tiled")).image


def test_a_tower_beside_the_checkpoint_and_its_own_processor(folder, tmp_path):
    """A relative path, and a `preprocessor_config.json` in the tower's directory, which says other statistics."""
    shutil.copytree(folder / "tiled-tower", tmp_path / "source" / "tower")
    own_settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 32}}
    own_settings |= {"crop_size": 32, "image_processor_type": "CLIPImageProcessor"}
    (tmp_path / "source" / "tower" / "preprocessor_config.json").write_text(json.dumps(own_settings))
    shutil.copytree(folder / "tiled", tmp_path / "source", dirs_exist_ok=True)
    families.edit_config(tmp_path / "source", lambda config: config.update(mm_vision_tower="tower"))
    source = open_source(str(tmp_path / "source"), "SRC")
    assert source.vision is not None and source.vision.image_mean == (0.1, 0.2, 0.3)
    assert load_processor(str(tmp_path / "source")).image_std == (0.4, 0.5, 0.6)
    assert source.read("encoder/patch_embedding/kernel").any()


# --- tokenizers


def test_a_tokenizer_without_tokenizer_json_goes_out_with_its_media_tokens(folder, tmp_path):
    """The older form of byte-level ones, `vocab.json` and `merges.txt`."""
    source = copied(folder, "plain", tmp_path / "source")
    learned = json.loads((source / "tokenizer.json").read_text())["model"]
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text(json.dumps(learned["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "chat_template": originals.TEMPLATE}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    write.export_checkpoint(str(source), tmp_path / "out", Options(verify=False))
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("what is <image> it ?", add_special_tokens=False)["input_ids"]
    assert ids.count(config.image_token_id) == 1 and max(ids) < config.text_config.vocab_size


def test_what_a_sentencepiece_model_needs_is_said(folder, tmp_path):
    source = copied(folder, "plain", tmp_path / "source")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(b"no model")
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"holds tokenizer.model alone, .* the packages sentencepiece and protobuf"):
        _ = load_processor(str(source)).tokenizer
