"""Labels of the adapter against labels read off cross-attention, on the four failure cases of the latter.

    uv run python bench/failure_cases.py --sheet sheet.png
    uv run python bench/failure_cases.py --adapter runs/adapter

Trains an adapter on labelled scenes of the embedded world, or loads one of it. Every choice is made on validation
scenes, for the best F1 at IoU 0.5: of both methods the lowest score that counts, of the attention also layers, noise
level and threshold. The attention reads the prompts; the adapter reads words only if it was trained with captions.
Prints a table and writes it, with all that was chosen, to docs/results/failure_cases.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from failure_measures import MEASURES, kept_from, subject_boxes
from torch import Tensor
from tqdm import tqdm

from engine.adapter.adapter import Adapter, frame_of, load_adapter, read_card
from engine.adapter.train import train_adapter
from engine.baselines.attention_threshold import THRESHOLDS, results_by_threshold
from engine.baselines.cross_attention import CrossAttentionSettings, cross_attention_layers, label, record_attention
from engine.config import load_settings
from engine.data.dataset import Dataset, ImageRecord, read_dataset
from engine.data.failure_cases import write_failure_cases
from engine.data.pixels import Frame, read_pixels, to_model
from engine.data.world_folder import write_world
from engine.detection.prediction import predict
from engine.detection.targets import Detections
from engine.errors import ConfigError
from engine.evaluation.f1 import box_scores, scores_at_best_f1
from engine.ldm.diffusion import LatentDiffusion, find_ldm, load_ldm
from engine.report.pictures import contact_sheet, draw_boxes, label_colours
from engine.sections import Settings

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "failure_cases.json"
TIMESTEPS = ((1,), (100,), (300,), (600,), (100, 300, 600))
BATCH = 32
Detect = Callable[[Tensor, list[str]], list[Detections]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ldm", default="world", help="diffusion model's folder")
    parser.add_argument("--adapter", type=Path, help="a trained adapter's folder; without it one is trained")
    parser.add_argument("--labels", type=int, default=150, help="labelled scenes that the adapter is trained on")
    parser.add_argument("--val", type=int, default=200, help="scenes on which both methods are set up")
    parser.add_argument("--count", type=int, default=200, help="scenes of each case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="png with scenes of every case and the boxes of both methods")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = load_settings(None, args.overrides, find_ldm(args.ldm))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder / "world", args.labels, args.val, 1)
        cases = {case: read_dataset(at, "test") for case, at in write_failure_cases(folder, args.count).items()}
        adapter, ldm = open_adapter(args, settings, folder)
        frame = frame_of(ldm, adapter.card["resolution"])
        val = read_dataset(folder / "world", "val")
        attention, searched = search_attention(ldm, val, frame)
        methods: dict[str, Detect] = {
            "adapter": adapter_labels(adapter, ldm),
            "cross-attention": lambda pixels, texts: label(ldm, pixels, texts, class_names(val), attention),
        }
        found, table = {}, {}
        for method, detect in methods.items():
            on_val = results_of(detect, val, frame)
            floor = scores_at_best_f1(val, on_val).threshold
            found[method] = {c: kept_from(floor, results_of(detect, data, frame)) for c, data in cases.items()}
            table[method] = {"score_from": floor, "validation": box_scores(val, kept_from(floor, on_val))}
            for case, data in cases.items():
                boxes = found[method][case]
                measures = MEASURES[case](subject_boxes(data, boxes))
                table[method][case] = {**box_scores(data, boxes), "failure": measures}
        if args.sheet:
            sheet(cases, found).save(args.sheet)
    print(markdown(table))
    record = {
        "ldm": ldm.identity.as_dict(),
        "adapter": {k: adapter.card[k] for k in ("head", "timestep", "prompt_mode", "validation", "weights_sha256")},
        "adapter_training": {k: v for k, v in adapter.card["training"].items() if k != "curve"},
        "attention": {**dataclasses.asdict(attention), "searched": searched},
        "scenes": {"validation": args.val, "each_case": args.count},
        "methods": table,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def open_adapter(args: argparse.Namespace, settings: Settings, folder: Path) -> tuple[Adapter, LatentDiffusion]:
    """The adapter to be measured, trained where none was given, and its diffusion model."""
    at = args.adapter
    if at is None:
        at = folder / "adapter"
        train_adapter(folder / "world", args.ldm, at, settings)
    card = read_card(at)
    if card["prompt_mode"] == "template":
        raise ConfigError(
            f"The adapter in {at} reads the template prompt, which is made of an image's true classes: on these cases "
            "it would be told what it has to find. Train it with --set adapter.prompt=none or caption."
        )
    options = settings.ldm
    ldm = load_ldm(args.ldm, options.revision, options.dtype, options.device, card["head"]["taps"])
    return load_adapter(at, ldm), ldm


def adapter_labels(adapter: Adapter, ldm: LatentDiffusion) -> Detect:
    """The adapter on real images, with the words that it was trained to read."""
    detector = adapter.on(ldm)
    reads_words = adapter.card["prompt_mode"] == "caption"
    return lambda pixels, texts: detector.detect(pixels, texts if reads_words else [""] * len(texts))


def search_attention(ldm: LatentDiffusion, val: Dataset, frame: Frame) -> tuple[CrossAttentionSettings, int]:
    """The attention settings with the best F1 on validation scenes, and how many were tried."""
    best: tuple[float, CrossAttentionSettings] = (-1.0, CrossAttentionSettings())
    choices = [(layers, timesteps) for layers in layer_choices(ldm, val, frame) for timesteps in TIMESTEPS]
    for layers, timesteps in tqdm(choices, desc="attention", mininterval=5):
        settings = CrossAttentionSettings(timesteps, layers)
        for threshold, results in results_by_threshold(ldm, val, frame, settings, prompt_of, BATCH).items():
            tried = dataclasses.replace(settings, threshold=threshold)
            best = max(best, (scores_at_best_f1(val, results).f1, tried), key=lambda item: item[0])
    return best[1], len(choices) * len(THRESHOLDS)


def layer_choices(ldm: LatentDiffusion, val: Dataset, frame: Frame) -> list[tuple[str, ...]]:
    """All layers, all of the finest grid, and each of those alone."""
    record = val.images[0]
    pixels = to_model(read_pixels(val, record, frame.size_of(record.width, record.height)))[None]
    with record_attention(ldm.denoiser) as maps:
        timesteps = torch.ones(1, dtype=torch.int64, device=ldm.device)
        ldm.denoise(ldm.encode_images(pixels), timesteps, ldm.encode_prompts([""]))
    most = max(values.shape[1] for values in maps.values())
    finest = [name for name, values in maps.items() if values.shape[1] == most]
    assert set(maps) == set(cross_attention_layers(ldm.denoiser))
    return [(), tuple(finest), *((name,) for name in finest)]


def results_of(detect: Detect, data: Dataset, frame: Frame) -> list[dict]:
    """COCO results of a dataset whose captions are the prompts."""
    return predict(detect, data, frame, text_of=prompt_of)


def prompt_of(record: ImageRecord) -> str:
    return record.extra["caption"]


def class_names(data: Dataset) -> list[str]:
    return [category.name for category in data.categories]


def markdown(table: dict[str, dict]) -> str:
    """One line a case and method."""
    lines = ["| scenes | labels from | recall | precision | F1 | of the case |", "|---|---|---|---|---|---|"]
    for case in ("validation", *MEASURES):
        for method, rows in table.items():
            row = rows[case]
            figures = " | ".join(
                "-" if row[k] is None else f"{100 * row[k]:.1f}" for k in ("recall", "precision", "f1")
            )
            measures = ", ".join(f"{name} {100 * value:.1f} %" for name, value in row.get("failure", {}).items())
            lines.append(f"| {case} | {method} | {figures} | {measures} |")
    return "\n".join(lines)


def sheet(cases: dict[str, Dataset], found: dict[str, dict[str, Sequence[dict]]], columns: int = 6):
    """For every case a row of scenes with the adapter's boxes, and one with those of the attention."""
    pictures, captions = [], []
    for case, data in cases.items():
        names = {category.id: category.name for category in data.categories}
        colours = label_colours(class_names(data))
        for method, results in found.items():
            for record in data.images[:columns]:
                own = [r for r in results[case] if r["image_id"] == record.id]
                labels, scores = [names[r["category_id"]] for r in own], [r["score"] for r in own]
                boxes = [r["bbox"] for r in own]
                pictures.append(draw_boxes(data.load(record), boxes, labels, scores, colours=colours))
                captions.append(f"{method}: {prompt_of(record)}")
    return contact_sheet(pictures, columns, captions)


if __name__ == "__main__":
    main()
