"""Which generated images the report shows, each beside the real image that it came from."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from engine.curation.decisions import read_decisions
from engine.data.dataset import Annotation, Dataset, ImageRecord, read_dataset, splits_of
from engine.data.images import load_image
from engine.report.pictures import draw_boxes, enlarge

SHORT_EDGE = 320  # pixels, small images are enlarged to it
_LONG_EDGE = 600  # larger ones are reduced


@dataclass(frozen=True)
class GalleryItem:
    """One pair. boxes_xywh (N, 4) in pixels of the generated image, with labels and scores (N,); ignored_xywh: regions
    that count neither as object nor as background; reason: 'spread' or 'doubtful', why it is shown; used: whether
    review let training have it."""

    source: Path | None
    generated: Path
    boxes_xywh: Sequence[Sequence[float]]
    labels: Sequence[str]
    scores: Sequence[float]
    caption: str
    strength: float
    ignored_xywh: Sequence[Sequence[float]] = ()
    reason: str = "spread"
    used: bool = True


def gallery_from(
    dataset_folder: Path, source_folder: Path | None, count: int = 16, source_split: str = "train"
) -> list[GalleryItem]:
    """Pick `count` images of a generated dataset: one quarter those with the lowest mean score, whether review kept
    them or not, the rest from what review kept, evenly over the encode ratios from the lowest to the highest.

    Raises DatasetError when a folder cannot be read.
    """
    generated = read_dataset(dataset_folder, "annotations")
    sources = None
    if source_folder is not None and source_split in splits_of(source_folder):
        sources = read_dataset(source_folder, source_split)
    ordered = sorted(generated.images, key=lambda image: (_strength(image), image.id))
    least_sure = sorted(ordered, key=lambda image: _mean_score(generated, image))[: count // 4]
    kept = read_decisions(dataset_folder, generated)
    rest = [image for image in ordered if image.id in kept and image not in least_sure]
    wanted = min(count - len(least_sure), len(rest))
    spread = [rest[(2 * place + 1) * len(rest) // (2 * wanted)] for place in range(wanted)]
    reasons = [("spread", image) for image in spread] + [("doubtful", image) for image in least_sure]
    return [_item(generated, sources, image, reason, image.id in kept) for reason, image in reasons]


def pair_uris(item: GalleryItem, colours: dict[str, str]) -> tuple[str | None, str]:
    """Source and generated picture as data URIs; the first is None where there is no source file."""
    source = None
    if item.source is not None and item.source.is_file():
        source = data_uri(_sized(load_image(item.source)))
    image = load_image(item.generated)
    picture = draw_boxes(
        image,
        item.boxes_xywh,
        item.labels,
        item.scores,
        colours=colours,
        short_edge=SHORT_EDGE,
        ignored_xywh=item.ignored_xywh,
    )
    return source, data_uri(_reduced(picture))


def data_uri(image: Image.Image) -> str:
    """JPEG of an RGB image, inline."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=86, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _sized(image: Image.Image) -> Image.Image:
    return _reduced(enlarge(image, SHORT_EDGE))


def _reduced(image: Image.Image) -> Image.Image:
    image.thumbnail((_LONG_EDGE, _LONG_EDGE))
    return image


def _item(generated: Dataset, sources: Dataset | None, image: ImageRecord, reason: str, used: bool) -> GalleryItem:
    names = {category.id: category.name for category in generated.categories}
    annotations = generated.annotations_of(image.id)
    objects = [annotation for annotation in annotations if not annotation.iscrowd]
    de = image.extra.get("de", {})
    return GalleryItem(
        source=_source_path(sources, de.get("source_image_id")),
        generated=generated.image_path(image),
        boxes_xywh=[annotation.bbox_xywh for annotation in objects],
        labels=[names[annotation.category_id] for annotation in objects],
        scores=[_score(annotation) for annotation in objects],
        caption=str(de.get("prompt") or image.extra.get("caption") or ""),
        strength=_strength(image),
        ignored_xywh=[annotation.bbox_xywh for annotation in annotations if annotation.iscrowd],
        reason=reason,
        used=used,
    )


def _source_path(sources: Dataset | None, image_id: int | None) -> Path | None:
    if sources is None or image_id is None:
        return None
    image = next((image for image in sources.images if image.id == image_id), None)
    return None if image is None else sources.image_path(image)


def _strength(image: ImageRecord) -> float:
    return float(image.extra.get("de", {}).get("strength", 0.0))


def _score(annotation: Annotation) -> float:
    return float(annotation.extra.get("score", 1.0))


def _mean_score(generated: Dataset, image: ImageRecord) -> float:
    scores = [_score(a) for a in generated.annotations_of(image.id) if not a.iscrowd]
    return sum(scores) / len(scores) if scores else 2.0
