"""Which generated images the report shows, each beside the real image that it came from."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from engine.curation.decisions import load_decisions
from engine.curation.training_labels import with_edits
from engine.data.dataset import Annotation, Dataset, ImageRecord, read_dataset, splits_of
from engine.data.images import load_image
from engine.data.sources import TRAIN, has_unlabelled, read_sources
from engine.report.choice import encode_ratio, of_every_reason, spread_over_ratios
from engine.report.pictures import draw_boxes, enlarge

SHORT_EDGE = 320  # pixels, small images are enlarged to it
_LONG_EDGE = 600  # larger ones are reduced


@dataclass(frozen=True)
class GalleryItem:
    """One pair. boxes_xywh (N, 4) in pixels of the generated image, with labels and scores (N,); ignored_xywh: regions
    that count neither as object nor as background; reason: 'spread', 'worst', 'doubtful' or 'rejected', why it is
    shown; group: range of encode ratios of a 'spread' one; used: whether review let training have it; refusal: why
    not."""

    source: Path | None
    generated: Path
    boxes_xywh: Sequence[Sequence[float]]
    labels: Sequence[str]
    scores: Sequence[float]
    caption: str
    strength: float
    ignored_xywh: Sequence[Sequence[float]] = ()
    reason: str = "spread"
    group: str = ""
    used: bool = True
    refusal: str = ""


def gallery_from(
    dataset_folder: Path, source_folder: Path | None, count: int = 24, source_split: str = TRAIN
) -> list[GalleryItem]:
    """Pick `count` images of a generated dataset. A sixth each: of what training uses, those with the lowest mean
    score and those with most ignore regions; of what it does not, some of every reason. The rest evenly over the
    encode ratios from the lowest to the highest.

    Raises DatasetError when a folder cannot be read.
    """
    generated = with_edits(dataset_folder, read_dataset(dataset_folder, "annotations"))
    sources = None
    if source_folder is not None and source_split in splits_of(source_folder):
        if source_split == TRAIN:
            sources = read_sources(source_folder, has_unlabelled(source_folder))
        else:
            sources = read_dataset(source_folder, source_split)
    decisions = load_decisions(dataset_folder, generated)
    kept = {image.id for image in generated.images} if decisions is None else decisions.accepted
    refusals = {} if decisions is None else dict(decisions.rejected)
    used = sorted((i for i in generated.images if i.id in kept), key=lambda image: (encode_ratio(image), image.id))
    ignored = {image.id: sum(a.iscrowd for a in generated.annotations_of(image.id)) for image in used}
    sure = {image.id: _mean_score(generated, image) for image in used}
    labelled = [image for image in used if sure[image.id] is not None]
    worst = sorted(labelled, key=lambda image: sure[image.id])[: count // 6]
    others = [image for image in used if image not in worst and ignored[image.id]]
    doubtful = sorted(others, key=lambda image: -ignored[image.id])[: count // 6]
    rejected = of_every_reason([i for i in generated.images if i.id not in kept], refusals, count // 6)
    rest = [image for image in used if image not in worst and image not in doubtful]
    spread = spread_over_ratios(rest, count - len(worst) - len(doubtful) - len(rejected))
    picked = [("spread", group, image) for group, image in spread]
    for reason, images in (("worst", worst), ("doubtful", doubtful), ("rejected", rejected)):
        picked += [(reason, "", image) for image in images]
    return [
        dataclasses.replace(
            _item(generated, sources, image),
            reason=reason,
            group=group,
            used=image.id in kept,
            refusal="" if image.id in kept else refusals.get(image.id, "not decided"),
        )
        for reason, group, image in picked
    ]


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
    return source, data_uri(reduced(picture))


def data_uri(image: Image.Image) -> str:
    """JPEG of an RGB image, inline."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=86, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _sized(image: Image.Image) -> Image.Image:
    return reduced(enlarge(image, SHORT_EDGE))


def reduced(image: Image.Image) -> Image.Image:
    """The image itself, made smaller in place where it is larger than a page shows."""
    image.thumbnail((_LONG_EDGE, _LONG_EDGE))
    return image


def _item(generated: Dataset, sources: Dataset | None, image: ImageRecord) -> GalleryItem:
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
        strength=encode_ratio(image),
        ignored_xywh=[annotation.bbox_xywh for annotation in annotations if annotation.iscrowd],
    )


def _source_path(sources: Dataset | None, image_id: int | None) -> Path | None:
    if sources is None or image_id is None:
        return None
    image = next((image for image in sources.images if image.id == image_id), None)
    return None if image is None else sources.image_path(image)


def _score(annotation: Annotation) -> float:
    return float(annotation.extra.get("score", 1.0))


def _mean_score(generated: Dataset, image: ImageRecord) -> float | None:
    scores = [_score(a) for a in generated.annotations_of(image.id) if not a.iscrowd]
    return sum(scores) / len(scores) if scores else None
