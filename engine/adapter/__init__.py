"""The Detection-Adapter: a detector whose backbone is the frozen latent diffusion model."""
