"""A study step by step: for each case the adapter, the images, their review, the neighbours, the comparison.

Every step leaves its folder and is not done again; cases with the same labels share adapter and images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import as_dict, digest
from engine.curation.training_labels import accepted_images
from engine.data.across_domains import write_across_domains
from engine.data.dataset import read_dataset, splits_of
from engine.data.sources import TRAIN, UNLABELLED, has_unlabelled
from engine.data.subset import write_subset
from engine.errors import ConfigError
from engine.evaluation.study import study_of, write_study
from engine.ldm.folder import find_ldm, hash_weights
from engine.sections import Settings
from flows.claim import claim
from flows.study_presets import Case
from tasks.settings import ldm_settings

_SPLITS = (TRAIN, "val", "test", UNLABELLED)


@dataclass(frozen=True)
class StudyRequest:
    """What a study is of: the dataset, the model, images drawn per picture that may be drawn from, and the settings.

    style: words of the target domain behind the prompts of all that is drawn; None for generation.style of the
        settings, else the name of the target's folder. Only where there is a target.
    open_settings: the model and the checked settings, with overrides beside the user's.
    """

    preset: str
    real: Path
    target: Path | None
    out: Path
    times: float
    seed: int
    fit: bool
    seeds: int | None
    open_settings: Callable[[Sequence[str]], tuple[str, Settings]]
    style: str | None = None


def run_study(request: StudyRequest, cases: Sequence[Case], tell: Callable[[str], None]) -> dict:
    """Run every case and write study.json and study.html. Returns the content of study.json.

    Raises:
        RunConflict: `out` holds a study of other data, model or settings.
        DatasetError, ModelError, ConfigError, RunFailed: of the steps.
    """
    from engine.report.study_page import write_study_page

    _check(request, cases)
    _claim(request)
    results = {}
    for number, case in enumerate(cases, start=1):
        tell(f"{request.preset}, case {number} of {len(cases)}: {case.name}")
        results[case.name] = _run_case(request, case, tell)
        study = study_of(request.preset, results)  # after every case: a study that is stopped shows what it has
        write_study(request.out, study)
        write_study_page(request.out, study)
    return study


def _check(request: StudyRequest, cases: Sequence[Case]) -> None:
    """Refuse at once what a neighbour would refuse after hours."""
    from engine.evaluation.compare import check_objects

    if not any("attention" in case.neighbours for case in cases):
        return
    if request.open_settings(())[1].generation.prompt == "none":
        raise ConfigError(
            "de study neighbours: cross-attention is read between image and words, and generation.prompt is none. Set "
            "generation.prompt=caption, or template."
        )
    check_objects(read_dataset(request.real, "val"), "cross-attention's threshold is chosen on it")


def _claim(request: StudyRequest) -> None:
    """Write down what the study is of, or refuse a folder that holds another."""
    model, settings = request.open_settings(())
    sections = {name: values for name, values in as_dict(settings).items() if name not in ("compare", "scale_up")}
    wanted = {
        "preset": request.preset,
        **_splits("real", request.real),
        **_splits("target", request.target),
        "weights of the model": hash_weights(find_ldm(model, settings.ldm.revision)),
        "times": request.times,
        "seed": request.seed,
        "fit": request.fit,
        "style": _style(request, settings),
        "settings": digest(sections),
    }
    claim(request.out, wanted, "study")


def _splits(name: str, folder: Path | None) -> dict[str, str | None]:
    """{"NAME train": digest of its pictures and labels} and so on; None for a split that is not there."""
    there = [] if folder is None else [*splits_of(folder), *([UNLABELLED] if has_unlabelled(folder) else [])]
    return {f"{name} {s}": read_dataset(folder, s).digest() if s in there else None for s in _SPLITS}


def _run_case(request: StudyRequest, case: Case, tell: Callable[[str], None]) -> dict:
    from engine.evaluation.compare import compare

    drawing = () if case.unlabelled is None else (f"generation.unlabelled={str(case.unlabelled).lower()}",)
    model, settings = request.open_settings((*drawing, *case.overrides))
    style = _style(request, settings)
    settings = _with_controls(_styled(settings, style), case.controls)
    data = _dataset(request, case)
    key = data.name + ("-all" if settings.generation.unlabelled else "")
    if request.fit:
        model = _fitted(data, model, request.out / "ldm" / key, settings, style, tell)
    adapter = _adapter(data, model, request.out / "adapters" / key, settings, tell)
    generated = _generated(request, data, model, adapter, request.out / "generated" / key, settings, tell)
    further = {}
    if case.semi:
        further["semi"] = _labelled(data, model, adapter, request.out / "labelled" / key, settings)
    for name in case.neighbours:
        further[name] = _neighbour(name, request, data, generated, model, request.out / name / key, settings)
    out = request.out / "cases" / case.name.replace(" ", "-").replace(":", "-")
    return compare(data, generated, out, settings, request.seeds, further=further, ldm=ldm_settings(model, settings))


def _style(request: StudyRequest, settings: Settings) -> str | None:
    """The words that name the target domain; None without one. Where the settings ask for no words there are none,
    unless they were given."""
    if request.target is None or request.style is not None:
        return request.style
    default = "" if settings.generation.prompt == "none" else request.target.resolve().name
    return settings.generation.style or default


def _styled(settings: Settings, style: str | None) -> Settings:
    """The settings that draw with the words of a style; as they are for None."""
    if style is None:
        return settings
    return dataclasses.replace(settings, generation=dataclasses.replace(settings.generation, style=style))


def _with_controls(settings: Settings, controls: Sequence[str]) -> Settings:
    """The settings with these arms behind the user's own, each once."""
    joined = tuple(dict.fromkeys((*settings.compare.controls, *controls)))
    return dataclasses.replace(settings, compare=dataclasses.replace(settings.compare, controls=joined))


