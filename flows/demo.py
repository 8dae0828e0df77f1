"""Flow `demo`: the whole engine on the embedded world."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from engine.generation.devices import usual_workers
from flows.compare import compare
from flows.generate_coco_de import generate_coco_de
from flows.train_adapter import train_adapter
from tasks.scores import Comparison
from tasks.settings import EMBEDDED, open_settings
from tasks.world import make_world

# Scenes that nobody labelled, and no words: where generated data hurts least, see docs/experiments.md.
BARE_SCENES = ["generation.unlabelled=true", "generation.prompt=none"]


@flow(name="demo", persist_result=False)
def demo(out: str, seed: int = 0, params: str | None = None, overrides: list[str] | None = None) -> Comparison:
    """Render a small world, a part of it without labels, train the adapter, generate, review, compare. Run again, it
    goes on where it stopped.

    Args:
        out: folder for everything; report.html, results.json and generated/ are what to look at.
        seed: of the scenes and of the generation.
        params: settings file; params.yaml of the current folder where none is given.
        overrides: strings section.key=value.
    """
    _, settings = open_settings(params, overrides or [], EMBEDDED)
    sizes = settings.demo
    short = ["ldm.id=world", f"adapter.steps={sizes.adapter_steps}", f"detector.steps={sizes.detector_steps}"]
    overrides = short + (BARE_SCENES if sizes.unlabelled_images else []) + (overrides or [])
    folder = Path(out)
    world, adapter, generated = (str(folder / name) for name in ("world", "adapter", "generated"))
    common = {"params": params, "overrides": overrides, "record": False}
    make_world(Path(world), settings.demo, seed)
    train_adapter(world, EMBEDDED, adapter, **common)
    generate_coco_de(
        world,
        EMBEDDED,
        adapter,
        generated,
        settings.demo.generated_images,
        seed,
        workers=usual_workers(settings),
        fiftyone="skip",
        **common,
    )
    return compare(world, generated, out, ldm=EMBEDDED, **common)
