"""A real Ray cluster on this machine: every node has its own daemon and worker processes. All of it is on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

SMALL = {"node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000, "include_dashboard": False}
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's word for: 127.0.0.1 is not to be replaced by the outer address
    "RAY_memory_monitor_refresh_ms": "0",  # it watches the whole machine, which others use too
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class RayCluster:
    """A head without room for work, so that no test kills what drives it; `add` lets nodes join.

    Args:
        modules: folders that worker processes import from.
    """

    def __init__(self, modules: list[str], monkeypatch):
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the names of its sockets must stay short
        (self._folder / "token").write_text("a-token-of-the-tests-0123456789")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(self._folder / "token"))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(modules))
        # Ray notes the newest cluster's address in its own folder, and does not make that folder for one elsewhere.
        (self._folder / "ray").mkdir()
        monkeypatch.setenv("RAY_TMPDIR", str(self._folder))
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)  # before Ray is imported
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(shutdown_at_exit=False)  # else nodes can be added in the main thread only
        self._cluster.add_node(num_cpus=0, temp_dir=str(self._folder / "r"), **SMALL)
        self.address = self._cluster.address

    def add(self, cpus: int = 1, gpus: int = 0):
        """Let a node join."""
        return self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, **SMALL)

    def kill(self, node) -> None:
        """As if its power were cut."""
        for process in family(node):
            process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def remove_all(self) -> None:
        """Leave the head alone."""
        for node in list(self._cluster.worker_nodes):
            self.kill(node)

    def stop(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def family(node) -> list[psutil.Process]:
    """The processes of a node: its daemon, the actors, and the worker processes that these drive."""
    (daemon,) = node.all_processes["raylet"]
    own = psutil.Process(daemon.process.pid)
    return [own, *own.children(recursive=True)]


def drawing(node) -> list[psutil.Process]:
    """The processes of a node that hold models."""
    return [process for process in family(node) if "engine.generation.worker" in words(process)]


def words(process: psutil.Process) -> list[str]:
    """The command line; empty for a process that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
