# ruff: noqa: E501 (lines of prose)
"""The model card of the embedded diffusion model: command, duration, curves, gate, all from recorded numbers."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

RECORD, GATE = "training.json", "gate.json"


def write_card(folder: Path) -> Path:
    """Write `folder`/README.md and curves.svg from training.json and, where it was measured, gate.json."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    gate = json.loads((folder / GATE).read_text(encoding="utf-8")) if (folder / GATE).is_file() else None
    _draw_curves(record, folder / "curves.svg")
    denoiser, decoder, settings = record["denoiser"], record["decoder"], record["settings"]
    lines = [
        "# The embedded world's latent diffusion model",
        "",
        "A small latent diffusion model in Stable Diffusion's folder format, trained from nothing on rendered scenes of",
        "`engine/data/world.py`. It is for trying, testing and measuring the engine where no weights can be fetched; it",
        "knows nothing of photographs. Licence: Apache-2.0, like the project; no outside data went into it.",
        "",
        "| | |",
        "|---|---|",
        "| command | `de train-ldm --out engine/ldm/world` |",
        f"| data | {settings['scenes']:,} scenes of {64} x {64} px with captions, rendered from seeds |",
        "| autoencoder | `AutoencoderTiny`, 4 px a cell, 12 channels: the encoder is a PCA of 4 x 4 px patches in closed "
        "form, the decoder is trained |",
        f"| denoiser | `UNet2DConditionModel` (64, 96, 128), v-prediction: {denoiser['steps']:,} steps of "
        f"{settings['batch_size']}, averaged weights, {denoiser['seconds'] / 60:.0f} min on one CPU core |",
        f"| decoder | {settings['decoder_steps']:,} steps of {settings['decoder_batch_size']}, "
        f"{decoder['seconds'] / 60:.0f} min on one CPU core; {record['psnr']:.1f} dB on unseen scenes |",
        f"| last losses | denoising {denoiser['curve'][-1][1]:.4f}, decoder {decoder['curve'][-1]:.4f} |",
        "",
        "![loss curves](curves.svg)",
        "",
        f"From step {settings['caption_loss_from']:,} on, an auxiliary loss (weight {settings['caption_loss_weight']}) asks",
        "the U-Net's features, on samples without a prompt, which words the scene's caption holds (`CaptionLoss` in",
        "`engine/ldm/denoising.py`). It sees captions, never boxes, and its weights are not shipped. Large models learn",
        "what they draw from billions of captions; a model trained for an hour needs the push.",
        "",
        *([record["remark"], ""] if "remark" in record else []),
        "## Gate",
        "",
        *_gate_lines(gate),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _gate_lines(gate: dict | None) -> list[str]:
    if gate is None:
        return ["Not measured yet: `python bench/adapter_gate.py --record`."]
    rows = [
        f"| {kind} | {', '.join(f'{100 * m:.1f}' for m in values)} | {100 * sum(values) / len(values):.1f} |"
        for kind, values in gate["map"].items()
    ]
    adapter, scratch = gate["map"]["adapter"], gate["map"]["scratch"]
    met = min(adapter) > max(scratch)
    margin = 100 * (min(adapter) - max(scratch))
    return [
        f"The adapter on this model against the same head on a from-scratch convolutional backbone, {gate['labels']} "
        f"labelled scenes, {gate['steps']} steps, {len(adapter)} seeds, mAP on {gate['test']} other scenes "
        f"(`{gate['command']}`):",
        "",
        "| | mAP per seed | mean |",
        "|---|---|---|",
        *rows,
        "",
        f"The gate (every adapter above every from-scratch detector) is **{'met' if met else 'missed'}**: the lowest "
        f"adapter lies {abs(margin):.1f} points {'above' if margin > 0 else 'below'} the highest from-scratch detector.",
    ]


def _draw_curves(record: dict, path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    steps, losses = zip(*record["denoiser"]["curve"], strict=True)
    left.plot(steps, losses)
    left.set(title="denoiser", xlabel="step", ylabel="denoising loss", yscale="log")
    curve = record["decoder"]["curve"]
    right.plot([50 * (i + 1) for i in range(len(curve))], curve)
    right.set(title="decoder", xlabel="step", ylabel="reconstruction loss", yscale="log")
    with rc_context({"svg.hashsalt": "card"}):  # the same numbers give the same file
        figure.savefig(path, format="svg", metadata={"Date": None})
