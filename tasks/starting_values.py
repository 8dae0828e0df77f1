"""The first settings of a new workspace: few, and chosen for its images and its diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from engine.config import load_settings
from engine.data.dataset import Dataset
from engine.errors import ConfigError
from engine.ldm import embedded_folder
from engine.ldm.native_size import native_size
from engine.sections import LdmSettings
from tasks.settings import EMBEDDED

STEP = 32  # pixels; sides of every family are multiples of a divisor of it
ROOM = 1.5  # a small model still draws well at so many times the size that it was trained at
PASSES, LEAST_STEPS, MOST_STEPS = 60, 2000, 90_000  # of the adapter on a large model; the last is the paper's
SMALL_STEPS, SMALL_BATCH, LARGE_BATCH = 600, 12, 16
DETECTOR_SIDE = 320  # more costs much time for a first answer


@dataclass(frozen=True)
class StartingValues:
    """What the templates of a workspace's files are filled with.

    Attributes:
        ldm, revision: the diffusion model as `ldm.id` and `ldm.revision` name it.
        small: the model recommends settings of its own, being small (engine.json in its folder).
        resolution, why_resolution: short edge in pixels at which it works, and the reason in words.
        images, edge: training images, and the median of their short edges in pixels.
        unlabelled: there are pictures without labels to draw from too.
        adapter_steps, adapter_passes: steps, and how often they show each training image.
    """

    ldm: str
    revision: str | None
    small: bool
    resolution: int
    why_resolution: str
    domain: str
    images: int
    edge: int
    adapter_steps: int
    adapter_passes: int
    detector_resolution: int
    unlabelled: bool = False


def name_ldm(ldm: str, revision: str | None) -> str:
    """A diffusion model as params.yaml names it: "world", a hub id, or an absolute folder.

    Raises:
        ConfigError: a revision for what is no hub id. ModelError: there is no such model.
    """
    folder = Path(ldm).expanduser()
    local = ldm == EMBEDDED or folder.exists()
    if local and revision:
        raise ConfigError(
            f"--revision {revision}: {ldm} is on this machine. Only a hub id has revisions; leave it out."
        )
    if ldm == EMBEDDED or not folder.exists():
        return ldm
    return str(folder.resolve())


def choose_values(
    train: Dataset, ldm: str, revision: str | None, domain: str, unlabelled: bool = False
) -> StartingValues:
    """Choose the first settings for these training images.

    Args:
        train: at least one image.
        ldm: see `name_ldm`.
        domain: what the images are, in the prompts' words.
        unlabelled: there are pictures without labels to draw from too.

    Raises:
        ModelError: no such diffusion model, or one that cannot be read here.
        ConfigError: its engine.json is faulty.
    """
    folder = embedded_folder() if ldm == EMBEDDED else Path(ldm)
    native = native_size(ldm, revision)
    small = (folder / "engine.json").is_file()
    edge = round(median(min(image.width, image.height) for image in train.images))
    if small:
        recommended = load_settings(ldm_folder=folder).ldm.resolution
        resolution, why = _small_resolution(recommended, edge)
    else:
        resolution, why = _large_resolution(native, edge)
    count = len(train.images)
    steps = SMALL_STEPS if small else min(MOST_STEPS, max(LEAST_STEPS, round(PASSES * count / LARGE_BATCH, -2)))
    seen = steps * (SMALL_BATCH if small else LARGE_BATCH)
    return StartingValues(
        ldm=ldm,
        revision=revision,
        small=small,
        resolution=resolution,
        why_resolution=why,
        domain=domain,
        images=count,
        edge=edge,
        adapter_steps=steps,
        adapter_passes=max(1, round(seen / count)),
        detector_resolution=resolution if small else max(STEP, _whole(min(edge, DETECTOR_SIDE))),
        unlabelled=unlabelled,
    )


def _small_resolution(recommended: int, edge: int) -> tuple[int, str]:
    most = _whole(ROOM * recommended)
    resolution = max(recommended, min(most, _whole(edge)))
    return resolution, f"it was trained at {recommended}, and draws up to about {most}"


def _large_resolution(native: int | None, edge: int) -> tuple[int, str]:
    """A large model draws well at its own size only, whatever the images' is."""
    if native is None:
        assumed = LdmSettings().resolution
        return assumed, "assumed, since the model is not on this machine yet; `de ldm-info` and its page tell"
    if edge > 2 * native:
        return (
            native,
            f"its own size; your images are larger, and objects below {round(32 * edge / native)} px shrink much",
        )
    return native, "its own size"


def _whole(pixels: float) -> int:
    """Down to a multiple of STEP."""
    return int(pixels // STEP) * STEP
