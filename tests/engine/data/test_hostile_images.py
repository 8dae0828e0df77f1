"""Pictures of case 22 and the hostile files of others: refused with one clear error, or read right."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_data import make_picture, measure, shared_data

from engine.data.images import MAX_PIXELS, inspect_image, load_image
from engine.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of broken EXIF blocks


def _hostile():
    folder = shared_data("hostile_images")
    return folder / "images", json.loads((folder / "expected.json").read_text())["files"]


def test_every_hostile_file_is_refused_or_of_the_right_size():
    folder, entries = _hostile()
    assert len(entries) == 64
    refused = 0
    for entry in entries:
        path = folder / entry["file"]
        if entry["pillow"] != "ok":
            with pytest.raises(DatasetError) as caught:
                load_image(path)
            assert entry["file"] in str(caught.value)
            refused += 1
            continue
        orientation = entry["exif_orientation"]
        width, height = entry["size"][::-1] if orientation in (5, 6, 7, 8) else entry["size"]
        image = load_image(path, (width, height))
        assert (image.mode, image.size) == ("RGB", (width, height)), entry["file"]
        info = inspect_image(path)
        assert info.stored_size == tuple(entry["size"]), entry["file"]
        assert info.orientation == (orientation if type(orientation) is int and orientation else 1), entry["file"]
    assert refused == 11


def _difference(one, other) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


@pytest.mark.parametrize("name", [f"hopper_orientation_{n}.jpg" for n in range(2, 9)] + ["hopper_orientation_6.webp"])
def test_every_orientation_shows_the_same_upright_picture(name):
    folder, _ = _hostile()
    upright = load_image(folder / "hopper.bmp")
    assert _difference(load_image(folder / name), upright) < 12  # lossy
    assert _difference(load_image(folder / name).rotate(180), upright) > 40


def test_landscapes_and_portraits_agree_whatever_their_orientation():
    folder, _ = _hostile()
    for kind, numbers in (("Landscape", range(9)), ("Portrait", (1, 3, 6, 8))):
        pictures = [load_image(folder / f"{kind}_{n}.jpg").resize((60, 60)) for n in numbers]
        assert all(_difference(picture, pictures[0]) < 6 for picture in pictures), kind  # the number in it differs


@pytest.mark.parametrize("name", ["hopper.Lab.tif", "hopper.tif", "hopper.webp", "hopper.gif"])
def test_colour_spaces_show_the_same_picture(name):
    folder, _ = _hostile()
    assert _difference(load_image(folder / name), load_image(folder / "hopper.bmp")) < 8


def test_16_bit_grey_is_scaled_and_not_clipped():
    folder, _ = _hostile()
    grey = load_image(folder / "hopper.bmp").convert("L").convert("RGB")
    assert _difference(load_image(folder / "hopper_16bit.pgm"), grey) < 3


def test_cmyk_red_is_red():
    folder, _ = _hostile()
    for name in ("pil_sample_cmyk.jpg", "tiff_strip_cmyk_jpeg.tif"):
        red, green, blue = load_image(folder / name).getpixel((5, 1))
        assert red > 200 and green < 60 and blue < 60, name


@pytest.mark.parametrize("name", ["l_trns.png", "i_trns.png", "1_trns.png", "p_trns_single.png", "rgb_trns.png"])
def test_transparent_is_white(name):
    folder, _ = _hostile()
    assert load_image(folder / name).getpixel((32, 32)) == (255, 255, 255)
    assert load_image(folder / name).getextrema() != ((255, 255),) * 3


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


LOAD = """
from time import process_time
from engine.data.images import load_image
from engine.errors import DatasetError
start()
began = process_time()
try:
    load_image(sys.argv[1])
    finish(message="read")
except DatasetError as error:
    finish(message=str(error), seconds=process_time() - began)
"""


@pytest.mark.parametrize("side", [20_000, 10_000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(side, side))
    assert path.stat().st_size < 200
    assert side**2 > MAX_PIXELS
    answer = measure(LOAD, path)
    assert "bomb.png was not decoded" in answer["message"] and str(MAX_PIXELS) in answer["message"]
    assert answer["grown"] < 30 * 2**20 and answer["seconds"] < 2


def test_the_bomb_measure_can_fail(tmp_path):
    Image.new("RGB", (6000, 5000)).save(tmp_path / "large.png")
    answer = measure(LOAD, tmp_path / "large.png")
    assert answer["message"] == "read" and answer["grown"] > 60 * 2**20


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.98])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp", "tif"])
def test_a_cut_off_picture_is_refused(tmp_path, suffix, keep):
    path = make_picture(tmp_path / f"cut.{suffix}", size=(64, 48))
    content = path.read_bytes()
    load_image(path, (64, 48))
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DatasetError, match=f"cut.{suffix}"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_text_named_jpg_is_refused(tmp_path, content):
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="text.jpg is no picture"):
        load_image(path)


def test_a_missing_picture_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="no picture"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(DatasetError, match="no picture"):
        load_image(tmp_path)


def test_a_size_that_is_not_the_declared_one_is_refused_naming_both(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = make_picture(tmp_path / "turned.jpg", size=(64, 48), exif=exif)
    assert load_image(path, (48, 64)).size == (48, 64)
    with pytest.raises(DatasetError, match="48 x 64 after its EXIF orientation 6 .*declares 64 x 48"):
        load_image(path, (64, 48))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_orientations_agree_with_pillow(tmp_path, suffix, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {}
    path = make_picture(tmp_path / f"a.{suffix}", size=(5, 3), exif=exif, **lossless)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(expected))
    assert inspect_image(path).orientation == orientation
    assert inspect_image(path).stored_size == (5, 3)


def test_pixels_without_a_known_white_are_refused(tmp_path):
    for name, values in (("f.tif", np.ones((4, 4), np.float32)), ("i.tif", np.full((4, 4), 10**6, np.int32))):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(DatasetError, match="white is unknown"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("value, expected", [(0, 0), (257, 1), (32768, 128), (65535, 255)])
def test_16_bit_values(tmp_path, value, expected):
    Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / "grey.png")
    assert load_image(tmp_path / "grey.png").getpixel((0, 0)) == (expected,) * 3


def test_half_transparent_mixes_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.png")
    red, green, blue = load_image(tmp_path / "a.png").getpixel((0, 0))
    assert red == 255 and abs(green - 127) <= 1 and green == blue


def test_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for suffix in ("gif", "tif", "webp", "png"):
        extra = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **extra)
        assert load_image(tmp_path / f"a.{suffix}").getpixel((4, 4)) == (255, 0, 0), suffix
