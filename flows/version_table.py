"""Versions as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.evaluation.statistics import in_points
from engine.generation.disk import readable_bytes

if TYPE_CHECKING:
    from tasks.version_entry import Version

HEAD = ("version", "kind", "date", "size", "files", "AP of labels", "real + DE - real", "verdict", "parents")


def version_table(versions: Sequence[Version]) -> str:
    """One line a version; words where there is none."""
    if not versions:
        return "No versions yet. A recorded run with a name makes one: `de record STAGE NAME`, or a flow's `version`."
    lines = [HEAD, *(_row(version) for version in versions)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def _row(version: Version) -> tuple[str, ...]:
    if version.note:
        return (version.name, version.kind, version.date[:10], "-", "-", "-", "-", version.verdict, version.note)
    score = version.metrics.get("adapter_ap")
    return (
        version.name,
        version.kind,
        version.date[:10],
        readable_bytes(version.size_bytes),
        str(version.files),
        "-" if score is None else f"{100 * score:.1f}",
        _difference(version.metrics.get("comparison")),
        f"{version.verdict}: {_cut(version.reason)}",
        ", ".join(f"{option} {_parent(parent)}" for option, parent in version.parents.items()) or "-",
    )


def _difference(comparison: Mapping | None) -> str:
    if comparison is None:
        return "-"
    return in_points(comparison["difference"], comparison["ci95"])


def _parent(parent: Mapping) -> str:
    """The version where it is one, else what was given, with the beginning of its digest."""
    if "version" in parent:
        return str(parent["version"])
    digest = parent.get("weights_sha256") or parent.get("sha256") or parent.get("md5")
    return f"{parent.get('given')}{f' ({str(digest)[:8]})' if digest else ''}"


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
