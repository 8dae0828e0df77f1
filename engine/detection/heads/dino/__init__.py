"""DINO (Zhang et al. 2022, arXiv 2203.03605): a detection transformer on the levels of a backbone."""

from engine.detection.heads.dino.head import DinoHead

__all__ = ["DinoHead"]
