"""Prefect task: fit the diffusion model to the user's images."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from engine.sections import Settings
from tasks.retry import RETRIED


@task(name="adapt-ldm", cache_policy=NO_CACHE, **RETRIED)
def adapt(data: Path, base: str, out: Path, settings: Settings) -> str:
    """Fine-tune `base` to the training images of `data`; a run that was cut off goes on. Returns the folder `out`."""
    from engine.ldm.adapt import adapt_ldm

    adapt_ldm(Path(data), base, Path(out), settings)
    create_markdown_artifact(f"`{base}` was adapted to the images of `{data}`: `{out}`", "adapted-ldm")
    return str(out)
