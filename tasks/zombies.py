"""Runs whose process died without a word: found by their missing heartbeats, so that their slot is freed.

A worker tells the server when a flow's process ends. Where both were killed nobody does, and the run would hold the
pool's one slot for ever. Every run sends a heartbeat; an automation of the server marks one as crashed that has fallen
silent. What it finished is on disk, and the same run goes on from there.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

NAME = "mark silent runs as crashed"
HEARTBEAT_SECONDS = 30  # the least that Prefect takes
SILENT_SECONDS = 120  # four heartbeats: a machine under load delays some
RESTS = "diffusion-engine.flow-run.rests"  # our own event: see `say_that_it_rests`


async def watch_for_zombies(client) -> None:
    """Create the automation, or bring the one that is there up to date.

    Args:
        client: an open client of Prefect's server.
    """
    automation = _automation()
    found = await client.read_automations_by_name(NAME)
    if found:
        await client.update_automation(found[0].id, automation)
    else:
        await client.create_automation(automation)


def say_that_it_rests(run_id: UUID) -> None:
    """Tell the server that a run has just been suspended and will send no heartbeat.

    Prefect's own event of the suspension is not enough. It follows the run's earlier states, and the server holds it
    back until it has seen all of them, for 15 minutes at most; the first state of a run that a schedule made is never
    told as an event (Prefect 3.8). A run that is over needs no word: the server never marks such a one as crashed.
    """
    # Not above: Prefect reads its settings when it is imported, and `de up`, which imports this module, sets them.
    from prefect.events import emit_event

    emit_event(RESTS, {"prefect.resource.id": f"prefect.flow-run.{run_id}"})


def _automation():
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    heartbeat = "prefect.flow-run.heartbeat"
    # A run that is over, or waits for a person, sends none and is not silent.
    resting = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")
    return AutomationCore(
        name=NAME,
        description="Its process died without a word; the slot is free again.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, RESTS, *(f"prefect.flow-run.{state}" for state in resting)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message=f"It sent no heartbeat for {SILENT_SECONDS} s: its process died. Run it again, it goes on.",
            )
        ],
    )
