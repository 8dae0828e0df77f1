"""What an import changed and what it left out, counted and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# kind -> what happened, for people. The first group changes something, the second leaves something out.
CHANGES = {
    "boxes_clipped": "boxes that stuck out of their picture by more than half a pixel, clipped to it",
    "boxes_trimmed": "boxes that stuck out by rounding (at most half a pixel), trimmed",
    "sizes_corrected": "pictures whose declared size was missing or wrong, given the decoded one",
    "exif_turned": "pictures whose boxes lay in the stored frame, turned upright by the EXIF orientation",
    "exif_assumed_upright": "EXIF-turned pictures whose declared size does not tell the frame, boxes taken as upright",
    "exif_assumed_stored": "EXIF-turned pictures whose declared size does not tell the frame, boxes taken as stored, "
    "as in most others of the source",
    "shapes_dropped": "segmentations and keypoints dropped because their picture was turned",
    "iscrowd_filled": "annotations without a usable iscrowd, set to 0",
    "area_filled": "annotations without a usable area, set to width x height",
    "image_ids_renumbered": "images whose id was unusable or taken, given a new one",
    "annotation_ids_renumbered": "annotations whose id was unusable or taken, given a new one",
    "category_ids_renumbered": "classes whose id was unusable or taken, given a new one",
    "categories_merged": "classes with the name of an earlier one, merged into it",
    "images_renamed": "pictures whose name was taken or written with backslashes, renamed",
    "images_repeated": "entries of a picture that an earlier entry names too, joined with it",
    "images_without_labels": "pictures for which the source has no label file, taken as pictures without objects",
    "captions_added": "pictures that got their caption from a captions file",
    "splits_drawn": "pictures that the import sorted into train, val or test, since the source does not",
}
REFUSALS = {
    "images_refused": "pictures left out, with their boxes",
    "images_in_two_splits": "pictures taken out of train or val because a held-out split has them too",
    "boxes_zero_area": "boxes without area, left out",
    "boxes_outside": "boxes wholly outside their picture, left out",
    "boxes_malformed": "boxes that are not four finite numbers, left out",
    "boxes_unknown_category": "boxes of a class that the source does not list, left out",
    "boxes_unknown_image": "boxes of a picture that the source does not list, left out",
    "boxes_bad_score": "boxes with a score that is not between 0 and 1, left out",
    "files_ignored": "files that are no part of the dataset, left out",
}
_SHOWN = 10


@dataclass(frozen=True)
class Note:
    """One change or refusal: its kind (a key of CHANGES or REFUSALS), where, and the detail."""

    kind: str
    where: str
    detail: str = ""


@dataclass(frozen=True)
class ImportReport:
    """Outcome of an import.

    `images` and `boxes` count what each split holds now; `counts` has every kind, 0 included. `changes` and
    `refusals` have an entry each time, except for the kinds that fill in defaults or ids, which are only counted.
    """

    format: str
    source: Path
    out: Path
    images: dict[str, int]
    boxes: dict[str, int]
    classes: tuple[str, ...]
    counts: dict[str, int]
    changes: tuple[Note, ...] = ()
    refusals: tuple[Note, ...] = ()

    def text(self) -> str:
        """The report for people; at most ten entries of each kind are spelled out."""
        total = f"{sum(self.images.values())} images, {sum(self.boxes.values())} boxes, {len(self.classes)} classes"
        lines = [f"Imported {self.format} from {self.source} to {self.out}: {total}"]
        lines += [f"  {split}: {count} images, {self.boxes[split]} boxes" for split, count in self.images.items()]
        for title, kinds, notes in (("Changed", CHANGES, self.changes), ("Left out", REFUSALS, self.refusals)):
            happened = [kind for kind in kinds if self.counts[kind]]
            lines.append(f"{title}:" if happened else f"{title}: nothing")
            for kind in happened:
                lines.append(f"  {self.counts[kind]} {kinds[kind]}")
                own = [note for note in notes if note.kind == kind]
                lines += [f"    {n.where}: {n.detail}" if n.detail else f"    {n.where}" for n in own[:_SHOWN]]
                if len(own) > _SHOWN:
                    lines.append(f"    and {len(own) - _SHOWN} more, all in import_report.json")
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """Plain json-ready values, without the paths of this machine."""
        return {
            "format": self.format,
            "images": self.images,
            "boxes": self.boxes,
            "classes": list(self.classes),
            "counts": self.counts,
            "changes": [[n.kind, n.where, n.detail] for n in self.changes],
            "refusals": [[n.kind, n.where, n.detail] for n in self.refusals],
        }


@dataclass
class Notes:
    """Gathers notes while an import runs."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys([*CHANGES, *REFUSALS], 0))
    entries: list[Note] = field(default_factory=list)

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Count one case and keep it."""
        self.count(kind)
        self.entries.append(Note(kind, where, detail))

    def count(self, kind: str, number: int = 1) -> None:
        """Only count."""
        self.counts[kind] += number
