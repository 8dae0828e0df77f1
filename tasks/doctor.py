"""The examination of a machine and a workspace: many small checks, of which none can fail the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from tasks.doctor_check import WARNING, Check

# What is looked at, in this order: a function of the workspace's folder that returns checks. Imported one by one, when
# its turn comes: the packages that a module needs may be what is missing here.
CHECKS = {
    "packages": "tasks.doctor_packages:package_checks",
    "machine": "tasks.doctor_machine:machine_checks",
    "gpu": "tasks.doctor_machine:gpu_checks",
    "ports": "tasks.doctor_services:port_checks",
    "mongod": "tasks.doctor_services:database_checks",
    "git": "tasks.doctor_workspace:git_checks",
    "dvc": "tasks.doctor_workspace:dvc_checks",
    "settings": "tasks.doctor_workspace:settings_checks",
}


def examine(folder: Path, checks: Mapping[str, str] = CHECKS) -> Iterator[Check]:
    """Look at everything, in order. What cannot be looked at on this machine is a warning, never an error."""
    for name, where in checks.items():
        module, _, function = where.partition(":")
        try:
            yield from getattr(import_module(module), function)(folder)
        except Exception as error:  # a strange machine is what this is for
            reason = " ".join(str(error).split())[:300]
            yield Check(name, WARNING, f"could not be looked at ({type(error).__name__}: {reason})")
