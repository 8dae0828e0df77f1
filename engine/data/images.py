"""Pictures from strangers, decoded to one form: upright, RGB, 8 bit.

Rules:
- The EXIF orientation is applied (in JPEG, PNG, WebP, TIFF); a broken EXIF block counts as upright.
- 16 bit grey is scaled from 0..65535 to 0..255, never cut off, so that 10 or 12 bit in 16 stay dark.
- 32 bit grey and floats have no known white: refused.
- Transparency is composited on white.
- Of several frames the first is taken.
- What ends early is refused, even where other decoders return a half-grey picture.
- Colour profiles are not applied; CMYK and LAB are converted as Pillow does.
- Only the formats below are tried: Pillow's EPS reader, for one, starts another program.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from engine.errors import DatasetError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")  # MPO comes in as JPEG
MAX_PIXELS = 89_478_485  # a quarter GiB of RGB; from here on Pillow itself warns of decompression bombs
_READ = f"Read are {', '.join(FORMATS)}."
_ORIENTATION = 0x0112
_TURN = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageInfo:
    """What a picture is: the size in pixels of the upright picture, and the EXIF orientation (1 to 8) of the file."""

    width: int
    height: int
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the pixels as the file stores them, before they are turned."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def load_image(path: Path | str, expected_size: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture completely.

    Args:
        path: the file; its suffix does not matter.
        expected_size: (width, height) that the upright picture must have.

    Returns:
        An RGB image of 8 bit, upright.

    Raises:
        DatasetError: missing, no picture, cut off, broken, too large to decode, or of another size.
    """
    image, orientation = _decode(Path(path))
    if expected_size is not None and image.size != tuple(expected_size):
        turned = f" after its EXIF orientation {orientation} is applied" if orientation != 1 else ""
        raise DatasetError(
            f"{path} is {image.width} x {image.height}{turned}, but its entry declares "
            f"{expected_size[0]} x {expected_size[1]}: its boxes may belong to another frame. "
            "Run `de import` on the source."
        )
    return image


def inspect_image(path: Path | str) -> ImageInfo:
    """Size and orientation of a picture, after decoding it completely.

    Raises:
        DatasetError: as `load_image`.
    """
    image, orientation = _decode(Path(path))
    return ImageInfo(image.width, image.height, orientation)


def _decode(path: Path) -> tuple[Image.Image, int]:
    """The upright RGB picture, and the orientation that the file states."""
    if not path.is_file():
        raise DatasetError(f"There is no picture {path}. Put it there, or remove its entry.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(path, image)
            orientation = _stated_orientation(image) if image.format == "TIFF" else 0  # Pillow turns TIFF itself
            image.load()
            turn = _stated_orientation(image)  # after load: on a damaged PNG it would hide the damage
            rgb = _to_rgb(path, image)
    except DatasetError:
        raise
    except Image.DecompressionBombError:
        raise DatasetError(_too_large(path, "its header claims more pixels than Pillow decodes")) from None
    except UnidentifiedImageError:
        raise DatasetError(
            f"{path} is no picture in a known format, or its header is damaged. Replace or remove it. {_READ}"
        ) from None
    except Exception as problem:  # decoders raise whatever comes to pass in them: OSError, ValueError, SyntaxError, ...
        raise DatasetError(
            f"{path} cannot be decoded ({type(problem).__name__}: {problem}). It is cut off or damaged: "
            f"replace or remove it. {_READ}"
        ) from None
    return (rgb.transpose(_TURN[turn]) if turn in _TURN else rgb), orientation or turn


def _check_pixels(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DatasetError(_too_large(path, f"{image.width} x {image.height} pixels"))


def _too_large(path: Path, what: str) -> str:
    return f"{path} was not decoded: {what}; the limit is {MAX_PIXELS}. Scale it down, or cut it into tiles."


def _stated_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels are sound; a broken EXIF block says nothing
        return 1
    return value if type(value) is int and 1 <= value <= 8 else 1


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(path, image)
    if image.mode == "F":
        raise DatasetError(f"{path} holds floating point pixels, whose white is unknown. Save it with 8 or 16 bit.")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        return white.convert("RGB")
    return image.convert("RGB")


def _from_16_bit(path: Path, image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DatasetError(f"{path} holds 32 bit pixels, whose white is unknown. Save it with 8 or 16 bit.")
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # one grey value stands for transparent
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def encode_jpeg(picture: Image.Image, quality: int) -> bytes:
    """A picture to train on as JPEG, with colour at full resolution: halved, as is usual, it would be a blur of several
    pixels at the size a detector works at. No time, no name, no profile is in the bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
