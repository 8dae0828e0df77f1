"""The state of a workspace as a text for people."""

from __future__ import annotations

from collections.abc import Sequence

from flows.text_table import columns, pairs
from tasks.inventory import ADAPTER, COMPARISON, DATASET, GENERATED, LDM, Found
from tasks.status import Status

_SHOWN = 7  # nights
_SPLITS = ("train", "val", "test")


def status_table(status: Status) -> str:
    """Aligned lines, a block for each kind of thing that there is."""
    of_kind = {
        kind: [entry for entry in status.found if entry.kind == kind and entry.content is not None]
        for kind in (DATASET, LDM, ADAPTER, GENERATED, COMPARISON)
    }
    blocks = [
        pairs(_about(status)),
        columns(("dataset", *_SPLITS, "others", "boxes", "disk"), [_dataset(e) for e in of_kind[DATASET]]),
        columns(("diffusion model", "fitted from", "disk"), [_ldm(e) for e in of_kind[LDM]]),
        columns(("adapter", "AP on val", "head", "classes", "disk"), [_adapter(e) for e in of_kind[ADAPTER]]),
        columns(
            ("generated", "planned", "kept", "dropped", "failed", "boxes", "shards", "accepted", "disk"),
            [_generated(e) for e in of_kind[GENERATED]],
        ),
        _answers(of_kind[COMPARISON]),
        _nights(status),
        columns(("version", "set on"), [(version.tag, version.day) for version in status.versions]),
        _flows(status),
        _problems(status),
    ]
    return "\n\n".join(block for block in blocks if block)


def _about(status: Status) -> list[tuple[str, str]]:
    held = " and ".join(name for name, there in (("git", status.git), ("DVC", status.dvc)) if there)
    rows = [("workspace", f"{status.folder} ({held or 'neither git nor DVC'})")]
    if status.cache_bytes is not None:
        rows.append(("DVC's cache", _bytes(status.cache_bytes)))
    if not status.found:
        rows.append(("found", "nothing yet; `de import` brings a dataset in, `de init` makes a workspace around one"))
    return rows


def _dataset(entry: Found) -> tuple:
    images = entry.content.images
    others = sum(count for split, count in images.items() if split not in _SPLITS)
    counts = [images.get(split, "-") for split in _SPLITS]
    return entry.folder, *counts, others or "-", sum(entry.content.boxes.values()), _bytes(entry.disk_bytes)


def _ldm(entry: Found) -> tuple:
    model = entry.content
    return entry.folder, f"{model.base} ({model.method})" if model.base else "-", _bytes(entry.disk_bytes)


def _adapter(entry: Found) -> tuple:
    card = entry.content
    ap = "-" if card.ap is None else f"{100 * card.ap:.1f}"
    return entry.folder, ap, card.head, card.classes, _bytes(entry.disk_bytes)


def _generated(entry: Found) -> tuple:
    run = entry.content
    shards = "elsewhere" if run.shards is None else f"{run.shards_done}/{run.shards}"
    accepted = "?" if run.review_problem else "not reviewed" if run.accepted is None else run.accepted
    counts = (run.planned, run.kept, run.dropped, run.failed, run.boxes)
    return entry.folder, *counts, shards, accepted, _bytes(entry.disk_bytes)


def _answers(comparisons: Sequence[Found]) -> str:
    if not comparisons:
        return ""
    rows = [("comparison", "")]
    for entry in comparisons:
        rows.append((entry.folder, entry.content.verdict))
        rows.append(("", f"{entry.content.seeds} seeds, {_bytes(entry.disk_bytes)}"))
    return pairs(rows)


def _flows(status: Status) -> str:
    flows = status.flows
    if flows.server is None:
        return "Prefect: no server (`de up` starts one)."
    if flows.problem:
        return f"Prefect: a server answers at {flows.server}, but {flows.problem}."
    if not flows.runs:
        return f"Prefect: nothing runs at {flows.server}."
    rows = [(f"{run.flow}/{run.name}", run.state.lower(), run.started or "-") for run in flows.runs]
    return columns((f"flow run at {flows.server}", "state", "since"), rows)


def _nights(status: Status) -> str:
    """The last few, and in words how the very last one went."""
    if not status.nights:
        return ""
    rows = []
    for night in status.nights[-_SHOWN:]:
        planned, accepted = (night.plan or {}).get("images", "-"), (night.review or {}).get("accepted", "-")
        cells = (night.verdict or "not over", planned, accepted, night.pool_images or "-", night.version or "-")
        rows.append((f"{night.number:04d}", *cells))
    head = (f"night ({_bytes(status.nights_bytes)} in all)", "verdict", "planned", "accepted", "with pool", "version")
    last = status.nights[-1]
    lines = [columns(head, rows), f"{last.headline} {last.note or ''}".rstrip()]
    lines += [f"More in nights/{last.number:04d}/report.md."] if last.ruling else []
    lines += [f"`de checkout {last.version}` brings its pool back."] if last.version else []
    return "\n".join(lines)


def _problems(status: Status) -> str:
    found = status.found
    lines = [f"{entry.folder} ({entry.kind}): {entry.problem}" for entry in found if entry.problem]
    lines += [f"nights: {status.nights_problem}"] if status.nights_problem else []
    lines += [
        f"{entry.folder}: {entry.content.review_problem}"
        for entry in found
        if entry.kind == GENERATED and entry.content is not None and entry.content.review_problem
    ]
    return "\n".join(["Problems:", *(f"  {line}" for line in lines)]) if lines else ""


def _bytes(count: float) -> str:
    from engine.generation.disk import readable_bytes

    return readable_bytes(count)
