"""The denoiser compiled for calls of fixed shapes; on CUDA each shape runs as CUDA graphs."""

from __future__ import annotations

from contextlib import ExitStack
from types import ModuleType

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.ldm.families.conditioning import Conditioning
from engine.ldm.taps import Capture, capture

SHAPES = 64  # of calls that one process compiles for


class CompiledDenoiser:
    """Calls of a denoiser that return its tapped blocks beside the prediction. Each new shape is compiled once.

    Args:
        family: a module of `engine.ldm.families`.
        stride: image pixels per latent cell.
        which: the blocks that are tapped; see `engine.ldm.taps`.
    """

    def __init__(self, denoiser: nn.Module, family: ModuleType, stride: int, which: str):
        self._cuda = next(denoiser.parameters()).device.type == "cuda"
        self._tokens = hasattr(denoiser, "transformer_blocks")
        self._hooks = ExitStack()  # they stay: what is traced must find them
        record = self._hooks.enter_context(capture(denoiser, which))

        def call(latents: Tensor, timesteps: Tensor, tensors: dict[str, Tensor], embedded: Tensor | None):
            predicted = family.predict(denoiser, latents, timesteps, Conditioning(tensors), stride, embedded)
            return predicted, dict(record.outputs)

        self._record = record
        # fullgraph: a part that cannot be compiled would silently run otherwise, and with it other last digits.
        mode = "reduce-overhead" if self._cuda else "default"
        self._call = torch.compile(call, dynamic=False, fullgraph=True, mode=mode)

    def __call__(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, embedded: Tensor | None
    ) -> tuple[Tensor, Capture]:
        """The prediction (B, C, h, w) and the tapped outputs, on CUDA valid until the next call.

        Raises:
            ModelError: it cannot be compiled on this machine.
        """
        if self._cuda:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            with torch._dynamo.config.patch(recompile_limit=SHAPES):
                predicted, outputs = self._call(latents, timesteps, conditioning.tensors, embedded)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ModelError(
                f"The denoiser cannot be compiled here ({type(error).__name__}: {str(error).splitlines()[0]}). On a CPU "
                "a C++ compiler is needed. Set ldm.compile=false."
            ) from None
        self._record.outputs.clear()  # of the last call only; they would stay in memory
        return predicted, Capture(outputs, tuple(latents.shape[-2:]) if self._tokens else None)
