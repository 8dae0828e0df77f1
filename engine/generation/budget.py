"""How many images a stated budget of time and disk allows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.data.sources import read_sources
from engine.errors import ConfigError
from engine.generation.calibration import calibrate
from engine.generation.disk import ImageSize, estimate, free_bytes, readable_bytes
from engine.generation.plan import make_plan
from engine.generation.preview import LEAST_DRAWN
from engine.generation.source import DrawerSource
from engine.sections import ScaleUpSettings

GB = 10**9


@dataclass(frozen=True)
class Measured:
    """seconds_per_image: of one worker; size: of an image on the disk."""

    seconds_per_image: float
    size: ImageSize


@dataclass(frozen=True)
class Allowed:
    """How many images, and the setting that allows no more."""

    images: int
    limited_by: str


def measure(source: DrawerSource, images: int, seed: int) -> Measured:
    """Draw a few of so many images for the clock, in a temporary folder that is removed. Loads the models.

    Raises:
        ConfigError, DatasetError, ModelError, RunFailed: as `engine.generation.preview.preview`.
    """
    drawer = source.load()
    dataset = read_sources(source.data, source.settings.generation.unlabelled)
    plan = make_plan(dataset, images, seed, source.settings, drawer.identity)
    found = calibrate(plan, drawer, max(LEAST_DRAWN, source.settings.generation.rows_per_call))
    return Measured(found.seconds_per_image, found.size or estimate(plan, dataset))


def allowed_images(settings: ScaleUpSettings, measured: Measured, workers: int, out: Path) -> Allowed:
    """The largest number that keeps `images_max`, `hours` (with so many workers at once) and `disk_gb` of `out`.

    Raises:
        ConfigError: not even one image; says which setting or disk is in the way.
    """
    limits = {"images_max": settings.images_max}
    if settings.hours:
        limits["hours"] = int(settings.hours * 3600 * workers / measured.seconds_per_image)
    room = free_bytes(out) - settings.disk_gb * GB
    limits["disk_gb"] = max(0, int(room / measured.size.bytes_on_disk))
    name = min(limits, key=limits.get)
    if not limits[name] and name == "disk_gb":
        raise ConfigError(no_room(settings, out))
    if not limits[name]:
        raise ConfigError(
            f"scale_up.hours={settings.hours:g} is too short for one image, which takes "
            f"{measured.seconds_per_image / workers:.3g} s here. Allow more hours."
        )
    return Allowed(limits[name], name)


def check_disk_left(settings: ScaleUpSettings, out: Path) -> None:
    """Refuse to go on where the disk of `out` has less free than is to be left.

    Raises:
        ConfigError: says how much is free.
    """
    if free_bytes(out) < settings.disk_gb * GB:
        raise ConfigError(no_room(settings, out))


def no_room(settings: ScaleUpSettings, out: Path) -> str:
    """The message where the disk of `out` is too full."""
    return (
        f"The disk of {out} has {readable_bytes(free_bytes(out))} free, and scale_up.disk_gb says to leave "
        f"{readable_bytes(settings.disk_gb * GB)}. Make room, or lower it; the night goes on where it is."
    )
