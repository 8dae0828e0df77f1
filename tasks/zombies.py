"""Runs whose process died without a word: found by their missing heartbeats, so that their slot is freed.

A worker tells the server when a flow's process ends. Where both were killed nobody does, and the run would hold the
pool's one slot for ever. Every run sends a heartbeat; an automation of the server marks one as crashed that has fallen
silent. What it finished is on disk, and the same run goes on from there.
"""

from __future__ import annotations

from datetime import timedelta

NAME = "mark silent runs as crashed"
HEARTBEAT_SECONDS = 30  # the least that Prefect takes
SILENT_SECONDS = 120  # four heartbeats: a machine under load delays some


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
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in resting)},
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
