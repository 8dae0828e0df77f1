"""Commands about the diffusion model."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.options import Overrides, Params


def ldm_info(
    ldm: Annotated[str, typer.Argument(metavar="LDM", help="Folder, hub id, or 'world' for the embedded model.")],
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Say what a diffusion model is and what the adapter would read of it: taps, samplers' last steps, memory.

    Example: de ldm-info world
    """
    from engine.ldm.diffusion import load_ldm
    from engine.ldm.sampling import last_timestep
    from tasks.settings import open_settings

    source, settings = open_settings(params, overrides or [], ldm)
    model = load_ldm(source, settings.ldm.revision, settings.ldm.dtype, settings.ldm.device, settings.adapter.taps)
    identity, memory = model.identity, model.memory()
    sampler, steps = settings.generation.sampler, settings.generation.steps
    typer.echo(f"{identity.id}, revision {identity.revision or '(a folder)'}, weights {identity.weights_sha256[:16]}")
    if identity.adapted_from:
        typer.echo(f"Fitted to a domain ({identity.method}), from {identity.adapted_from['id']}.")
    typer.echo(
        f"On {model.device} in {str(model.dtype).removeprefix('torch.')}; sides in multiples of {model.alignment} px."
    )
    typer.echo(f"Taps ({settings.adapter.taps}):")
    for tap in model.taps:
        typer.echo(f"  stride {tap.stride:3d} px: {tap.channels:5d} channels from {', '.join(tap.blocks)}")
    typer.echo(f"With {sampler} of {steps} steps the last step is at t = {last_timestep(model, sampler, steps)}.")
    weights = ", ".join(f"{part} {size / 2**20:.1f}" for part, size in memory["weights"].items())
    typer.echo(f"Weights: {memory['weights_total'] / 2**20:.1f} MiB ({weights}).")
    typer.echo(f"Tapped features of one image: {memory['features_per_image'] / 2**20:.1f} MiB.")
