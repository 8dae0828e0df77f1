"""Registers the deployments of prefect.yaml, and leaves schedules as a person has switched them.

`prefect deploy` sets every schedule to what the file says. Who has switched the nights on by a command or in the UI
would find them off after the next `de up`. So what the file said last is kept in the server, as a Prefect variable:
a schedule that was switched since stays so, until the file says something new about it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from engine.errors import RunFailed
from tasks.server import prefect_command

VARIABLE = "de_schedules"
_SECONDS = 600.0


async def register_deployments(workspace: Path, prefect_file: Path, environment: Mapping[str, str]) -> list[str]:
    """Register what the file names, from the workspace.

    Returns:
        A line for each schedule that is otherwise than the file says.

    Raises:
        RunFailed: Prefect refuses a deployment; says why.
    """
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        before = await _schedules(client)
        told = await _recall(client)
        _deploy(workspace, prefect_file, environment)
        after = await _schedules(client)
        said = {key: schedule.active for key, (_, schedule) in after.items()}
        switched = []
        for key, (deployment, schedule) in after.items():
            old = before[key][1].active if key in before else schedule.active
            if old != schedule.active == told.get(key, schedule.active):
                await client.update_deployment_schedule(deployment, schedule.id, active=old)
                switched.append(f"{key}: {'on' if old else 'off'}, as it was switched by hand")
        await _remember(client, said)
    return switched


async def _schedules(client) -> dict[str, tuple]:
    """{flow/deployment, schedule: (id of the deployment, schedule)}."""
    deployments = await client.read_deployments()
    names = {flow.id: flow.name for flow in await client.read_flows()}
    return {
        f"{names.get(deployment.flow_id, '?')}/{deployment.name}, {_words(entry.schedule)}": (deployment.id, entry)
        for deployment in deployments
        for entry in deployment.schedules
    }


def _words(schedule) -> str:
    """The same for the same schedule; a new time in the file is a new schedule."""
    cron = getattr(schedule, "cron", None)
    return f"{cron} {schedule.timezone or 'UTC'}" if cron else schedule.model_dump_json(exclude={"anchor_date"})


async def _recall(client) -> dict[str, bool]:
    variable = await client.read_variable_by_name(VARIABLE)
    return variable.value if variable is not None and isinstance(variable.value, dict) else {}


async def _remember(client, said: dict[str, bool]) -> None:
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate

    if await client.read_variable_by_name(VARIABLE) is None:
        await client.create_variable(VariableCreate(name=VARIABLE, value=said))
    else:
        await client.update_variable(VariableUpdate(name=VARIABLE, value=said))


def _deploy(workspace: Path, prefect_file: Path, environment: Mapping[str, str]) -> None:
    command = prefect_command("--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file.absolute()))
    done = subprocess.run(
        command,
        env=environment,
        cwd=workspace,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip()[-2000:]
        raise RunFailed(f"Could not register the deployments of {prefect_file}:\n{words}")
