"""The frozen latent diffusion model: load, tap features, sample, train, adapt."""

from pathlib import Path


def embedded_folder() -> Path:
    """The folder of the embedded world's diffusion model, which ships with the package."""
    return Path(__file__).parent / "world"
