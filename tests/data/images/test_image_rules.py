"""Pixels: what reaches the device is exactly what transformers' PIL processors give, before scale and statistics."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.hf_checkpoints import FAMILIES, checkpoint, image_processor, pil

import vlvm_jax
from vlvm_jax.data.images.image_rules import PixelProcessor
from vlvm_jax.data.pages.draw import PageOptions, render_pages
from vlvm_jax.data.sample.processor import load_processor
from vlvm_jax.errors import InputError
from vlvm_jax.families import image_rule, read_settings

SIZES = [(32, 32), (50, 70), (70, 50), (20, 130), (131, 23), (33, 32), (200, 210)]  # height, width
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"]


def picture(size, mode="RGB"):
    """Blurred noise, with transparency where the mode has it."""
    height, width = size
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 4), dtype=np.uint8)
    image = Image.fromarray(small, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    if mode == "P":
        image = image.convert("RGB").convert("P")
        image.info["transparency"] = 3
        return image
    return image.convert(mode)


def normalised(frames, mean, std):
    """What the tower does on the device."""
    return (frames.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    made = {}
    for family in FAMILIES:
        folder = checkpoint(tmp_path_factory.mktemp(family), family)
        made[family] = {layout: load_processor(str(folder), image_layout=layout) for layout in ("single", "anyres")}
    return made


# --- single processors -------------------------------------------------------------------------------------------

SINGLE = {
    "CLIP": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "CLIP whole numbers": {"size": 40, "crop_size": 32},
    "CLIP squashed": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "CLIP bilinear": {"size": {"shortest_edge": 32}, "crop_size": 32, "resample": 2},
    "Siglip": {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    "Llava": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "Llava padded": {"size": {"height": 32, "width": 32}, "do_center_crop": False, "do_pad": True},
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("mode", MODES)
def test_one_square_per_image(name, mode):
    kind, settings = name.split()[0], SINGLE[name]
    ours, theirs = PixelProcessor(f"{kind}ImageProcessor", settings, 32, "file"), pil(kind)(**settings)
    images = [picture(size, mode) for size in SIZES]
    frames = ours(images)
    assert frames.shape == (len(SIZES), 32, 32, 3) and frames.dtype == np.uint8
    expected = np.stack(theirs(images)["pixel_values"]).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(normalised(frames, theirs.image_mean, theirs.image_std), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"])
def test_names_of_other_releases(kind):
    settings = SINGLE["CLIP"]
    np.testing.assert_array_equal(
        PixelProcessor(kind, settings, 32, "")([picture((50, 70))]),
        PixelProcessor("CLIPImageProcessor", settings, 32, "")([picture((50, 70))]),
    )


def test_arrays_are_pictures():
    ours = PixelProcessor("CLIPImageProcessor", SINGLE["CLIP"], 32, "")
    image = picture((3, 70))  # three rows: an array that could pass for channels first
    np.testing.assert_array_equal(ours([np.asarray(image)]), ours([image]))


# --- whole families ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_images_are_those_of_transformers(processors, family, mode):
    ours, theirs = processors[family]["anyres"], image_processor(family, 32)
    for size in SIZES:
        image = picture(size, mode)
        (medium,) = ours.images([image])
        found = theirs(image)["pixel_values"]
        expected = np.asarray(found).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert medium.kind == "image" and medium.frames.dtype == np.uint8
        assert len(medium.frames) == len(expected)
        np.testing.assert_allclose(
            normalised(medium.frames, ours.image_mean, ours.image_std), expected, atol=1e-6, err_msg=str(size)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_several_images_of_one_sample(processors, family):
    """OneVision pads them to squares and cuts none; the others treat each as if it were alone."""
    ours, theirs = processors[family]["anyres"], image_processor(family, 32, do_pad=False)
    images = [picture(size) for size in SIZES]
    media = ours.images(images)
    found = [np.asarray(part).reshape(-1, 3, 32, 32) for part in theirs([images])["pixel_values"]]
    expected = np.concatenate(found).transpose(0, 2, 3, 1)
    frames = np.concatenate([medium.frames for medium in media])
    np.testing.assert_allclose(normalised(frames, ours.image_mean, ours.image_std), expected, atol=1e-6)
    if family == "llava_onevision":
        assert [len(medium.frames) for medium in media] == [1] * len(SIZES)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_that_is_not_to_be_cut_is_the_whole_one_among_its_tiles(processors, family):
    place = -1 if family in ("idefics3", "smolvlm", "internvl") else 0
    for size in SIZES:
        (single,) = processors[family]["single"].images([picture(size)])
        (cut,) = processors[family]["anyres"].images([picture(size)])
        assert single.frames.shape == (1, 32, 32, 3) and single.layout is None
        if family not in ("idefics3", "smolvlm"):
            np.testing.assert_array_equal(single.frames[0], cut.frames[place])
        else:  # there the whole image of a cut one is squashed from the enlarged one
            error = np.abs(single.frames[0].astype(int) - cut.frames[place]).mean()
            assert error < 3


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_without_splitting_as_transformers_has_it(processors, family):
    theirs = image_processor(family, 32, do_image_splitting=False)
    for size in SIZES:
        (single,) = processors[family]["single"].images([picture(size)])
        expected = np.asarray(theirs(picture(size))["pixel_values"])[0, 0].transpose(1, 2, 0)
        ours = processors[family]["single"]
        np.testing.assert_allclose(normalised(single.frames[0], ours.image_mean, ours.image_std), expected, atol=1e-6)


def test_a_page_of_text_is_shown_to_idefics3_as_transformers_shows_it():
    """T2Vid's settings: 448 pixels become 364, one square of 26 x 26 patches, 169 tokens."""
    pages = render_pages("the quick brown fox jumps over the lazy dog . " * 30, PageOptions()).pages
    square = {"longest_edge": 364}
    settings = {"size": square, "max_image_size": square, "do_image_splitting": False}
    frames = PixelProcessor("Idefics3ImageProcessor", {**settings, "do_pad": False}, 364, "file")(list(pages))
    theirs = pil("Idefics3")(**settings)
    expected = np.asarray(theirs([Image.fromarray(page) for page in pages])["pixel_values"])[0]
    assert frames.shape == (len(pages), 364, 364, 3) and len(pages) > 1 and frames.min() < 64
    np.testing.assert_allclose(
        normalised(frames, theirs.image_mean, theirs.image_std), expected.transpose(0, 2, 3, 1), atol=1e-6
    )


