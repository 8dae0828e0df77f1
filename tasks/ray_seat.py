"""What runs on the nodes of a Ray cluster: one actor per slot, which drives a worker process of its own.

The models live in that process, not in the actor: what hangs or dies in there is killed and started again on the spot,
as on one machine, and it ends with the actor, however that ends.
"""

from __future__ import annotations

import socket
from pathlib import Path

from engine.errors import UserError
from engine.generation.source import DrawerSource
from engine.generation.worker_process import WorkerProcess


class Seat:
    """A slot's place on a node. All arguments and answers are plain values.

    Args:
        source: of the drawer, as `DrawerSource.as_json`; every node must see its folders under the same names.
        out: location of the run, likewise.
    """

    def __init__(self, source: dict, out: str):
        # Of the environment that Ray gave this actor, CUDA_VISIBLE_DEVICES above all.
        self._worker = WorkerProcess(DrawerSource.from_json(source), out if "://" in out else Path(out))
        self._worker.__enter__()

    def where(self) -> str:
        """Host and process id of the actor, for messages; also the sign that it is there."""
        import os

        return f"process {os.getpid()} on {socket.gethostname()}"

    def identity(self) -> dict:
        """What the drawer says of itself, when the models are loaded."""
        return self._told(lambda: self._worker.identity)

    def run(self, shard: int, retry_failed: bool) -> dict:
        """Have a shard done; see `WorkerProcess.run`. Returns the counts."""
        return self._told(lambda: self._worker.run(shard, retry_failed).as_dict())

    def _told(self, ask):
        try:
            return ask()
        except UserError as error:
            raise type(error)(f"On Ray's node {socket.gethostname()}: {error}") from None
