"""Committed shards become one dataset folder: the same bytes from the same plan, whoever drew what, and when."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from engine.config import digest
from engine.errors import RunFailed
from engine.generation.durable import replace_durably, sync_folder, to_json
from engine.generation.lock import lock
from engine.generation.plan import Plan, item_file
from engine.generation.plan_file import load_plan
from engine.generation.records import FAILED, KEPT, ShardCounts, count
from engine.generation.shard import remove_leftovers
from engine.generation.shard_state import BadShard, Shard, image_name, read_shard

VERSION = 1
MAX_LISTED = 20
_OURS = re.compile(r"\.?(\d{9,})\.jpg(\.part)?")


def merge(out: Path) -> dict:
    """Make `images/`, `annotations.json` and `manifest.json` of a run from its shards.

    Holds one shard's records in memory at a time. Images are hard links to those of the shards (copies where the disk
    has no links). manifest.json is written last.

    Returns:
        The content of manifest.json.

    Raises:
        RunFailed: shards are missing or bad (they are listed), or the counts do not add up.
        DatasetError: no plan, or a damaged one.
    """
    plan = load_plan(out)
    with lock(out / ".merge.lock", f"The merge of {out}", wait=True):
        remove_leftovers(out)
        shards = _all_shards(out, plan)
        (out / "images").mkdir(exist_ok=True)
        merged = _Merged(out, plan)
        annotations_sha256 = replace_durably(out / "annotations.json", merged.chunks(shards))
        merged.remove_strangers()
        sync_folder(out / "images")
        manifest = merged.manifest(annotations_sha256)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
        replace_durably(out / "manifest.json", [text.encode("ascii") + b"\n"])
    return manifest


def _all_shards(out: Path, plan: Plan) -> list[Shard]:
    shards, bad = [], []
    for number in range(plan.shards):
        try:
            shards.append(read_shard(out, plan, number))
        except BadShard as reason:
            bad.append(f"{number} ({reason})")
    if bad:
        more = f" and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise RunFailed(
            f"{out}: {len(bad)} of {plan.shards} shards are not done: {', '.join(bad[:MAX_LISTED])}{more}. "
            "Give the command that generates again: it draws only these."
        )
    return shards


class _Merged:
    """One pass over all records: the lines of annotations.json, the links, and what the manifest tells."""

    def __init__(self, out: Path, plan: Plan):
        self.out, self.plan = out, plan
        self.counts = ShardCounts()
        self.classes = defaultdict(lambda: {"images": 0, "boxes": 0, "ignored": 0})
        self.failed_items: list[dict] = []
        self.kept = bytearray(plan.images + 1)  # by item number
        self.images_sha256 = hashlib.sha256()
        identity = plan.spec["identity"]
        self.marks = {"ldm": short(identity.get("ldm")), "adapter": short(identity.get("adapter"))}
        self.marks["plan"] = plan.digest[:16]

    def chunks(self, shards: list[Shard]) -> Iterator[bytes]:
        """annotations.json in pieces. The annotations wait in an unnamed file until all images are through."""
        with tempfile.TemporaryFile(dir=self.out) as waiting:
            yield b'{"images":['
            annotation_id, first = 0, True
            for record, shard in self._records(shards):
                yield (b"\n" if first else b",\n") + to_json(self._image(record))
                first = False
                _place(shard.folder / image_name(record["item"]), self.out / image_name(record["item"]))
                for box in record["boxes"]:
                    annotation_id += 1
                    waiting.write(b",\n" if annotation_id > 1 else b"\n")
                    waiting.write(to_json(_annotation(annotation_id, record["item"], box)))
            yield b'],\n"annotations":['
            waiting.seek(0)
            yield from iter(lambda: waiting.read(1 << 20), b"")
        categories = [{"id": i, "name": name, "supercategory": above} for i, name, above in self.plan.categories]
        yield b'],\n"categories":' + to_json(categories) + b"}\n"

    def _records(self, shards: list[Shard]) -> Iterator[tuple[dict, Shard]]:
        """Kept records in plan order; all others are counted on the way."""
        for shard in shards:
            try:
                records = list(shard.records())
            except (BadShard, OSError) as reason:
                raise RunFailed(f"{shard.folder}: {reason}. Generate again to have it drawn again.") from None
            counts = count(records)
            if counts != shard.counts:
                raise RunFailed(f"{shard.folder}: shard.json counts {shard.counts}, its records say {counts}.")
            self.counts += counts
            for record in records:
                if record["status"] == KEPT:
                    self._note(record, shard)
                    yield record, shard
                elif record["status"] == FAILED and len(self.failed_items) < MAX_LISTED:
                    self.failed_items.append({k: record[k] for k in ("item", "reason", "error")})
        if not self.counts.adds_up or self.counts.planned != self.plan.images:
            raise RunFailed(f"{self.out}: {self.plan.images} items were planned, the shards tell of {self.counts}.")

    def _note(self, record: dict, shard: Shard) -> None:
        self.kept[record["item"]] = 1
        name = image_name(record["item"])
        self.images_sha256.update(f"{name} {shard.files[name]['sha256']}\n".encode("ascii"))
        for box in record["boxes"]:
            self.classes[box["category_id"]]["ignored" if box["iscrowd"] else "boxes"] += 1
        for category_id in {box["category_id"] for box in record["boxes"] if not box["iscrowd"]}:
            self.classes[category_id]["images"] += 1

    def _image(self, record: dict) -> dict:
        item = self.plan.item(record["item"])
        names = (
            "item",
            "mode",
            "source_image_id",
            "seed",
            "strength",
            "guidance_scale",
            "eta",
            "prompt",
            "negative_prompt",
        )
        return {
            "id": item.item,
            "file_name": item_file(item.item),
            "width": record["width"],
            "height": record["height"],
            "de": {name: getattr(item, name) for name in names} | self.marks,
        }

    def remove_strangers(self) -> None:
        """Take images of an earlier merge away whose items are not kept any more; foreign files stay."""
        for name in os.listdir(self.out / "images"):
            match = _OURS.fullmatch(name)
            number = int(match[1]) if match else 0
            kept = number <= self.plan.images and self.kept[number] and name == item_file(number)
            if match and not kept:
                os.unlink(self.out / "images" / name)

    def manifest(self, annotations_sha256: str) -> dict:
        """What the run was and what came of it. Nothing of the machine, the time, or how the work was cut up."""
        return {
            "version": VERSION,
            "plan": self.plan.digest,
            **{name: self.plan.spec[name] for name in ("seed", "images", "data", "identity", "settings")},
            "counts": self.counts.as_dict(),
            "classes": [{"id": i, "name": name} | self.classes[i] for i, name, _ in self.plan.categories],
            "failed_items": self.failed_items,
            "annotations_sha256": annotations_sha256,
            "images_sha256": self.images_sha256.hexdigest(),
        }


def short(part) -> str:
    """16 letters that stand for a model in an image's record: of its weights' sha256, else of its identity's."""
    known = part.get("weights_sha256") if isinstance(part, dict) else None
    return (known if isinstance(known, str) else digest(part))[:16]


def _annotation(annotation_id: int, image_id: int, box: dict) -> dict:
    x, y, w, h = box["bbox"]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": box["category_id"],
        "bbox": [x, y, w, h],
        "area": round(w * h, 4),
        "iscrowd": box["iscrowd"],
        "score": box["score"],
    }


def _place(source: Path, target: Path) -> None:
    """Let `target` be `source`'s content, never half of it."""
    try:
        os.link(source, target)
        return
    except FileExistsError:
        if os.path.samefile(source, target):
            return
    except OSError:
        pass  # a disk without hard links
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)
