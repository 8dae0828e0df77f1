"""A new workspace: a folder with git, DVC, settings, stages and deployments around the user's own dataset.

It is built beside its place, as `<name>.partial`, and moved there when it is whole.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.data.bare_pictures import add_pictures
from engine.data.sources import has_unlabelled
from engine.errors import ConfigError, RunFailed
from tasks.programs import call
from tasks.starting_data import AUTO, bring_in
from tasks.starting_values import StartingValues, choose_values, name_ldm

DATA = Path("data/real")
FILES = {  # template -> file of the workspace
    "dvc.yaml.j2": "dvc.yaml",
    "params.yaml.j2": "params.yaml",
    "prefect.yaml.j2": "prefect.yaml",
    "prefect.toml.j2": "prefect.toml",
    "gitignore.j2": ".gitignore",
}
DVC_FILES = {"dvcignore.j2": ".dvcignore", "dvcconfig.j2": ".dvc/config"}  # in the place of what `dvc init` writes
NOBODY = ("-c", "user.name=de init", "-c", "user.email=de-init@localhost")


@dataclass(frozen=True)
class Workspace:
    """What was made: the folder, what became of the data (in words), the first settings, whether git knew its user."""

    folder: Path
    data: str
    values: StartingValues
    has_identity: bool


def make_workspace(
    folder: Path,
    data: Path,
    format: str = AUTO,
    ldm: str = "world",
    revision: str | None = None,
    domain: str = "photo",
    val: float | None = None,
    test: float | None = None,
    seed: int = 0,
    unlabelled: Path | None = None,
) -> Workspace:
    """Make a workspace around a dataset, and commit it.

    Args:
        folder: new or empty.
        data, format, val, test, seed: see `bring_in`.
        unlabelled: folder of pictures without labels, to draw from too.
        ldm, revision: the diffusion model, "world", a folder, or a hub id with its commit.
        domain: what the images are, in the prompts' words.

    Raises:
        ConfigError: the folder is in use, or has no place to be.
        DatasetError, ModelError: the dataset or the diffusion model cannot be used.
        RunFailed: git or DVC failed. Nothing is left behind then either.
    """
    folder = folder.absolute()
    _check_place(folder, data)
    ldm = name_ldm(ldm, revision)
    with _appearing(folder) as partial:
        (partial / DATA.parent).mkdir()
        train, said = bring_in(data, partial / DATA, folder / DATA, format, val, test, seed)
        if unlabelled is not None:
            said += "\n" + add_pictures(partial / DATA, unlabelled).text()
        values = choose_values(train, ldm, revision, domain, has_unlabelled(partial / DATA))
        _write(partial, FILES, values)
        call(["git", "init", "-q"], partial, "make a git repository")
        _put_under_dvc(partial, values)
        known = _has_identity(partial)
        _commit(partial, known)
    return Workspace(folder, said, values, known)


def _check_place(folder: Path, data: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; a workspace never overwrites. Name another folder.")
    if not folder.parent.is_dir():
        raise ConfigError(
            f"There is no folder {folder.parent} to put the workspace in. Make it, or name another place."
        )
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"{folder} lies inside the dataset {data}. Name a folder outside it.")
    if shutil.which("git") is None:
        raise ConfigError("A workspace is a git repository, and there is no git on the PATH. Install git.")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A working folder beside `folder` that becomes it at the end, or vanishes."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        partial.mkdir()
    except FileExistsError:
        raise ConfigError(
            f"{partial} is in the way: another `de init` is at work, or one was killed. In the second case delete it."
        ) from None
    try:
        yield partial
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, folder: Path) -> None:
    """In one step where nothing is there yet. An empty folder stays: somebody's shell may be in it."""
    if not folder.exists():
        os.rename(partial, folder)
        return
    names = sorted(os.listdir(partial), key=lambda name: name == ".git")  # git last: without it, it is no workspace
    moved: list[str] = []
    try:
        for name in names:
            os.rename(partial / name, folder / name)
            moved.append(name)
    except BaseException:
        for name in moved:
            os.rename(folder / name, partial / name)
        raise


def _write(workspace: Path, files: dict[str, str], values: StartingValues) -> None:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "new_workspace"),
        autoescape=False,  # yaml; what comes from people goes through the filter
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["yaml"] = _as_yaml
    for template, name in files.items():
        text = environment.get_template(template).render(values=values, prefect_version=version("prefect"))
        (workspace / name).write_text(text, encoding="utf-8")


def _as_yaml(text: str) -> str:
    """A person's words as one yaml scalar, whatever is in them."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def _put_under_dvc(workspace: Path, values: StartingValues) -> None:
    """Everything is done under a name that vanishes, so DVC's notes about it (the site cache) must vanish too."""
    with tempfile.TemporaryDirectory(prefix="de-init-") as site:
        dvc = [sys.executable, "-m", "dvc"]
        call([*dvc, "init", "-q"], workspace, "make a DVC workspace", DVC_SITE_CACHE_DIR=site)
        _write(workspace, DVC_FILES, values)
        call([*dvc, "add", "-q", str(DATA)], workspace, "put the dataset under DVC", DVC_SITE_CACHE_DIR=site)
    shutil.rmtree(workspace / ".dvc" / "tmp", ignore_errors=True)


def _has_identity(workspace: Path) -> bool:
    """Whether git knows who commits here."""
    try:
        for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            call(["git", "var", who], workspace, "see who commits")
    except RunFailed:
        return False
    return True


def _commit(workspace: Path, known: bool) -> None:
    git = ["git", *(() if known else NOBODY), "-c", "commit.gpgSign=false"]
    call(["git", "add", "--", "."], workspace, "add the workspace's files to git")
    call([*git, "commit", "-q", "-m", "Start of the workspace"], workspace, "make the first commit")
