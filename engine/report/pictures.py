"""Pictures for people: boxes with class and score drawn on an image, small images enlarged, sheets of many."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

# Told apart by most colour-blind people, and readable with black or white text on them.
_PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#7f5fc7", "#8c564b")
_IGNORED = ("#3c4043", "#f1f3f4")  # dark line under light dashes: seen on any ground
CROWDED = 12  # from so many boxes on, classes are told by colour and only scores are written


def label_colours(labels: Sequence[str]) -> dict[str, str]:
    """One '#rrggbb' per label in the order given; after nine labels colours return."""
    return {label: _PALETTE[index % len(_PALETTE)] for index, label in enumerate(dict.fromkeys(labels))}


def enlarge(image: Image.Image, short_edge: int) -> Image.Image:
    """RGB copy whose short edge has at least `short_edge` pixels; larger images keep their size."""
    factor = short_edge / min(image.size)
    if factor <= 1:
        return image.convert("RGB")
    size = (round(image.width * factor), round(image.height * factor))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def draw_boxes(
    image: Image.Image,
    boxes_xywh: Sequence[Sequence[float]],
    labels: Sequence[str],
    scores: Sequence[float | None] | None = None,
    *,
    colours: Mapping[str, str] | None = None,
    short_edge: int = 320,
    ignored_xywh: Sequence[Sequence[float]] = (),
    outlines: Sequence[str] | None = None,
) -> Image.Image:
    """RGB copy of `image`, enlarged to `short_edge`, with every box, its class and its score.

    boxes_xywh (N, 4): pixels of `image` as given, before the enlarging. ignored_xywh: drawn dashed, without text.
    outlines: '#rrggbb' for every box, where colour is not to tell the class.
    Raises ValueError when labels or scores are not as many as boxes.
    """
    if len(labels) != len(boxes_xywh) or (scores is not None and len(scores) != len(boxes_xywh)):
        raise ValueError(f"{len(boxes_xywh)} boxes need as many labels ({len(labels)}) and scores")
    canvas = enlarge(image, short_edge)
    scale_x, scale_y = canvas.width / image.width, canvas.height / image.height
    colours = colours or label_colours(sorted(set(labels)))
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(min(canvas.size) / 160))
    font = ImageFont.load_default(size=max(10, round(min(canvas.size) / 20)))
    for box in ignored_xywh:
        _dashed(draw, _corners(box, scale_x, scale_y, canvas.size), line)
    # Largest first, so that small boxes and their text stay on top.
    for index in sorted(range(len(labels)), key=lambda i: -boxes_xywh[i][2] * boxes_xywh[i][3]):
        colour = outlines[index] if outlines is not None else colours.get(labels[index], _PALETTE[0])
        corners = _corners(boxes_xywh[index], scale_x, scale_y, canvas.size)
        draw.rectangle(corners, outline=colour, width=line)
        score = scores[index] if scores is not None else None
        text = _text(labels[index], score, crowded=len(labels) > CROWDED)
        if text:
            _tag(draw, text, corners, colour, font, canvas.size)
    return canvas


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int = 4,
    captions: Sequence[str] | None = None,
    cell: int = 256,
    gap: int = 8,
    background: str = "#ffffff",
) -> Image.Image:
    """RGB sheet of all images in rows, each fitted into a square of `cell` pixels, with a caption line below if given.

    Raises ValueError for no images or a caption count that differs.
    """
    if not images or columns < 1 or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"a sheet needs images ({len(images)}), columns ({columns}) and as many captions, or none")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    font = ImageFont.load_default(size=max(10, cell // 18))
    line = round(font.size * 1.6) if captions else 0
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + line + gap) + gap), background)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = gap + index % columns * (cell + gap), gap + index // columns * (cell + line + gap)
        fitted = _fit(image, cell)
        sheet.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
        if captions:
            draw.text((left, top + cell + line // 6), _shorten(captions[index], font, cell), fill="#222222", font=font)
    return sheet


def _fit(image: Image.Image, cell: int) -> Image.Image:
    factor = cell / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _corners(box_xywh: Sequence[float], scale_x: float, scale_y: float, size: tuple[int, int]) -> tuple:
    """x0, y0, x1, y1 inside the canvas, at least one pixel wide and high."""
    x, y, width, height = box_xywh
    x0 = min(max(x * scale_x, 0), size[0] - 2)
    y0 = min(max(y * scale_y, 0), size[1] - 2)
    x1 = min(max((x + width) * scale_x, x0 + 1), size[0] - 1)
    y1 = min(max((y + height) * scale_y, y0 + 1), size[1] - 1)
    return x0, y0, x1, y1


def _dashed(draw: ImageDraw.ImageDraw, corners: tuple, line: int) -> None:
    draw.rectangle(corners, outline=_IGNORED[0], width=line)
    x0, y0, x1, y1 = (round(value) for value in corners)
    dash = 4 * line
    for x in range(x0, x1, 2 * dash):
        for y in (y0, y1 - line + 1):
            draw.rectangle((x, y, min(x + dash, x1), y + line - 1), fill=_IGNORED[1])
    for y in range(y0, y1, 2 * dash):
        for x in (x0, x1 - line + 1):
            draw.rectangle((x, y, x + line - 1, min(y + dash, y1)), fill=_IGNORED[1])


def _text(label: str, score: float | None, crowded: bool) -> str:
    number = "" if score is None else f"{score:.2f}"
    return number if crowded else f"{_printable(label)} {number}".strip()


def _tag(draw: ImageDraw.ImageDraw, text: str, corners: tuple, colour: str, font, size: tuple[int, int]) -> None:
    """Filled tag on top of the box, inside it where there is no room above."""
    text = _shorten(text, font, size[0] * 0.6)
    width, height = draw.textlength(text, font=font) + 6, round(font.size * 1.25)
    x = max(0, min(corners[0], size[0] - width))
    y = corners[1] - height if corners[1] >= height else corners[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3, y + height / 2), text, fill=_ink_on(colour), font=font, anchor="lm")


def _ink_on(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def _printable(text: str) -> str:
    return "".join(" " if unicodedata.category(char).startswith(("C", "Z")) else char for char in text)


def _shorten(text: str, font, width: float) -> str:
    text = _printable(text)[:200]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
