"""Which model and which settings a run uses: params.yaml, the model's recommendations, and overrides, in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from engine.config import load_settings
from engine.ldm import embedded_folder
from engine.sections import LdmSettings, Settings

EMBEDDED = "world"  # stands for the small diffusion model that ships with the engine
PARAMS = "params.yaml"


def open_settings(
    params: str | Path | None = None,
    overrides: Iterable[str] = (),
    ldm: str | Path | None = None,
    folder: Path | None = None,
) -> tuple[str, Settings]:
    """The diffusion model (folder or hub id) and the checked settings.

    Args:
        params: settings file; None takes params.yaml of `folder` where there is one.
        overrides: strings `section.key=value`.
        ldm: folder, hub id, or "world" (the one that ships); None takes `ldm.id` of the settings.
        folder: the workspace; None for the current folder.

    Raises:
        ConfigError: see `load_settings`.
    """
    folder, overrides = folder or Path(), tuple(overrides)
    if params is None and (folder / PARAMS).is_file():
        params = folder / PARAMS
    params = None if params is None else Path(params)
    if ldm is None:
        ldm = load_settings(params, overrides).ldm.id
    if ldm == EMBEDDED:
        ldm = embedded_folder()
    elif (folder / ldm).is_dir():
        ldm = folder / ldm
    return str(ldm), load_settings(params, overrides, Path(ldm))


def open_ldm(params: str | Path | None, overrides: Iterable[str], ldm: str | Path) -> LdmSettings:
    """`ldm_settings` of a diffusion model that is named beside a job that does not draw with it."""
    return ldm_settings(*open_settings(params, overrides, ldm))


def ldm_settings(model: str, settings: Settings) -> LdmSettings:
    """The settings of the diffusion model that `open_settings` gave. `id` is where it is; that of the model that ships
    is its name, since results that hold it are to be the same wherever the engine is installed."""
    return dataclasses.replace(settings.ldm, id=EMBEDDED if Path(model) == embedded_folder() else model)
