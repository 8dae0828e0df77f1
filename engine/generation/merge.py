"""Committed shards become one dataset folder: the same bytes from the same plan, whoever drew what, and when."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from engine.config import digest
from engine.curation.gates_file import gates_summary
from engine.errors import RunFailed
from engine.generation.card_mark import remove_outdated_card
from engine.generation.durable import replace_durably, sync_folder, to_json
from engine.generation.lock import lock
from engine.generation.plan import Plan, item_file
from engine.generation.plan_file import load_plan
from engine.generation.records import FAILED, KEPT, ShardCounts, count
from engine.generation.shard_state import BadShard, Shard, image_name, read_shard, read_shards
from engine.generation.store import Store, open_store

VERSION = 1
MAX_LISTED = 20
_OURS = re.compile(r"\.?(\d{9,})\.jpg(\.part)?")


def merge(out: Path, store: Path | str | Store | None = None) -> dict:
    """Make `images/`, `annotations.json` and `manifest.json` in `out` from a run's shards.

    Holds one shard at a time in memory, and a byte per item. Images are hard links to those of the shards (copies
    where the disk has no links, or the shards are elsewhere). manifest.json is written last.

    Args:
        out: folder of the dataset, on this machine.
        store: folder or URL of plan and shards; None for `out` itself.

    Returns:
        The content of manifest.json.

    Raises:
        RunFailed: shards are missing or bad (they are listed), or the counts do not add up.
        DatasetError: no plan, or a damaged one.
    """
    store = open_store(out if store is None else store)
    plan = load_plan(store)
    with lock(out / ".merge.lock", f"The merge of {out}", wait=True):
        store.remove_leftovers()
        _want_every_shard(store, plan)
        (out / "images").mkdir(exist_ok=True)
        merged = _Merged(out, store, plan)
        annotations_sha256 = replace_durably(out / "annotations.json", merged.chunks())
        merged.remove_strangers()
        remove_outdated_card(out, annotations_sha256)
        sync_folder(out / "images")
        manifest = merged.manifest(annotations_sha256)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
        replace_durably(out / "manifest.json", [text.encode("ascii") + b"\n"])
    return manifest


def _want_every_shard(store: Store, plan: Plan) -> None:
    bad, listed = 0, []
    for number, found in read_shards(store, plan):
        if isinstance(found, BadShard):
            bad += 1
            listed += [f"{number} ({found})"] if bad <= MAX_LISTED else []
    if bad:
        more = f" and {bad - MAX_LISTED} more" if bad > MAX_LISTED else ""
        raise RunFailed(
            f"{store.location}: {bad} of {plan.shards} shards are not done: {', '.join(listed)}{more}. "
            "Give the command that generates again: it draws only these."
        )


class _Merged:
    """One pass over all records: the lines of annotations.json, the links, and what the manifest tells."""

    def __init__(self, out: Path, store: Store, plan: Plan):
        self.out, self.store, self.plan = out, store, plan
        self.counts = ShardCounts()
        self.classes = defaultdict(lambda: {"images": 0, "boxes": 0, "ignored": 0})
        self.failed_items: list[dict] = []
        self.kept = bytearray(plan.images + 1)  # by item number
        self.images_sha256 = hashlib.sha256()
        identity = plan.spec["identity"]
        self.marks = {"ldm": short(identity.get("ldm")), "adapter": short(identity.get("adapter"))}
        self.marks["plan"] = plan.digest[:16]

    def chunks(self) -> Iterator[bytes]:
        """annotations.json in pieces. The annotations wait in an unnamed file until all images are through."""
        with tempfile.TemporaryFile(dir=self.out) as waiting:
            yield b'{"images":['
            annotation_id, before = 0, b"\n"
            for records in self._kept():
                lines = []
                for record in records:
                    lines.append(self._image(record))
                    boxes, item = record["boxes"], record["item"]
                    text = "".join([_annotation(annotation_id + n, item, box) for n, box in enumerate(boxes, 1)])
                    waiting.write(text.encode("ascii"))
                    annotation_id += len(boxes)
                if lines:
                    yield before + b",\n".join(lines)
                    before = b",\n"
            yield b'],\n"annotations":['
            waiting.seek(0)
            yield waiting.read(2)[1:]  # the first line has none before it to be parted from
            yield from iter(lambda: waiting.read(1 << 20), b"")
        categories = [{"id": i, "name": name, "supercategory": above} for i, name, above in self.plan.categories]
        yield b'],\n"categories":' + to_json(categories) + b"}\n"

    def _kept(self) -> Iterator[list[dict]]:
        """The kept records of each shard, in plan order; its images are in place then, all other records counted."""
        for number in range(self.plan.shards):
            try:
                shard = read_shard(self.store, self.plan, number)
                records = list(shard.records())
                shard.content.place(shard.images, self.out)
            except (BadShard, FileNotFoundError) as reason:
                name = f"{self.store.location}/shards/{number:05d}"
                raise RunFailed(f"{name}: {reason}. `de resume {self.out} --verify` draws it again.") from None
            counts = count(records)
            if counts != shard.counts:
                raise RunFailed(f"{shard.name}: shard.json counts {shard.counts}, its records say {counts}.")
            self.counts += counts
            kept = [record for record in records if record["status"] == KEPT]
            for record in kept:
                self._note(record, shard)
            failed = [record for record in records if record["status"] == FAILED]
            for record in failed[: MAX_LISTED - len(self.failed_items)]:
                self.failed_items.append({k: record[k] for k in ("item", "reason", "error")})
            yield kept
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

    def _image(self, record: dict) -> bytes:
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
        return to_json(
            {
                "id": item.item,
                "file_name": item_file(item.item),
                "width": record["width"],
                "height": record["height"],
                "de": {name: getattr(item, name) for name in names} | self.marks,
            }
        )

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
        gates = gates_summary(self.out, annotations_sha256)  # of a review of these very labels
        return {
            "version": VERSION,
            "plan": self.plan.digest,
            **{name: self.plan.spec[name] for name in ("seed", "images", "data", "identity", "settings")},
            "counts": self.counts.as_dict(),
            "classes": [{"id": i, "name": name} | self.classes[i] for i, name, _ in self.plan.categories],
            "failed_items": self.failed_items,
            "annotations_sha256": annotations_sha256,
            "images_sha256": self.images_sha256.hexdigest(),
            **({} if gates is None else {"gates": gates}),
        }


def short(part) -> str:
    """16 letters that stand for a model in an image's record: of its weights' sha256, else of its identity's."""
    known = part.get("weights_sha256") if isinstance(part, dict) else None
    return (known if isinstance(known, str) else digest(part))[:16]


def _annotation(annotation_id: int, image_id: int, box: dict) -> str:
    """A line of annotations.json, with what parts it from the one before: as `to_json`, in less time."""
    x, y, w, h = box["bbox"]
    return (
        f',\n{{"id":{annotation_id},"image_id":{image_id},"category_id":{box["category_id"]},'
        f'"bbox":[{x!r},{y!r},{w!r},{h!r}],"area":{round(w * h, 4)!r},'
        f'"iscrowd":{box["iscrowd"]},"score":{box["score"]!r}}}'
    )