def test_a_checkpoint_that_does_not_split(tmp_path):
    ours = load_processor(str(checkpoint(tmp_path, "smolvlm", do_image_splitting=False)), image_layout="anyres")
    assert [len(medium.frames) for medium in ours.images([picture(size) for size in SIZES])] == [1] * len(SIZES)


# --- frames of clips ---------------------------------------------------------------------------------------------


def squashed(image):
    return np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))


def centred(image):
    short = min(image.size)
    width, height = (int(32 * edge / short) for edge in image.size)
    left, top = (width - 32) // 2, (height - 32) // 2
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return scaled[top : top + 32, left : left + 32]


def twice(image):
    """SmolVLM's: the longer edge to the video size, the other one even, then a square."""
    width, height = image.size
    short = int(64 * min(image.size) / max(image.size))
    short += short % 2
    scaled = (64, short) if width >= height else (short, 64)
    return np.asarray(image.resize(scaled, Image.Resampling.LANCZOS).resize((32, 32), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        ("llava", centred),
        ("llava_next", squashed),
        ("llava_next_video", centred),
        ("llava_onevision", squashed),
        ("smolvlm", twice),
    ],
)
def test_frames_go_the_way_of_the_video_processor(processors, family, rule):
    images = [picture(size) for size in SIZES]
    frames = processors[family]["single"].frames([np.asarray(image) for image in images])
    assert frames.shape == (len(SIZES), 32, 32, 3) and frames.dtype == np.uint8
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame, rule(image), err_msg=str(image.size))


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_where_there_is_no_video_processor_frames_are_images(processors, family):
    images = [picture(size) for size in SIZES]
    ours = processors[family]["single"]
    whole = np.concatenate([medium.frames for medium in ours.images(images)])
    np.testing.assert_array_equal(ours.frames(images), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_older_files_say_the_same(processors, family, tmp_path):
    older = load_processor(str(checkpoint(tmp_path, family, legacy=True)), image_layout="anyres")
    images = [picture(size) for size in SIZES]
    ours = processors[family]["anyres"]
    np.testing.assert_array_equal(older.frames(images), ours.frames(images))
    for one, other in zip(older.images(images), ours.images(images), strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
    assert (older.image_mean, older.image_std, older.image_size) == (ours.image_mean, ours.image_std, 32)


def test_without_a_video_file_the_images_settings_are_the_videos(tmp_path):
    folder = checkpoint(tmp_path, "llava_next_video", legacy=True)
    (folder / "video_preprocessor_config.json").unlink()
    frames = load_processor(str(folder)).frames([picture((50, 70))])
    np.testing.assert_array_equal(frames[0], centred(picture((50, 70))))


# --- settings that cannot be used --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava", {"do_resize": False}, "do_resize is false"),
        ("llava", {"do_rescale": False}, "do_rescale is false"),
        ("llava", {"rescale_factor": 1 / 127.5}, "rescale_factor is 0.00784"),
        ("llava", {"do_center_crop": False}, r"give images of uint8 32x42; the tower takes uint8 32x32"),
        (
            "llava",
            {"crop_size": {"height": 30, "width": 30}},
            r"give images of uint8 30x30; the tower takes uint8 32x32",
        ),
        ("llava_next", {"image_grid_pinpoints": [[64, 64]]}, "image_grid_pinpoints are not those of config.json"),
        ("smolvlm", {"max_image_size": {"longest_edge": 16}}, "uint8 16x16; the tower takes uint8 32x32"),
        ("smolvlm", {"size": {"height": 32, "width": 32}}, "size has no longest_edge"),
    ],
)
def test_settings_that_do_not_end_in_squares_of_the_tower(tmp_path, family, changes, message):
    folder = checkpoint(tmp_path, family)
    parts = json.loads((folder / "processor_config.json").read_text())
    parts["image_processor"].update(changes)
    (folder / "processor_config.json").write_text(json.dumps(parts))
    with pytest.raises(InputError, match=message) as caught:
        load_processor(str(folder), image_layout="anyres")
    assert str(caught.value).startswith(f"{folder}/processor_config.json: ") and "\n" not in str(caught.value)


