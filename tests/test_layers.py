"""The floors of the house: engine below tasks below flows, and nothing happens at import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
ORCHESTRATORS = {"prefect", "fiftyone", "dvc"}
FORBIDDEN = {"engine": ORCHESTRATORS | {"tasks", "flows"}, "tasks": {"flows"}, "flows": {"fiftyone", "dvc"}}


def imported_names(source: str) -> set[str]:
    """Top-level packages of every import statement, and of importlib.import_module("literal")."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
    return {name.partition(".")[0] for name in names}


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_downwards(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    wrong = {
        str(file.relative_to(ROOT)): sorted(found)
        for file in files
        if (found := imported_names(file.read_text(encoding="utf-8")) & FORBIDDEN[package])
    }
    assert not wrong


def test_the_check_sees_every_kind_of_import():
    source = "def f():\n import prefect.flows\n from dvc.repo import Repo\n importlib.import_module('fiftyone.core')"
    assert imported_names(source) >= ORCHESTRATORS


IMPORT_ALL = """
import importlib, socket, sys
blocked, modules = set(sys.argv[1].split(",")), sys.argv[2].split(",")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

def no_network(*arguments):
    raise AssertionError(f"a socket was opened at import: {arguments}")

sys.meta_path.insert(0, Block())
socket.socket.connect = socket.socket.bind = socket.create_connection = no_network
for module in modules:
    importlib.import_module(module)
if "torch" in sys.modules:
    assert not sys.modules["torch"].cuda.is_initialized()
"""


def import_in(folder: Path, modules: list[str], blocked: set[str]) -> set[Path]:
    """Import in a fresh process in an empty folder that is also HOME; returns the files that appeared."""
    environment = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    environment |= {"HOME": str(folder), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    # pycocotools imports matplotlib, which writes a list of the machine's fonts into its own cache.
    environment |= {"MPLCONFIGDIR": matplotlib.get_cachedir()}
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(blocked or {"-"}), ",".join(modules)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {path for path in folder.rglob("*") if path.is_file()}


def test_engine_imports_without_the_orchestrators(tmp_path):
    modules = [name for name in modules_of("engine") if not name.endswith("__main__")]
    assert len(modules) > 20
    assert not import_in(tmp_path, modules, FORBIDDEN["engine"])


def test_importing_the_commands_and_tasks_creates_no_file_and_opens_no_socket(tmp_path):
    assert not import_in(tmp_path, modules_of("tasks") + modules_of("flows"), {"fiftyone", "dvc"})
