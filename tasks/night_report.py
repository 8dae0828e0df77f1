"""Prefect task: the report of a night, for people in Prefect's UI and `report.md`, for machines by the webhook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from engine.data.files import write_atomically
from tasks.night_file import PROMOTED, Night, Nights
from tasks.webhook import notify

FILE = "report.md"


@task(name="report-night", cache_policy=NO_CACHE, persist_result=False)
def report_night(nights: Nights, night: Night, url: str) -> Path:
    """Write report.md, show it in Prefect, and tell the webhook at `url`, if any. Returns its path."""
    text = night_text(nights, night)
    path = nights.folder_of(night) / FILE
    write_atomically(path, text.encode("utf-8", errors="replace"))
    create_markdown_artifact(text, "night", f"Night {night.number}: {night.ruling or 'waits for a review'}")
    notify(url, message(night, _waiting(night).headline))
    return path


def _waiting(night: Night) -> Night:
    """It is reported in the middle only when it comes to wait for a person, right before that is written down."""
    return night if night.ruling else replace(night, waits_for="")


def message(night: Night, text: str) -> dict:
    """What a webhook is told; `text` is what chat programs show."""
    comparison = dict(night.comparison) if night.comparison else None
    return {"text": text, "night": night.number, "verdict": night.ruling, "comparison": comparison}


def night_text(nights: Nights, night: Night) -> str:
    """The report in markdown."""
    folder, plan, drawn, review = nights.folder_of(night), night.plan, night.drawn, night.review
    lines = [f"# Night {night.number}", "", _waiting(night).headline, ""]
    lines += [f"- Planned: {plan['images']} images (limit: {plan['limited_by']}), seed {night.number}"]
    weights = ", ".join([*plan["class_weights"], *plan.get("size_weights", ())]) or "all classes and sizes alike"
    lines += [f"- Weights: {weights}" + (f", from `{plan['weak_in']}`" if plan["weak_in"] else "")]
    if plan.get("requests"):
        lines += [f"- What reviewers asked for: `{plan['requests']}`"]
    lines += [f"- Drawn: {drawn['kept']} with {drawn['boxes']} boxes"]
    by = "a person" if night.looked else "the gates"
    reasons = ", ".join(f"{count} {reason}" for reason, count in review.get("reasons", {}).items())
    rejected = f" (rejected: {reasons})" if reasons else ""
    lines += [f"- Accepted by {by}: {review['accepted']} of {review['images']}{rejected}"]
    if night.pool_images is not None:
        lines += [f"- Pool with this night: {night.pool_images} images, before: `{night.base or 'none'}`"]
    if night.comparison:
        mean, low, high = (f"{100 * night.comparison[name]:+.1f}" for name in ("mean", "low", "high"))
        lines += [f"- Real + pool minus real: {mean} mAP (95 % interval {low} to {high})"]
        lines += [f"- Comparison: `{folder / 'comparison' / 'report.html'}`"]
    lines += _consequence(nights, night)
    if night.ruling is None:
        lines += [
            "",
            f"Look: `de app {folder / 'generated'}`; then resume the flow run, or run it with `reviewed=true`.",
        ]
    return "\n".join(lines) + "\n"


def _consequence(nights: Nights, night: Night) -> list[str]:
    """What became of the night's images, and the way back."""
    if night.ruling is None:
        return []
    if night.ruling != PROMOTED:
        return [f"- Its images stay in `{nights.folder_of(night)}` as a candidate, out of the pool that is trained on"]
    lines = []
    if night.version:
        back = "brings it back, and the next night builds on that"
        lines += [f"- Version: `{night.version}`; `de checkout {night.version}` {back}"]
    return lines + ([f"- {'Not in the remote' if night.version else 'No version'}: {night.note}"] if night.note else [])