def _dataset(request: StudyRequest, case: Case) -> Path:
    out = request.out / "data"
    if request.target is not None:
        folder = out / "across"
        if not folder.exists():
            write_across_domains(request.real, request.target, folder)
        return folder
    if case.labels is None:
        return request.real
    folder = out / str(case.labels)
    if not folder.exists():
        write_subset(request.real, folder, case.labels, request.seed)
    return folder


def _fitted(data: Path, model: str, out: Path, settings: Settings, style: str | None, tell) -> str:
    """Fit the model. Pictures of a target domain are learned with its words, those of the source domain without."""
    from engine.ldm.adapt import adapt_ldm
    from engine.ldm.folder import ADAPTATION

    if not (out / ADAPTATION).is_file():
        tell(f"  fit the diffusion model to the pictures of {data}")
        adapt_ldm(data, model, out, settings if style is None else _styled(settings, ""), style)
    return str(out)


def _adapter(data: Path, model: str, out: Path, settings: Settings, tell: Callable[[str], None]) -> Path:
    from engine.adapter.train import train_adapter
    from tasks.adapter import find_trained

    card = find_trained(data, model, out, settings)
    if card is None:
        tell(f"  train the adapter on {data}")
        card = train_adapter(data, model, out, settings)
    score = (card.get("validation") or {}).get("map")
    tell(f"  adapter: AP {'–' if score is None else f'{100 * score:.1f}'} on validation images")
    return out


def _generated(request, data: Path, model: str, adapter: Path, out: Path, settings: Settings, tell) -> Path:
    from engine.generation.devices import usual_workers
    from engine.generation.run import generate
    from tasks.review import review

    sources = len(read_dataset(data, TRAIN).images)
    if settings.generation.unlabelled and has_unlabelled(data):
        sources += len(read_dataset(data, UNLABELLED).images)
    images = max(1, round(request.times * sources))
    generate(data, model, adapter, out, images, request.seed, settings, usual_workers(settings))
    summary = review(out, data, settings, fiftyone="off", ldm=ldm_settings(model, settings))
    tell(f"  {images} images drawn, {summary.accepted} accepted")
    return out


def _labelled(data: Path, model: str, adapter: Path, out: Path, settings: Settings) -> Path:
    from engine.adapter.pseudo_labels import label_pictures

    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        label_pictures(data, model, adapter, out, settings)
    return out


def _neighbour(name: str, request, data: Path, generated: Path, model: str, out: Path, settings: Settings) -> Path:
    from engine.baselines.making import make_baseline
    from engine.baselines.request import INPAINT_STRENGTH, BaselineRequest

    ldm, generation = dataclasses.replace(settings.ldm, id=model), settings.generation
    if name == "inpaint":
        generation = dataclasses.replace(generation, strength_min=INPAINT_STRENGTH, strength_max=INPAINT_STRENGTH)
    settings = dataclasses.replace(settings, ldm=ldm, generation=generation)
    out.parent.mkdir(parents=True, exist_ok=True)
    images = len(accepted_images(generated).images)  # as many as real + DE has
    make_baseline(name, BaselineRequest(out, settings, data, generated, images, request.seed))
    return out
