"""The work pool of `de up`: how many flows run at once, and what becomes of those that died."""

from __future__ import annotations

from tasks.zombies import watch_for_zombies

POOL = "gpu"


async def prepare_pool(limit: int) -> None:
    """Create the work pool, or bring it up to date, and have the server watch for runs that die from now on."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    async with get_client() as client:
        pool = WorkPoolCreate(name=POOL, type="process", concurrency_limit=limit)
        await client.create_work_pool(pool, overwrite=True)
        await watch_for_zombies(client)


async def bury_dead_runs() -> int:
    """Free the slots of runs that died with an earlier `de up`, by marking them as crashed. Returns their number.

    Nothing of the pool may be running: the server's only worker is not started yet.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    alive = [StateType.RUNNING.value, StateType.PENDING.value, StateType.CANCELLING.value]
    async with get_client() as client:
        stale = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": alive}}}),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}}),
        )
        for run in stale:
            await client.set_flow_run_state(run.id, Crashed(message="Its process died with the server."), force=True)
    return len(stale)
