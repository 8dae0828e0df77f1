"""What tests of the generation flow share: a small dataset, a stand-in for the drawer, and short words."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

STAND_IN = Path(__file__).parents[1] / "engine" / "generation"
sys.path.append(str(STAND_IN))

from PIL import Image  # noqa: E402

from engine.data.dataset import write_dataset  # noqa: E402
from engine.data.records import Annotation, Category, ImageRecord  # noqa: E402

ROOT = Path(__file__).parents[2]
# Runs the flow as a program of its own that can be killed; its server is that of the tests.
PROGRAM = """
import json, sys
from pathlib import Path
sys.path.append(sys.argv[1])
import tasks.generate, tasks.review
from generation_workspace import no_features, Workspace
tasks.generate.LOADER = "stub_drawer:load"
tasks.review.features_of = no_features
Workspace(Path(sys.argv[2])).run(**json.loads(sys.argv[3]))
"""
FAST = ["generation.shard_size=4", "generation.batch_size=2", "ldm.device=cpu"]


def no_features(ldm) -> tuple[None, None]:
    """Instead of `tasks.review.features_of`: the stand-in for the drawer has no model that could embed images."""
    return None, None


@dataclass
class Workspace:
    """A dataset, a drawer's folder with its behaviour, and an output folder."""

    root: Path

    def behave(self, **behaviour) -> None:
        (self.root / "adapter" / "behaviour.json").write_text(json.dumps(behaviour))

    def run(self, images=10, workers=2, ldm="stub", overrides=(), out="out", **options):
        from flows.generate_coco_de import generate_coco_de

        folders = [str(self.root / name) for name in ("data", "adapter", out)]
        return generate_coco_de(
            folders[0],
            ldm,
            *folders[1:],
            images,
            workers=workers,
            fiftyone="off",
            overrides=[*FAST, "ldm.resolution=32", *overrides],
            record=False,
            **options,
        )

    def start(self, **options) -> subprocess.Popen:
        """The same as `run` in another process."""
        from prefect.settings import PREFECT_API_URL

        environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
        command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(self.root), json.dumps(options)]
        return subprocess.Popen(command, env=environment, cwd=self.root)

    def committed(self, out="out") -> int:
        """Shards on disk."""
        return len(list((self.root / out / "shards").glob("[0-9]*/shard.json")))

    def files(self, out="out") -> dict[str, str]:
        """sha256 of every file that a user gets."""
        folder = self.root / out
        files = [folder / "annotations.json", folder / "manifest.json", *sorted((folder / "images").iterdir())]
        return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def drawn(self) -> list[int]:
        """Items drawn since the last call, in order of their numbers."""
        log = self.root / "adapter" / "drawn.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return sorted(int(word) for line in lines for word in line.split()[:-1])

    def digest(self) -> str:
        return hashlib.sha256((self.root / "out" / "annotations.json").read_bytes()).hexdigest()


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    import tasks.generate
    import tasks.review

    monkeypatch.chdir(tmp_path)  # no params.yaml, no dvc.yaml
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(STAND_IN)]))
    monkeypatch.setattr(tasks.generate, "LOADER", "stub_drawer:load")
    monkeypatch.setattr(tasks.review, "features_of", no_features)
    monkeypatch.setattr(tasks.generate.draw_shard, "retry_delay_seconds", 0.1)
    (tmp_path / "adapter").mkdir()
    images, boxes = [], []
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(1, 4):
        Image.new("RGB", (44, 32), (i * 40, 0, 0)).save(tmp_path / "data" / "images" / f"{i}.png")
        images.append(ImageRecord(i, f"{i}.png", 44, 32, {}))
        boxes.append(Annotation(i, i, 2, (2.0, 3.0, 10.0, 9.0), 90.0, 0, {}))
    write_dataset(tmp_path / "data", "train", images, boxes, [Category(i, f"class{i}") for i in (2, 5, 9)])
    return Workspace(tmp_path)


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def last_flow_state() -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0].state_type.value
