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
    phases, decoder = _phases(record), record["decoder"]
    lines = [
        "# The embedded world's latent diffusion model",
        "",
        "A small latent diffusion model in Stable Diffusion's folder format, trained from nothing on rendered scenes of",
        "`engine/data/world.py`. It is for trying, testing and measuring the engine where no weights can be fetched; it",
        "knows nothing of photographs. Licence: Apache-2.0, like the project; no outside data went into it.",
        "",
        "| | |",
        "|---|---|",
        "| autoencoder | `AutoencoderTiny`, 4 px a cell, 12 channels: the encoder is a PCA of 4 x 4 px patches in closed "
        "form, the decoder is trained |",
        f"| decoder | {phases[0]['settings']['decoder_steps']:,} steps of {phases[0]['settings']['decoder_batch_size']}, "
        f"{decoder['seconds'] / 60:.0f} min on one CPU core; {record['psnr']:.1f} dB on unseen scenes |",
        "| denoiser | `UNet2DConditionModel` (64, 96, 128), v-prediction, averaged weights; trained as below |",
        "",
        "| training | command | scenes | steps x batch | caption loss | min on one CPU core | last denoising loss |",
        "|---|---|---|---|---|---|---|",
        *(_phase_row(number, phase) for number, phase in enumerate(phases, 1)),
        "",
        "![loss curves](curves.svg)",
        "",
        "The caption loss asks the U-Net's features, on samples without a prompt, which words the scene's caption holds",
        "(`CaptionLoss` in `engine/ldm/denoising.py`). It sees captions, never boxes, and its weights are not shipped. Large",
        "models learn what they draw from billions of captions; a model trained for hours needs the push.",
        "",
        *(line for phase in phases if "remark" in phase for line in (phase["remark"], "")),
        "## Gate",
        "",
        *_gate_lines(gate),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _phases(record: dict) -> list[dict]:
    """The trainings behind a model, first one first."""
    return [*(_phases(record["before"]) if "before" in record else []), record]


def _phase_row(number: int, phase: dict) -> str:
    denoiser, settings = phase["denoiser"], phase["settings"]
    start = " --start engine/ldm/world" if "before" in phase else ""
    return (
        f"| {number} | `de train-ldm{start}` | {settings['scenes']:,} | {denoiser['steps']:,} x {settings['batch_size']} "
        f"| weight {settings['caption_loss_weight']} from step {settings['caption_loss_from']:,} "
        f"| {denoiser['seconds'] / 60:.0f} | {denoiser['curve'][-1][1]:.4f} |"
    )


def _gate_lines(gate: dict | None) -> list[str]:
    if gate is None:
        return ["Not measured yet: `python bench/adapter_gate.py --record`."]
    lines = [
        "The adapter on this model against the same head on a convolutional backbone that is trained from nothing and has "
        f"at least as many trained weights: {gate['labels']} labelled scenes, equal steps, mAP on {gate['test']} other "
        "scenes. A head passes when its lowest adapter lies above its highest from-scratch detector. Times are CPU time "
        "of one thread.",
        "",
        "| head | adapter, mAP per seed | AP50 | from scratch, mAP per seed | gap | gate | trained weights | ms a step of "
        "16 | ms an image |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_head_row(head, kinds) for head, kinds in gate["heads"].items()),
        "",
        "Printed by:",
        "",
        *(f"- `{command}`" for command in gate["commands"]),
        *(["", gate["remark"]] if "remark" in gate else []),
    ]
    return lines


def _head_row(head: str, kinds: dict) -> str:
    adapter, scratch = kinds["adapter"], kinds.get("scratch")
    against = ["", "", ""]
    if scratch:
        margin = 100 * (min(adapter["map"]) - max(scratch["map"]))
        gap = 100 * (sum(adapter["map"]) / len(adapter["map"]) - sum(scratch["map"]) / len(scratch["map"]))
        verdict = f"met by {margin:.1f}" if margin > 0 else f"missed by {-margin:.1f}"
        against = [_percents(scratch["map"]), f"{gap:+.1f}", verdict]
    cells = [
        head,
        _percents(adapter["map"]),
        f"{100 * sum(adapter['map50']) / len(adapter['map50']):.1f}",
        *against,
        f"{adapter['parameters'] / 1e6:.2f} M",
        f"{1000 * adapter['step_seconds']:.0f}",
        f"{1000 * adapter['image_seconds']:.0f}" if "image_seconds" in adapter else "",
    ]
    return f"| {' | '.join(cells)} |"


def _percents(values: list[float]) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in values)


def _draw_curves(record: dict, path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    done = 0
    for phase in _phases(record):
        steps, losses = zip(*phase["denoiser"]["curve"], strict=True)
        left.plot([done + step for step in steps], losses)
        done += phase["denoiser"]["steps"]
    left.set(title="denoiser", xlabel="step", ylabel="denoising loss", yscale="log")
    curve = record["decoder"]["curve"]
    right.plot([50 * (i + 1) for i in range(len(curve))], curve)
    right.set(title="decoder", xlabel="step", ylabel="reconstruction loss", yscale="log")
    with rc_context({"svg.hashsalt": "card"}):  # the same numbers give the same file
        figure.savefig(path, format="svg", metadata={"Date": None})
