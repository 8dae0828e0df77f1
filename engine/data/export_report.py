"""What an export wrote, what it changed, and what it left out."""

from __future__ import annotations

from dataclasses import dataclass, field

# kind -> what happened, for people.
COUNTS = {
    "images_rejected": "images that the review did not accept, left out (--all keeps them)",
    "images_left_out": "images left out with all their boxes, because they hold ignore regions, which {format} cannot "
    "say (--ignore-regions background keeps the images)",
    "regions_left_out": "ignore regions on those images",
    "regions_as_background": "ignore regions not written: a detector will learn what they cover as background",
    "regions_as_difficult": "ignore regions written as difficult objects, which trainers may take as plain ones",
    "images_renamed": "images with a new name, because {format} has one flat folder",
    "negatives": "images without an object, written as such",
}


@dataclass
class SplitCounts:
    """Images, objects and ignore regions written to one split."""

    images: int = 0
    boxes: int = 0
    ignored: int = 0


@dataclass
class ExportReport:
    """Outcome of an export; `counts` has every kind of COUNTS, 0 included.

    shards (WebDataset only): {name, split, samples, boxes, bytes, sha256} of each tar, in order.
    """

    format: str
    classes: list[dict] = field(default_factory=list)
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    shards: list[dict] = field(default_factory=list)

    def text(self) -> str:
        """The report for people."""
        lines = [f"Exported as {self.format}, {len(self.classes)} classes:"]
        for split, made in self.splits.items():
            lines.append(f"  {split}: {made.images} images, {made.boxes} boxes, {made.ignored} ignore regions")
        lines += [
            f"  {self.counts[kind]} {COUNTS[kind].format(format=self.format)}" for kind in COUNTS if self.counts[kind]
        ]
        if self.shards:
            lines.append(f"  {len(self.shards)} tar files, {sum(shard['bytes'] for shard in self.shards)} bytes")
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """Plain json-ready values. Nothing of the machine or the time: the same export gives the same report."""
        content = {
            "format": self.format,
            "classes": self.classes,
            "splits": {split: vars(made) for split, made in self.splits.items()},
            "counts": self.counts,
        }
        return content | ({"shards": self.shards} if self.format == "webdataset" else {})
