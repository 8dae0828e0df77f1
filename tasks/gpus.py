"""One process on a GPU, whichever flows run: every GPU is a global concurrency limit of Prefect's server."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

log = logging.getLogger(__name__)
LEASE_S = 60.0  # of a holder that died without a word; the least that Prefect allows
AGAIN_S = 2.0
LOCKED = 423


@contextmanager
def own_gpus(names: Sequence[str], count: int) -> Iterator[list[str]]:
    """Take `count` of this machine's GPUs that no other flow of this Prefect server holds; waits for them.

    Args:
        names: as in CUDA_VISIBLE_DEVICES; the first free ones are taken. At least `count`.
    """
    limits = {name: f"gpu-{socket.gethostname()}-{name}" for name in names}
    with get_client(sync_client=True) as client:
        for limit in limits.values():
            # A limit that does not exist limits nothing.
            client.upsert_global_concurrency_limit_by_name(limit, 1)
    told = False
    while True:
        with ExitStack() as held:  # all that are wanted, or none: nobody waits for one GPU and holds another
            taken: list[str] = []
            for name in names:
                if len(taken) < count and _take(held, limits[name]):
                    taken.append(name)
            if len(taken) == count:
                yield taken
                return
        if not told:
            told = True
            log.warning("Other flows draw on the GPUs of this machine: waiting for %d of %s.", count, ", ".join(names))
        time.sleep(AGAIN_S)


def _take(held: ExitStack, limit: str) -> bool:
    """Hold a limit's only slot until `held` closes; False where another flow has it."""
    try:
        # A server that is away for a while costs the slot, not the run.
        how = {"lease_duration": LEASE_S, "strict": True, "raise_on_lease_renewal_failure": False}
        held.enter_context(concurrency(limit, max_retries=0, **how))
    except ConcurrencySlotAcquisitionError as error:
        answer = getattr(error.__cause__, "response", None)
        if answer is None or answer.status_code != LOCKED:
            raise
        return False
    return True
