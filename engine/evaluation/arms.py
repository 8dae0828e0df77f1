"""The arms of a comparison: what each of them trains on, and how. Controls isolate one cause each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.data.dataset import Dataset
from engine.data.sources import UNLABELLED
from engine.detection.samples import Source
from engine.errors import ConfigError
from engine.evaluation.controls import mean_score, permuted, unlabelled, with_source_labels, without_ignore
from engine.sections import CONTROLS, CompareSettings

BASELINE, TREATMENT, LONGER, TOGETHER = "real", "real+de", "real_longer", "arms+de"
STRONG = "strong_augmentation"
# What the search for leaks calls the datasets of every comparison.
_DATASETS = ("train", "generated", "val", "test", UNLABELLED)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # arms are folders


@dataclass(frozen=True)
class ArmPlan:
    """Datasets with their shares of a batch, and how many times the usual number of steps to train for.

    baseline: the arm that its difference is taken to. detector: settings of the detector that are other than usual.
    """

    name: str
    sources: tuple[Source, ...]
    steps_factor: float
    note: str
    baseline: str = BASELINE
    detector: Mapping = field(default_factory=dict)


def plan_arms(
    real: Dataset, generated: Dataset, settings: CompareSettings, further: Mapping[str, Dataset] | None = None
) -> list[ArmPlan]:
    """The baseline, the treatment, further generated datasets by name, and the controls that the settings name.

    Raises:
        ConfigError: an unknown control, or a name that is taken or cannot be a folder's.
    """
    share = settings.generated_share

    def mixed(name: str, data: Dataset, note: str, share: float = share, factor: float = 1.0, **more) -> ArmPlan:
        return ArmPlan(name, (Source(real, 1 - share), Source(data, share)), factor, note, **more)

    def generated_first() -> ArmPlan:
        until = settings.generated_until
        sources = (Source(real, 1 - share), Source(generated, share, last=until))
        return ArmPlan("generated_first", sources, 1.0, f"mixed for {until:.0%} of the steps, then real alone")

    def pretrained() -> ArmPlan:
        until = settings.generated_until
        sources = (Source(real, first=until), Source(generated, last=until))
        return ArmPlan("pretrained", sources, 1.0, f"generated images alone for {until:.0%} of the steps, then real")

    def score_weighted() -> ArmPlan:
        weights = mean_score(generated)
        if not any(weights.values()):
            raise ConfigError("compare.controls: score_weighted needs generated images with scored labels.")
        sources = (Source(real, 1 - share), Source(generated, share, weights=weights))
        return ArmPlan("score_weighted", sources, 1.0, "a generated image is drawn as often as its mean score says")

    longer = 1 / (1 - share) if share < 1 else 1.0
    strong = {"augment": "strong"}
    controls: dict[str, Callable[[], ArmPlan]] = {
        "source_labels": lambda: mixed(
            "source_labels",
            with_source_labels(real, generated),
            "generated images, but with their source images' boxes",
        ),
        "equal_real": lambda: mixed(
            "equal_real",
            generated,
            f"trained longer, so that as many real samples are seen as in {BASELINE}",
            factor=longer,
            baseline=LONGER,
        ),
        LONGER: lambda: ArmPlan(LONGER, (Source(real),), longer, "real alone, with the steps of equal_real"),
        "quarter_share": lambda: mixed("quarter_share", generated, "a quarter of each batch is generated", 0.25),
        "no_ignore": lambda: mixed(
            "no_ignore", without_ignore(generated), "uncertain boxes count as background instead of being ignored"
        ),
        "unlabelled": lambda: mixed(
            "unlabelled",
            unlabelled(generated),
            "generated images without any box: as background",
            detector={"keep_negatives": True},
        ),
        "permuted": lambda: mixed(
            "permuted", permuted(generated), "every generated image has the boxes of another one: must hurt"
        ),
        STRONG: lambda: ArmPlan(STRONG, (Source(real),), 1.0, "real alone, with strong augmentation", detector=strong),
        f"{STRONG}+de": lambda: mixed(
            f"{STRONG}+de", generated, f"{TREATMENT}, with strong augmentation", baseline=STRONG, detector=strong
        ),
        "generated_first": generated_first,
        "pretrained": pretrained,
        "score_weighted": score_weighted,
    }
    names = list(dict.fromkeys(settings.controls))
    unknown = [name for name in names if name not in CONTROLS]
    if unknown:
        raise ConfigError(f"compare.controls: unknown {', '.join(unknown)}. Known: {', '.join(CONTROLS)}.")
    for name, against in (("equal_real", LONGER), (f"{STRONG}+de", STRONG)):
        if name in names and against not in names:
            names.insert(names.index(name), against)
    if share >= 1 and LONGER in names:
        raise ConfigError("compare.controls: equal_real needs compare.generated_share below 1.")
    further, taken = further or {}, (BASELINE, TREATMENT, *CONTROLS, *_DATASETS)
    for name in further:
        if not _NAME.fullmatch(name) or name in taken:
            raise ConfigError(
                f"--arm {name}=...: a name is letters, digits, '_', '.', '+' and '-', and none of those in use: "
                f"{', '.join(taken)}."
            )
    arms = [
        ArmPlan(BASELINE, (Source(real, 1.0),), 1.0, "the labelled training images alone"),
        mixed(TREATMENT, generated, f"{share:.0%} of each batch is generated and labelled by the adapter"),
    ]
    arms += [mixed(name, data, f"{share:.0%} of each batch is of {name}") for name, data in further.items()]
    if TOGETHER in names:
        names.remove(TOGETHER)
        arms += _together(real, generated, share, further)
    return arms + [controls[name]() for name in names]


def _together(real: Dataset, generated: Dataset, share: float, further: Mapping[str, Dataset]) -> list[ArmPlan]:
    """Each further dataset and the generated images, half of the share each, measured against the dataset alone."""
    if not further:
        raise ConfigError(f"compare.controls: {TOGETHER} needs a dataset to put generated images beside: --arm.")
    taken = sorted(set(further) & {f"{name}+de" for name in further})
    if taken:
        raise ConfigError(f"--arm {taken[0]}=...: compare.controls: {TOGETHER} makes an arm of that name.")
    note = f"{share / 2:.0%} of each batch is of {{}}, {share / 2:.0%} generated"
    return [
        ArmPlan(
            f"{name}+de",
            (Source(real, 1 - share), Source(data, share / 2), Source(generated, share / 2)),
            1.0,
            note.format(name),
            baseline=name,
        )
        for name, data in further.items()
    ]
