"""What is needed to get a drawer, in a form that travels to another process."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import as_dict, settings_from
from engine.sections import Settings

if TYPE_CHECKING:
    from engine.generation.draw import Drawer

DEFAULT_LOADER = "engine.generation.draw:load_drawer"


@dataclass(frozen=True)
class DrawerSource:
    """The arguments of `load_drawer`, and which function loads.

    Attributes:
        data: dataset folder with the source images.
        ldm: folder or hub id of the diffusion model.
        adapter: folder of the adapter.
        loader: `module:function` with load_drawer's signature. It comes from code, never from a file.
    """

    data: Path
    ldm: str
    adapter: Path
    settings: Settings
    loader: str = DEFAULT_LOADER

    def load(self) -> Drawer:
        """Load the models. Raises what the loader raises (ModelError, ConfigError, DatasetError)."""
        module, _, function = self.loader.partition(":")
        return getattr(importlib.import_module(module), function)(self.data, self.ldm, self.adapter, self.settings)

    def as_json(self) -> dict:
        """Json-ready values."""
        return {
            "data": str(self.data),
            "ldm": str(self.ldm),
            "adapter": str(self.adapter),
            "settings": as_dict(self.settings),
            "loader": self.loader,
        }

    @classmethod
    def from_json(cls, content: dict) -> DrawerSource:
        """The inverse of `as_json`. Raises ConfigError, KeyError, TypeError or AttributeError on anything else."""
        if not isinstance(content["ldm"], str):
            raise TypeError(f"ldm is {content['ldm']!r}")
        return cls(
            data=Path(content["data"]),
            ldm=content["ldm"],
            adapter=Path(content["adapter"]),
            settings=settings_from(content["settings"], "settings"),
            loader=content["loader"],
        )
