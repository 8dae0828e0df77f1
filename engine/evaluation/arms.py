"""The arms of a comparison: what each of them trains on. Controls isolate one cause each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from engine.config import CompareSettings
from engine.data.dataset import Annotation, Dataset
from engine.detection.samples import Source
from engine.errors import ConfigError

BASELINE, TREATMENT = "real", "real+de"


@dataclass(frozen=True)
class ArmPlan:
    """Datasets with their shares of a batch, and how many times the usual number of steps to train for."""

    name: str
    sources: tuple[Source, ...]
    steps_factor: float
    note: str


def plan_arms(real: Dataset, generated: Dataset, settings: CompareSettings) -> list[ArmPlan]:
    """The baseline, the treatment, and the controls that the settings name.

    Raises:
        ConfigError: an unknown control.
    """
    share = settings.generated_share

    def mixed(name: str, data: Dataset, note: str, share: float = share, factor: float = 1.0) -> ArmPlan:
        return ArmPlan(name, (Source(real, 1 - share), Source(data, share)), factor, note)

    controls: dict[str, Callable[[], ArmPlan]] = {
        "source_labels": lambda: mixed(
            "source_labels",
            with_source_labels(real, generated),
            "generated images, but with their source images' boxes",
        ),
        "equal_real": lambda: mixed(
            "equal_real",
            generated,
            "trained longer, so that as many real samples are seen as in the baseline",
            factor=1 / (1 - share),
        ),
        "quarter_share": lambda: mixed("quarter_share", generated, "a quarter of each batch is generated", 0.25),
        "no_ignore": lambda: mixed(
            "no_ignore", without_ignore(generated), "uncertain boxes count as background instead of being ignored"
        ),
    }
    unknown = [name for name in settings.controls if name not in controls]
    if unknown:
        raise ConfigError(f"compare.controls: unknown {', '.join(unknown)}. Known: {', '.join(controls)}.")
    if share >= 1 and "equal_real" in settings.controls:
        raise ConfigError("compare.controls: equal_real needs compare.generated_share below 1.")
    arms = [
        ArmPlan(BASELINE, (Source(real, 1.0),), 1.0, "the labelled training images alone"),
        mixed(TREATMENT, generated, f"{share:.0%} of each batch is generated and labelled by the adapter"),
    ]
    return arms + [controls[name]() for name in settings.controls]


def accepted_only(generated: Dataset, accepted: set[int]) -> Dataset:
    """The generated dataset without the images that review rejected."""
    return dataclasses.replace(
        generated,
        images=tuple(image for image in generated.images if image.id in accepted),
        annotations=tuple(a for a in generated.annotations if a.image_id in accepted),
    )


def without_ignore(dataset: Dataset) -> Dataset:
    """The dataset without its ignore regions: what they cover becomes background."""
    return dataclasses.replace(dataset, annotations=tuple(a for a in dataset.annotations if not a.iscrowd))


def with_source_labels(real: Dataset, generated: Dataset) -> Dataset:
    """Generated images with the boxes of the real images that they were drawn from, scaled to their size."""
    sources = {image.id: image for image in real.images}
    annotations: list[Annotation] = []
    for image in generated.images:
        source = sources[image.extra["de"]["source_image_id"]]
        sx, sy = image.width / source.width, image.height / source.height
        for box in real.annotations_of(source.id):
            x, y, w, h = box.bbox_xywh
            annotations.append(
                dataclasses.replace(
                    box,
                    id=len(annotations) + 1,
                    image_id=image.id,
                    area=box.area * sx * sy,
                    bbox_xywh=(x * sx, y * sy, w * sx, h * sy),
                    extra={},
                )
            )
    return dataclasses.replace(generated, annotations=tuple(annotations))
