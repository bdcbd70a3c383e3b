"""Images as they are shown: upright, on white, all of a channel's values in eight bits; of every kind Pillow opens."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import ExifTags, Image, ImageOps
from support.images import read_image
from support.media_files import moving

from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.images import stills
from vlvm_jax.data.images.image_rules import PROCESSORS, PixelProcessor
from vlvm_jax.data.images.squares import to_square
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.tools.check import Checker
from vlvm_jax.data.tools.record_bytes import record_bytes
from vlvm_jax.data.tools.reencode import Target

CASES = Path(__file__).parents[1] / "cases"
CLEAR = CASES / "transparent_png/black_on_clear.png"


def picture(mode="RGB"):
    return Image.fromarray(next(moving(1, (40, 30)))).convert(mode)


def opened(path):
    return np.asarray(video.open_image(str(path)))


def prepared(path, size):
    """Pixels of the image that `prepare` makes of one; `check` takes it too."""
    record = Record("1", "notes.json: 0", (("image", str(path)),), (Turn("?", "!"),))
    assert Checker([record], None)(0).cause == ""
    made = Path(path).with_suffix(".made")
    made.write_bytes(record_bytes(record, Target(size=size))[1][0].data)
    return opened(made)


def on_white(image):
    """The picture over white, by the formula."""
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


# --- transparency ------------------------------------------------------------------------------------------------


def test_a_black_shape_on_nothing_is_seen(tmp_path):
    with Image.open(CLEAR) as image:
        expected = on_white(image)
    assert expected.min() == 0 and expected.max() == 255
    np.testing.assert_array_equal(opened(CLEAR), expected)
    copy = tmp_path / "c.png"
    copy.write_bytes(CLEAR.read_bytes())
    np.testing.assert_array_equal(prepared(copy, 1000), expected)
    small = prepared(copy, min(expected.shape[:2]) // 2)
    assert small.min() < 20 and small.max() == 255 and abs(small.mean() - expected.mean()) < 3
    np.testing.assert_array_equal(read_image(str(CLEAR), 16)[0], to_square(Image.open(CLEAR), 16, "crop", ()))


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_those_of_the_processors(tmp_path, name, mode):
    """Every supported class of transformers puts them on white."""
    image = picture("RGBA")
    image.putalpha(Image.fromarray(np.linspace(0, 255, 40 * 30).astype(np.uint8).reshape(30, 40)))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "i.png")
    theirs = getattr(transformers, f"{name}Pil")
    with Image.open(tmp_path / "i.png") as saved:
        expected = theirs().convert_to_rgb(saved)
    np.testing.assert_array_equal(opened(tmp_path / "i.png"), expected)


def test_processors_and_squares_take_transparent_pictures():
    with Image.open(CLEAR) as image:
        image.load()
    ours = PixelProcessor("SiglipImageProcessor", {"size": {"height": 16, "width": 16}}, 16, "here")
    white = Image.fromarray(on_white(image).astype(np.uint8))
    np.testing.assert_array_equal(ours([image]), ours([white]))
    for fit in ("crop", "squash", "pad"):
        np.testing.assert_array_equal(to_square(image, 16, fit, (0.5, 0.5, 0.5)), to_square(white, 16, fit, (0.5,) * 3))


@pytest.mark.parametrize(
    ("mode", "clear"), [("P", 3), ("L", 7), ("RGB", (1, 2, 3)), ("1", 0), ("LA", None), ("PA", None), ("RGBa", None)]
)
def test_other_ways_to_be_transparent(tmp_path, mode, clear):
    if clear is None:
        image = picture("RGBA")
        image.putalpha(90)
        image = image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
        expected = on_white(image.convert("RGBA"))
    else:
        image = Image.new(mode, (40, 30), clear)
        if mode == "P":
            image.putpalette([0, 0, 0] * 256)
        image.paste(200 if mode != "RGB" else (9, 9, 9), (0, 0, 20, 30))
        image.save(tmp_path / "i.png", transparency=clear)
        image = Image.open(tmp_path / "i.png")
        image.load()
        expected = on_white(image)
        assert (expected[:, 20:] == 255).all()
    assert np.abs(np.asarray(stills.rgb(image)) - expected).max() <= 1


# --- ranges of values --------------------------------------------------------------------------------------------


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / "i.png")
    found = opened(tmp_path / "i.png")
    np.testing.assert_array_equal(found, np.rint(values / 257)[..., None].repeat(3, 2))
    np.testing.assert_array_equal(prepared(tmp_path / "i.png", 1000), found)
    assert np.abs(prepared(tmp_path / "i.png", 15).mean() - found.mean()) < 2
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "i.tif")  # 16 bits in 32
    np.testing.assert_array_equal(opened(tmp_path / "i.tif"), found)
    (tmp_path / "i.pgm").write_bytes(b"P5 40 30 65535\n" + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(opened(tmp_path / "i.pgm"), found)


def png(path, values, colour, extra=b""):
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 16, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_in_colour_and_with_alpha(tmp_path, colour, channels):
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, channels)).astype(np.uint16)
    png(tmp_path / "i.png", values, colour)
    scaled = values / 257
    alpha = scaled[..., -1:] / 255 if channels % 2 == 0 else 1
    expected = scaled[..., : 3 if channels > 2 else 1] * alpha + 255 * (1 - alpha)
    assert np.abs(opened(tmp_path / "i.png") - expected).max() < 3  # Pillow keeps the upper byte of each value


def test_sixteen_bits_with_one_transparent_value(tmp_path):
    values = np.full((30, 40), 1000, np.uint16)
    values[:, :20] = 30000
    data = struct.pack(">H", 1000)
    chunk = struct.pack(">I", 2) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))
    png(tmp_path / "i.png", values, 0, chunk)
    found = opened(tmp_path / "i.png")
    assert (found[:, :20] == round(30000 / 257)).all() and (found[:, 20:] == 255).all()


@pytest.mark.parametrize("most", [1, 255])
def test_floating_point_images_have_one_of_two_ranges(tmp_path, most):
    values = np.linspace(0, most, 40 * 30).astype(np.float32).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / "i.tif")
    np.testing.assert_array_equal(opened(tmp_path / "i.tif")[..., 0], np.rint(values * (255 / most)))


@pytest.mark.parametrize("values", [[[-1.0, 5.0]], [[0.0, 300.0]], [[0.0, np.nan]], [[0, 65536]], [[-5, 3]]])
def test_values_of_unknown_range_are_refused(tmp_path, values):
    kind = np.float32 if isinstance(values[0][0], float) else np.int32
    Image.fromarray(np.array(values, kind)).save(tmp_path / "i.tif")
    with pytest.raises(BadSampleError, match=r"corrupt: .*i\.tif has values from .*expected 0 to"):
        video.open_image(str(tmp_path / "i.tif"))


@pytest.mark.parametrize(
    ("mode", "name"), [("CMYK", "i.jpg"), ("CMYK", "i.tif"), ("YCbCr", "i.jpg"), ("LAB", "i.tif"), ("1", "i.png")]
)
def test_other_colour_spaces_are_pillows(tmp_path, mode, name):
    image = picture(mode) if mode != "LAB" else Image.merge("LAB", picture().split())
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        np.testing.assert_array_equal(opened(tmp_path / name), np.asarray(saved.convert("RGB")))


# --- orientation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["i.png", "i.jpg", "i.webp", "i.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_with_and_without_a_processor(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture().save(tmp_path / name, exif=exif, **({"lossless": True} if name == "i.webp" else {}))
    with Image.open(tmp_path / name) as saved:
        upright = ImageOps.exif_transpose(saved).convert("RGB")
    found = opened(tmp_path / name)
    np.testing.assert_array_equal(found, np.asarray(upright))
    assert video.image_size(str(tmp_path / name)) == found.shape[:2]
    assert found.shape[:2] == ((40, 30) if orientation > 4 else (30, 40))
    np.testing.assert_array_equal(read_image(str(tmp_path / name), 16)[0], video.resize(upright, 16))
    small = prepared(tmp_path / name, 15)
    assert small.shape[:2] == ((20, 15) if orientation > 4 else (15, 20))


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_that_is_none_counts_as_upright(tmp_path, value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    picture().save(tmp_path / "i.png", exif=exif)
    np.testing.assert_array_equal(opened(tmp_path / "i.png"), np.asarray(picture()))
    assert video.image_size(str(tmp_path / "i.png")) == (30, 40)


@pytest.mark.parametrize(
    "data", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01"]
)
def test_broken_exif_costs_nothing(tmp_path, data):
    picture().save(tmp_path / "i.jpg", exif=data)
    assert opened(tmp_path / "i.jpg").shape == (30, 40, 3)
    assert video.image_size(str(tmp_path / "i.jpg")) == (30, 40)
    assert prepared(tmp_path / "i.jpg", 15).shape == (15, 20, 3)


# --- animations given as images, damage --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["i.gif", "i.webp", "i.png"])
def test_of_an_animation_the_first_frame_counts(tmp_path, name):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    how = {"lossless": True} if name == "i.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100, **how)
    assert (opened(tmp_path / name) == (255, 0, 0)).all()
    assert (prepared(tmp_path / name, 15) == (255, 0, 0)).all()


@pytest.mark.parametrize("name", ["i.jpg", "i.png", "i.webp", "i.gif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_image_is_the_same_to_all(tmp_path, name, share):
    Image.fromarray(next(moving(1, (160, 120)))).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    record = Record("1", "notes.json: 0", (("image", str(tmp_path / name)),), (Turn("?", "!"),))
    found = [Checker([record], None)(0).cause]
    for use in (
        lambda: video.open_image(str(tmp_path / name)),
        lambda: record_bytes(record, Target()),
        lambda: record_bytes(record, Target(size=50)),
    ):
        try:
            use()
            found.append("")
        except BadSampleError as error:
            found.append(error.cause)
    assert set(found) == {"corrupt"}
