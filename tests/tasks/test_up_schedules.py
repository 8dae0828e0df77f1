"""Schedules under the real `de up`: a night comes at its time, and stays as a person has switched it."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from up_workspace import ROOT, lay_out, start, wait_for

sys.path.append(str(ROOT / "tests" / "flows"))
from night_workspace import STAND_IN, workspace  # noqa: E402, F401

from tasks.night_file import Nights  # noqa: E402
from tasks.zombies import SILENT_SECONDS  # noqa: E402

# The flow itself; the drawer alone is a stand-in.
NIGHT = f"""
import sys
sys.path.append({str(STAND_IN)!r})
from flows.scale_up import scale_up
from tasks import generate
generate.LOADER = "stub_drawer:load"
"""


def deployments(schedule: str, parameters: str = "{name: night}", entrypoint: str = "tiny.py:tiny") -> str:
    return f"""
deployments:
  - name: nightly
    entrypoint: {entrypoint}
    work_pool: {{name: gpu}}
    schedules: [{schedule}]
    parameters: {parameters}
"""


@pytest.mark.slow
def test_a_night_runs_at_its_time_without_anybody_asking(workspace):  # noqa: F811
    folder: Path = workspace.root
    (folder / "night.py").write_text(NIGHT)
    every_minute = '{cron: "* * * * *", timezone: UTC, active: true}'
    lay_out(folder, deployments(every_minute, json.dumps(workspace.parameters()), "night.py:scale_up"))
    running = start(folder, "--no-app", PYTHONPATH=os.pathsep.join([str(ROOT), str(STAND_IN)]))
    try:
        (done, *_) = wait_for(lambda: running.flow_runs("scale-up/nightly", "COMPLETED"), 420)
        running.wait_for_line("flow scale-up/nightly: completed")
    finally:
        running.stop()
    assert done["auto_scheduled"]
    expected, began = (datetime.fromisoformat(done[name]) for name in ("expected_start_time", "start_time"))
    assert expected.second == 0 and 0 <= (began - expected).total_seconds()
    night = Nights(folder / "nights").read(1)
    assert night.verdict == "promoted" and night.pool_images > 0


@pytest.mark.slow
def test_a_night_that_waits_for_a_person_is_not_taken_for_dead(workspace):  # noqa: F811
    """It sends no heartbeat while it is suspended. Of a run that a schedule made, not of one that was asked for: the
    server tells them apart, see `tasks.zombies.say_that_it_rests`."""
    folder: Path = workspace.root
    (folder / "night.py").write_text(NIGHT)
    given = workspace.parameters("scale_up.auto_accept=false")
    every_minute = '{cron: "* * * * *", timezone: UTC, active: true}'
    lay_out(folder, deployments(every_minute, json.dumps(given), "night.py:scale_up"))
    running = start(folder, "--no-app", PYTHONPATH=os.pathsep.join([str(ROOT), str(STAND_IN)]))
    try:
        (waiting, *_) = wait_for(lambda: running.flow_runs("scale-up/nightly", "PAUSED"), 420)
        assert waiting["auto_scheduled"]
        time.sleep(SILENT_SECONDS + 60)
        assert waiting["id"] in [run["id"] for run in running.flow_runs("scale-up/nightly", "PAUSED")]
        assert not running.flow_runs("scale-up/nightly", "CRASHED")
        running.post(f"/flow_runs/{waiting['id']}/resume", {})
        wait_for(lambda: Nights(folder / "nights").read(1).verdict == "promoted", 420)
    finally:
        running.stop()


@pytest.mark.slow
def test_a_schedule_stays_as_a_person_switched_it_until_the_file_says_something_new(tmp_path):
    off, on = (f'{{cron: "0 3 * * *", timezone: UTC, active: {word}}}' for word in ("false", "true"))

    def active_after(schedule: str, *command: str) -> tuple[bool, str]:
        """Write the file, start, give a user's command. Was the schedule active before that; what was said."""
        lay_out(tmp_path, deployments(schedule))
        running = start(tmp_path, "--no-app")
        try:
            (deployment,) = running.post("/deployments/filter", {}).json()
            if command:
                running.prefect("deployment", "schedule", *command)
            (entry,) = deployment["schedules"]
            return entry["active"], "".join(running.said)
        finally:
            running.stop()

    assert active_after(off, "resume", "--all")[0] is False
    is_on, said = active_after(off)  # the same file: the person's word counts
    assert is_on and "Schedule of tiny/nightly, 0 3 * * * UTC: on, as it was switched by hand." in said
    assert active_after(on)[0] is True
    is_on, said = active_after(off)  # the file has changed since: its word counts
    assert not is_on and "Schedule of" not in said
