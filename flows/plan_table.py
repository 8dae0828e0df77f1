"""The figures of `de plan` as a text for people."""

from __future__ import annotations

from collections.abc import Mapping

from flows.text_table import columns, pairs

MAX_TEXT = 90  # characters of a prompt that are shown


def plan_table(report: Mapping) -> str:
    """Aligned lines from what `engine.generation.preview.preview` returns."""
    blocks = [
        pairs(_about(report)),
        columns(("class", "weight", "real objects", "images", "objects"), [_class_row(c) for c in report["classes"]]),
        columns(("encode ratio", "images"), list(report["strengths"].items())),
    ]
    if report["modes"]["text_to_image"]:
        blocks[1] += "\nObjects are those of the source images; what is drawn from words alone may hold others."
    if len(report["styles"]) > 1:
        blocks.append(columns(("style", "images"), [(_cut(style), n) for style, n in report["styles"].items()]))
    return "\n\n".join(block for block in blocks if block)


def _about(report: Mapping) -> list[tuple[str, str]]:
    disk, prompts = report["disk"], report["prompts"]
    per_source = report["items"] / report["sources"]
    modes = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in report["modes"].items() if n)
    there = f", {report['shards_there']} of them are there" if report["shards_there"] else ""
    return [
        ("plan", report["plan"][:16]),
        ("images", f"{report['items']} ({modes})"),
        ("sources", f"{report['sources']} of {report['sources_in_split']}, {per_source:.3g} images of each on average"),
        ("sizes", ", ".join(f"{size} px: {n}" for size, n in list(report["sizes"].items())[:4])),
        ("prompts", f"{prompts['different']} different"),
        *(("", f'"{_cut(prompt)}"') for prompt in prompts["examples"]),
        ("shards", f"{report['shards']} of up to {report['shard_size']} images{there}"),
        (
            "disk",
            f"{_bytes(disk['needed_bytes'])} needed, {_bytes(disk['free_bytes'])} free in {report['out']}",
        ),
        ("", f"a jpeg of {_bytes(disk['jpeg_bytes'])} and {disk['boxes']:.3g} boxes an image, from {disk['from']}"),
        *_time(report["time"]),
    ]


def _time(time: Mapping | None) -> list[tuple[str, str]]:
    if time is None:
        return [("time", "not measured")]
    short = f", of which {time['at_once']} can work at once" if time["at_once"] < time["workers"] else ""
    workers = "1 worker" if time["workers"] == 1 else f"{time['workers']} workers"
    return [
        ("time", f"{_seconds(time['wall_seconds'])} with {workers}{short}; {time['hours']:.3g} {time['unit']}-hours"),
        (
            "",
            f"{time['drawn']} images drawn on {time['device']} at {time['seconds_per_image']:.3g} s each after one of "
            f"{time['first_seconds']:.3g} s; {100 * time['kept']:.0f} % of them kept",
        ),
    ]


def _class_row(row: Mapping) -> tuple:
    return row["name"], f"{row['weight']:g}", row["real_objects"], row["images"], row["objects"]


def _cut(text: str) -> str:
    text = " ".join(text.split()) or "(no words)"
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _bytes(count: float) -> str:
    from engine.generation.disk import readable_bytes

    return readable_bytes(count)


def _seconds(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
