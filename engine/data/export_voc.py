"""Writes Pascal VOC: JPEGImages/, Annotations/ and ImageSets/Main/SPLIT.txt.

Corners are counted from 0 and keep their decimals (6), as this engine's import and most tools read them; the original
VOC counts whole pixels from 1. An ignore region is a `difficult` object, with `iscrowd` beside it for readers that know
it. Scores are not written. No library, since each moves boxes or loses the ignore regions: hotcoco 1.3.0 and
supervision 0.31.2 write whole pixels from 1 (up to 1.5 px off), FiftyOne 1.22.1 truncates to whole pixels, globox 2.9.0
and supervision make plain objects of ignore regions, datumaro 1.13.12 too (and needs older pandas and pillow).
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from engine.data.dataset import Annotation, Dataset, ImageRecord
from engine.data.export_names import FlatNames, place
from engine.errors import DatasetError

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_voc(work: Path, source, options, report) -> None:
    """One xml an image; the lists of ImageSets/Main tell the splits."""
    names = FlatNames()
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (work / name).mkdir(parents=True)
    for split in source.splits:
        with open(work / "ImageSets" / "Main" / f"{split}.txt", "w", encoding="utf-8") as listed:
            for part in source.parts(split):
                report.counts["regions_as_difficult"] += sum(a.iscrowd for a in part.annotations)
                _check_names(part)
                classes = {category.id: category.name for category in part.categories}
                for image in part.images:
                    flat = names.of(image.file_name)
                    report.counts["images_renamed"] += flat != image.file_name
                    place(part.image_path(image), work / "JPEGImages" / flat, options.link)
                    stem = Path(flat).stem
                    xml = ElementTree.tostring(_picture(image, flat, part, classes), encoding="utf-8")
                    (work / "Annotations" / f"{stem}.xml").write_bytes(xml + b"\n")
                    listed.write(f"{stem}\n")


def _check_names(part: Dataset) -> None:
    for category in part.categories:
        if _NOT_XML.search(category.name) or category.name != category.name.strip():
            raise DatasetError(
                f"Class {category.id} is named {category.name!r}, which no xml file of VOC can hold. Rename it."
            )


def _picture(image: ImageRecord, name: str, part: Dataset, classes: dict[int, str]) -> Element:
    root = Element("annotation")
    SubElement(root, "filename").text = name
    size = SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        SubElement(size, key).text = str(value)
    SubElement(root, "segmented").text = "0"
    for annotation in part.annotations_of(image.id):
        root.append(_object(annotation, classes[annotation.category_id]))
    ElementTree.indent(root)
    return root


def _object(annotation: Annotation, name: str) -> Element:
    element = Element("object")
    SubElement(element, "name").text = name
    for key in ("truncated", "difficult"):
        flag = annotation.extra.get(key) == 1 or (key == "difficult" and annotation.iscrowd == 1)
        SubElement(element, key).text = str(int(flag))
    if annotation.iscrowd:
        SubElement(element, "iscrowd").text = "1"
    x, y, w, h = annotation.bbox_xywh
    corners = SubElement(element, "bndbox")
    for key, value in (("xmin", x), ("ymin", y), ("xmax", x + w), ("ymax", y + h)):
        SubElement(corners, key).text = f"{value:.6f}".rstrip("0").rstrip(".")
    return element
