"""What a denoiser is told beside the noisy latents: opaque to all but its own family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Named tensors of one encoded text a row: each (B, ...) with the same B."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def rows(self) -> list[Conditioning]:
        """One conditioning a row."""
        return [Conditioning({k: v[i : i + 1] for k, v in self.tensors.items()}) for i in range(len(self))]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Conditioning:
        """On another device; floating tensors in another dtype where one is given, masks as they are."""
        return Conditioning(
            {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in self.tensors.items()}
        )

    @staticmethod
    def stack(items: Sequence[Conditioning]) -> Conditioning:
        """The rows of several, in their order."""
        return Conditioning({k: torch.cat([item.tensors[k] for item in items]) for k in items[0].tensors})
