"""Tiny datasets for the tests of engine.data."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data"


def shared_data(name: str) -> Path:
    """A folder of real data beside the project; the test is skipped where it is absent."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the shared data set {name} is not beside the project")
    return folder


def make_picture(path: Path, size=(40, 30), seed=0, **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def sound_document() -> dict:
    """Two pictures of 40 x 30, three boxes, sparse category ids."""
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30, "caption": "two cells"},
            {"id": 7, "file_name": "sub/b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 3, "image_id": 1, "category_id": 90, "bbox": [1, 2.5, 10, 10.25], "area": 102.5, "iscrowd": 0},
            {"id": 1, "image_id": 1, "category_id": 2, "bbox": [20, 5, 20, 25], "area": 500, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0, "score": 0.5},
        ],
        "categories": [{"id": 2, "name": "RBC", "supercategory": "cell"}, {"id": 90, "name": "WBC"}],
    }


def make_folder(folder: Path, document: object, split: str = "train") -> Path:
    """A dataset folder with the document as it is, and a picture for each well-formed name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / f"{split}.json").write_text(text)
    make_picture(folder / "images" / "a.png", seed=1)
    make_picture(folder / "images" / "sub" / "b.png", seed=2)
    return folder


def measure(code: str, *arguments: object) -> dict:
    """Run python code in a fresh process with 4 GB at most; it prints one json object.

    Returns that object and `grown`: by how many bytes the process grew from the call of start() to its end.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is measured through /proc")
    prelude = (
        "import json, re, sys\n"
        "def peak():\n"  # not ru_maxrss: a child inherits its parent's
        "    return 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "def start():\n    global before\n    before = peak()\n"
        "def finish(**answer): print(json.dumps({**answer, 'grown': peak() - before}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,  # a crowded machine; the tests bound the CPU time
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
