"""Python and the packages, against the versions that this project was tested with."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tasks.doctor_check import OK, PROBLEM, WARNING, Check

PROJECT = "diffusion-engine"
_SYNC = "`uv sync` in the project's folder installs what it was tested with."
TRAPS = {  # known to install without a word and to fail later
    "fastapi": ("<0.151", "Prefect's server does not start with it"),
    "sqlalchemy": ("<2.1", "Prefect's schedules silently never start a run with it"),
    "starlette": ("<1.4", "FiftyOne does not import with it"),
}
OPTIONAL = {
    "detectron2": "`uv sync --extra detectron2` builds it, for heads and detectors of its model zoo.",
    "ray": "`uv sync --extra ray` installs it, to generate on several machines.",
}
Installed = Callable[[str], str | None]


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def project_table() -> Mapping:
    """The [project] table of pyproject.toml beside the code; of an installed wheel, the same from its metadata."""
    file = Path(__file__).parents[1] / "pyproject.toml"
    if file.is_file():
        return tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    known = importlib.metadata.metadata(PROJECT)
    return {"requires-python": known["Requires-Python"], "dependencies": importlib.metadata.requires(PROJECT) or []}


def package_checks(folder: Path) -> list[Check]:
    """Python and every package, as they are here."""
    project = project_table()
    return [
        check_python(project["requires-python"]),
        *check_packages(project["dependencies"]),
        *check_traps(),
        *check_optional(project.get("optional-dependencies", {})),
        check_command(shutil.which("de"), Path(sys.executable).parent),
    ]


def check_python(wanted: str, version: str | None = None) -> Check:
    """The interpreter against the project's `requires-python`."""
    version = version or platform.python_version()
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check("python", OK, version)
    return Check(
        "python", PROBLEM, f"{version}; the project needs {wanted}", "`uv python install 3.11`, then `uv sync`."
    )


def check_command(found: str | None, folder: Path) -> Check:
    """The `de` that the stages of dvc.yaml call, which a shell looks for.

    Args:
        found: where it is found; None where it is not.
        folder: of this environment's programs.
    """
    cure = f"`source {folder / 'activate'}`, or put `uv run --project` and the project's folder before `dvc repro`."
    if found is None:
        return Check("de", WARNING, "not on the PATH, where the stages of dvc.yaml look for it", cure)
    if Path(found).absolute().parent.resolve() != folder.resolve():
        return Check("de", WARNING, f"the stages of dvc.yaml find {found}, of another environment than this one", cure)
    return Check("de", OK, found)


def check_packages(dependencies: Iterable[str], installed: Installed = installed_version) -> list[Check]:
    """Every dependency: a line for each that is missing or another than tested, and one for the rest."""
    wanted = [Requirement(text) for text in dependencies]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = {r.name: installed(r.name) for r in wanted}
    checks = []
    for requirement in wanted:
        version = found[requirement.name]
        if version is None:
            checks.append(Check(requirement.name, PROBLEM, f"missing; wanted {requirement.specifier}", _SYNC))
        elif requirement.name not in TRAPS and not requirement.specifier.contains(version, prereleases=True):
            said = f"{version}; tested with {requirement.specifier}"
            checks.append(Check(requirement.name, WARNING, said, _SYNC))
    as_tested = len(wanted) - len(checks)
    rest = Check("packages", OK, f"{as_tested} of {len(wanted)} are there in the tested version")
    return checks if checks and not as_tested else [rest, *checks]


def check_traps(installed: Installed = installed_version) -> list[Check]:
    """The packages whose newer versions are known to break the others."""
    checks = []
    for name, (allowed, harm) in TRAPS.items():
        version = installed(name)
        if version is None:
            checks.append(Check(name, PROBLEM, "missing", _SYNC))
        elif SpecifierSet(allowed).contains(version, prereleases=True):
            checks.append(Check(name, OK, f"{version} ({allowed})"))
        else:
            checks.append(Check(name, PROBLEM, f"{version}, must be {allowed}: {harm}", _SYNC))
    return checks


def check_optional(extras: Mapping[str, Iterable[str]], installed: Installed = installed_version) -> list[Check]:
    """What everything else works without."""
    pins = {r.name: r for texts in extras.values() for r in map(Requirement, texts)}
    checks = []
    for name, cure in OPTIONAL.items():
        version, pin = installed(name), pins.get(name)
        if version is None:
            checks.append(Check(name, OK, "not installed (optional)", cure))
        elif pin is not None and not pin.specifier.contains(version, prereleases=True):
            checks.append(Check(name, WARNING, f"{version}; tested with {pin.specifier}", cure))
        else:
            checks.append(Check(name, OK, version))
    return checks
