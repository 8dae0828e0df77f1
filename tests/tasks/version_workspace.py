"""What tests of versions share: a real git and DVC workspace; only the step itself is a stand-in for `de generate`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from engine.config import load_settings
from engine.data.dataset import write_dataset
from engine.data.records import Annotation, Category, ImageRecord
from engine.evaluation.results import SCORES
from engine.generation.run import generate
from tasks.version import record

STAND_IN = str(Path(__file__).parents[1] / "engine" / "generation")  # the folder of stub_drawer
sys.path.append(STAND_IN)

# Draws nothing: writes what `--images` and params.yaml say, and tells that it ran.
STEP = """#!{python}
import pathlib, sys, yaml
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
out = pathlib.Path(options["--out"])
out.mkdir(exist_ok=True)
steps = (yaml.safe_load(open("params.yaml"))["generation"] or {{}}).get("steps", 50)
for number in range(int(options["--images"])):
    part = out / f".part-{{number}}"
    part.write_text(f"image {{number}} of {{steps}} steps")
    part.rename(out / f"{{number}}.txt")
pathlib.Path("metrics.json").write_text('{{"images": %s}}' % options["--images"])
open("ran.log", "a").write("ran\\n")
"""
STAGE = {
    "cmd": "de generate --data data --out generated --images 3 --seed 0 --workers 2",
    "deps": ["data"],
    "params": ["generation"],
    "outs": [{"generated": {"persist": True}}],
    "metrics": [{"metrics.json": {"cache": False}}],
}
OPTIONS = {"data": "data", "out": "generated", "images": 3, "seed": 0}


class Workspace:
    def __init__(self, root: Path):
        self.root = root

    def sh(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dvc(self, *words: str) -> str:
        return self.sh(sys.executable, "-m", "dvc", *words)

    def step(self, images: int = 3) -> None:
        """What a flow does before it records."""
        self.sh("de", "generate", "--data", "data", "--out", "generated", "--images", str(images), "--seed", "0")

    def settings(self, *overrides: str):
        return load_settings(self.root / "params.yaml", overrides)

    def record(self, *overrides: str, dataset=None, **options):
        return record("generate", OPTIONS | options, self.settings(*overrides), self.root, dataset)

    def write_stage(self, **changes) -> None:
        (self.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"generate": STAGE | changes}}))

    def runs(self) -> int:
        return len((self.root / "ran.log").read_text().splitlines())


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A committed workspace with one stage that never ran; tests take copies."""
    root = tmp_path_factory.mktemp("fresh") / "workspace"
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.txt").write_text("real")
    (root / "params.yaml").write_text("generation:\n  steps: 20\n")
    (root / ".gitignore").write_text("/ran.log\n/bin\n")
    (root / "bin").mkdir()
    (root / "bin" / "de").write_text(STEP.format(python=sys.executable))
    (root / "bin" / "de").chmod(0o755)
    workspace = Workspace(root)
    workspace.write_stage()
    workspace.sh("git", "init", "-q")
    workspace.sh("git", "config", "user.email", "a@example.org")
    workspace.sh("git", "config", "user.name", "a")
    workspace.dvc("init", "-q")
    workspace.sh("git", "add", ".")
    workspace.sh("git", "commit", "-qm", "start")
    return root


@pytest.fixture
def workspace(fresh, tmp_path, monkeypatch) -> Workspace:
    shutil.copytree(fresh, tmp_path / "w", symlinks=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'w' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return Workspace(tmp_path / "w")


def draw_dataset(folder: Path, out: Path, images: int = 4, *overrides: str) -> None:
    """A real generated dataset; only its drawer is a stand-in."""
    (folder / "data" / "images").mkdir(parents=True)
    (folder / "adapter").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "data" / "images" / "1.png")
    box = Annotation(1, 1, 2, (2.0, 3.0, 10.0, 9.0), 90.0, 0, {})
    categories = [Category(i, f"class{i}") for i in (2, 5, 9)]
    write_dataset(folder / "data", "train", [ImageRecord(1, "1.png", 32, 32, {})], [box], categories)
    settings = load_settings(None, ["ldm.resolution=32", "generation.keep_negatives=true", *overrides])
    generate(folder / "data", "stub", folder / "adapter", out, images, 0, settings, loader="stub_drawer:load")


DRAWN_STAGE = {
    "cmd": "de generate --data real/data --ldm stub --adapter real/adapter --out generated --images 4 --seed 0",
    "deps": ["real/data", "real/adapter"],
    "metrics": [],
}
DRAWN_OPTIONS = {"data": "real/data", "ldm": "stub", "adapter": "real/adapter", "out": "generated", "images": 4}


def draw_here(workspace: Workspace, *overrides: str) -> Path:
    """A real generated dataset as the output of the workspace's stage, not recorded yet. Returns its folder."""
    draw_dataset(workspace.root / "real", workspace.root / "generated", 4, *overrides)
    workspace.write_stage(**DRAWN_STAGE)
    return workspace.root / "generated"


def results_on(content: dict, difference: float = 0.012) -> dict:
    """A results.json of a comparison on a generated dataset of that content."""
    arm = {score: [0.4, 0.5] for score in SCORES} | {"loss_curve": [[], []], "seconds": [1.0, 1.0]}
    delta = {"mean": difference, "ci95": [difference - 0.01, difference + 0.01], "verdict": "cannot tell"}
    delta |= {"baseline": "real", "treatment": "real+de"}
    return {
        "arms": {"real": arm, "real+de": arm},
        "baseline": "real",
        "delta": delta,
        "deltas": {"real+de": delta},
        "seeds": [0, 1],
        "settings": {"detector": {"name": "small"}},
        "versions": {},
        "data": {"test": {"sha256": "e" * 64}},
        "generated": {},
        "adapter": {},
        "trained_on": {"generated": {"folder": "generated", "content": content, "version": None}},
    }
