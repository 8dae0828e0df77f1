"""Flow `generate-coco-de`: draw and label images from the training images of a dataset, and review them."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.curate import FiftyOneUse, review_dataset
from tasks.generate import draw_dataset
from tasks.record import record_version
from tasks.settings import ldm_settings, open_settings


@flow(name="generate-coco-de", persist_result=False)
def generate_coco_de(
    data: str,
    ldm: str,
    adapter: str,
    out: str,
    images: int | None = None,
    seed: int = 0,
    workers: int = 1,
    ray: str | None = None,
    store: str | None = None,
    fiftyone: FiftyOneUse = "required",
    params: str | None = None,
    overrides: list[str] | None = None,
    record: bool = True,
    version: str | None = None,
) -> dict:
    """Generate a labelled dataset. A run that was cut off goes on: what is on disk and whole is not drawn again.

    Args:
        data: dataset folder; its train split gives the source images.
        ldm: the diffusion model's folder or hub id.
        adapter: folder of the adapter.
        out: folder of the generated dataset.
        images: how many to draw; where None, `generation.variants_per_image` of each source.
        seed: of the run.
        workers: worker processes; on a CUDA machine one per GPU at most. With `ray`, slots on the cluster; there
            may be more than it has room for now: they are filled when nodes join.
        ray: draw on a Ray cluster: "auto" for the one that this machine is a node of, or its head's host:port. Every
            node must see the folders under the same names. Without it, on this machine.
        store: URL of plan and shards, such as s3://bucket/prefix; without it they are in `out`. Machines that share no
            folder share a store.
        fiftyone: where FiftyOne cannot start, "required" fails and "skip" goes on; "off" never starts it.
        params: settings file; params.yaml of the current folder where none is given.
        overrides: strings section.key=value.
        record: commit to DVC where the run did the work of the stage `generate`.
        version: name of a dataset; the recorded run is tagged <name>-v<N> in git.

    Returns:
        Counts: planned, kept, dropped, failed, boxes, accepted, rejected.
    """
    model, settings = open_settings(params, overrides or [], ldm)
    counts = draw_dataset(Path(data), model, Path(adapter), Path(out), images, seed, settings, workers, ray, store)
    reviewed = review_dataset(Path(out), Path(data), settings, fiftyone, ldm_settings(model, settings))
    if record or version:
        options = {"data": data, "ldm": ldm, "adapter": adapter, "out": out, "images": images, "seed": seed}
        record_version("generate", options, settings, version)
    return {**counts, "accepted": reviewed["accepted"], "rejected": reviewed["rejected"]}