def test_the_video_processors_file_is_named(tmp_path):
    folder = checkpoint(tmp_path, "llava_onevision")
    parts = json.loads((folder / "processor_config.json").read_text())
    parts["video_processor"]["size"] = {"height": 16, "width": 16}
    (folder / "processor_config.json").write_text(json.dumps(parts))
    with pytest.raises(InputError, match=r": video processor: these settings give images of uint8 16x16"):
        load_processor(str(folder))


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_without_normalisation_the_statistics_change_nothing(tmp_path, family):
    rule = image_rule(read_settings(str(checkpoint(tmp_path, family, do_normalize=False))))
    assert rule.statistics == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_files_that_are_missing_or_broken(tmp_path):
    cases = {
        "config.json": "holds no config.json; give the directory of a checkpoint",
        "preprocessor_config.json": "no preprocessor_config.json; images cannot be prepared",
    }
    for number, (name, message) in enumerate(cases.items()):
        folder = checkpoint(tmp_path / str(number), "llava", legacy=True)
        (folder / name).rename(folder / "elsewhere")
        with pytest.raises(InputError, match=message):
            load_processor(str(folder))
        (folder / name).write_text("{")
        with pytest.raises(InputError, match=f"{name}: (not JSON|transformers cannot read it)"):
            load_processor(str(folder))


def test_families_and_classes_that_are_not_supported(tmp_path):
    folder = checkpoint(tmp_path, "llava", legacy=True)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps(settings | {"image_processor_type": "ViTImageProcessor"})
    )
    with pytest.raises(InputError, match=r"image_processor_type 'ViTImageProcessor' is not supported; there are CLIP"):
        load_processor(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vision_config": {}}))
    with pytest.raises(
        InputError,
        match=r"config\.json: no image preprocessing for model_type 'qwen2'; there is for clip, clip_vision_model, "
        "idefics3, internvl, llava, llava_next, llava_next_video, llava_onevision, siglip, siglip_vision_model, "
        "smolvlm, vlvm$",
    ):
        load_processor(str(folder))


def test_without_transformers(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path, "llava")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"config\.data\.processor needs the package transformers, from 5\.23 on"):
        load_processor(str(folder))


# --- without torch -----------------------------------------------------------------------------------------------


def test_everything_works_where_torch_is_not_installed(tmp_path):
    """In a process whose packages are all that are installed here, less torch."""
    packages = Path(np.__file__).parents[1]
    site = tmp_path / "site"
    site.mkdir()
    for entry in packages.iterdir():
        if not entry.name.lower().startswith(("torch", "functorch")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    folders = {family: checkpoint(tmp_path / family, family) for family in FAMILIES}
    script = textwrap.dedent(
        """
        import sys
        sys.path[:0] = sys.argv[1:3]
        import numpy as np
        from vlvm_jax.data.sample.processor import load_processor
        image = np.zeros((50, 70, 3), np.uint8)
        for folder in sys.argv[3:]:
            for layout in ("single", "anyres"):
                processor = load_processor(folder, image_layout=layout)
                content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "what ?"}]
                messages = [{"role": "user", "content": content}]
                sample = processor.sample(messages, images=[image], videos=[[image] * 2])
                assert sample["media_mask"].any()
        assert not {"torch", "jax"} & sys.modules.keys()
        """
    )
    root = Path(vlvm_jax.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", script, str(site), str(root), *map(str, folders.values())]
    subprocess.run(command, check=True, timeout=120)
    shutil.rmtree(site)
