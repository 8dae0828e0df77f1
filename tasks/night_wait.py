"""A night that a person looks at before its images are used: the flow run is suspended and holds no slot meanwhile."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause
from prefect.flow_runs import suspend_flow_run

from tasks.night_file import Night, Nights
from tasks.zombies import say_that_it_rests


def suspends(night: Night) -> bool:
    """Whether this flow run is the one that suspends for the night. Where it was not started by a deployment it cannot
    be: then it ends, and a run with `reviewed` goes on. Nor where another run already waits for the same night."""
    run = FlowRunContext.get().flow_run
    if run.deployment_id is None:
        return False
    return night.waits_for in (None, "", str(run.id)) or not _is_suspended(night.waits_for)


def wait_for_person(nights: Nights, night: Night) -> Night:
    """Suspend this flow run; call it in a flow, outside of tasks. Once the run is resumed, it begins anew, comes here
    again, and this returns the night as one that a person has looked at."""
    run = FlowRunContext.get().flow_run
    night = nights.write(night, waits_for=str(run.id))
    try:
        suspend_flow_run(key=f"night-{night.number}")
    except Pause:  # always, except in a run that was resumed
        say_that_it_rests(run.id)
        raise
    return nights.write(night, looked=True, waits_for=None)


def _is_suspended(run_id: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run_id)).state
        except ObjectNotFound:
            return False
    return state is not None and state.is_paused()
