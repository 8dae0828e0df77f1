"""Flow `compare`: does the generated data help?"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.detector import compare_arms
from tasks.record import note_on_versions, record_version
from tasks.scores import Comparison
from tasks.settings import open_ldm, open_settings


@flow(name="compare", persist_result=False)
def compare(
    real: str,
    generated: str,
    out: str,
    seeds: int | None = None,
    params: str | None = None,
    overrides: list[str] | None = None,
    record: bool = True,
    arms: dict[str, str] | None = None,
    ldm: str | None = None,
) -> Comparison:
    """Train the same detector on real and on real + generated data, and write results.json and report.html.

    Args:
        real: dataset folder with train.json and test.json.
        generated: folder of the generated dataset; what the review rejected is left out.
        out: folder of the results.
        seeds: trainings per arm; `compare.seeds` of the settings where none is given.
        params: settings file; params.yaml of the current folder where none is given.
        overrides: strings section.key=value.
        record: commit to DVC where the run did the work of the stage `compare`.
        arms: further generated datasets to compare, folders by name.
        ldm: a diffusion model whose features are searched for leaks too.
    """
    _, settings = open_settings(params, overrides or [])
    further = {name: Path(folder) for name, folder in (arms or {}).items()}
    searched = None if ldm is None else open_ldm(params, overrides or [], ldm)
    comparison = compare_arms(Path(real), Path(generated), Path(out), settings, seeds, further, searched)
    if record:
        note_on_versions(Path(out))
    if record and not further:
        options = {"real": real, "generated": generated, "out": out, "seeds": seeds, "ldm": ldm}
        record_version("compare", options, settings)
    return comparison
