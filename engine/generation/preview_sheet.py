"""A contact sheet of a shard's first images with their boxes: a look at a run that is not merged yet."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw

IMAGES = 12  # so the cost is a shard's, not an image's
ACROSS = 4
TILE = 128  # pixels
LABEL, IGNORED = (0, 255, 0), (255, 200, 0)
QUALITY = 85


class PreviewSheet:
    """Takes images as they are written; the same shard gives the same bytes."""

    def __init__(self):
        self._tiles: list[Image.Image] = []

    def add(self, record: Mapping, jpeg: bytes) -> None:
        """Show a kept image, while there is room.

        Args:
            record: of the item, with its boxes (XYWH, pixels).
            jpeg: the image as it is written.
        """
        if len(self._tiles) == IMAGES:
            return
        with Image.open(io.BytesIO(jpeg)) as image:
            image.draft("RGB", (TILE, TILE))  # decoded at an eighth, a quarter or half the size where that is enough
            scale = TILE / max(record["width"], record["height"])
            size = [max(1, round(record[side] * scale)) for side in ("width", "height")]
            tile = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(tile)
        for box in record["boxes"]:
            x, y, w, h = (value * scale for value in box["bbox"])
            pen.rectangle((x, y, x + w, y + h), outline=IGNORED if box["iscrowd"] else LABEL)
        self._tiles.append(tile)

    def jpeg(self) -> bytes:
        """The sheet; empty where there was no image."""
        if not self._tiles:
            return b""
        across = min(ACROSS, len(self._tiles))
        sheet = Image.new("RGB", (across * TILE, -(-len(self._tiles) // across) * TILE), "white")
        for place, tile in enumerate(self._tiles):
            sheet.paste(tile, (place % across * TILE, place // across * TILE))
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()
