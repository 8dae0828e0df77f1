"""`de up` with a password on Prefect's server."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from up_workspace import environment_of, lay_out, start, wait_for, words

from tasks.pool import POOL
from tasks.server import api_url

SECRET = "grosses-geheimnis"


@pytest.mark.slow
def test_who_has_not_the_auth_string_is_refused_and_flows_run(tmp_path):
    lay_out(tmp_path)
    running = start(tmp_path, "--no-app", PREFECT_SERVER_API_AUTH_STRING=f"admin:{SECRET}")
    try:
        for path in ("/admin/version", "/admin/settings", "/csrf-token?client=test"):
            for auth, code in ((None, 401), (("admin", "guess"), 401), (("admin", SECRET), 200)):
                assert httpx.get(f"{api_url(running.port)}{path}", auth=auth).status_code == code
        # Neither is anything changed without it, with a token or not.
        blind = {"prefect-csrf-client": "test", "prefect-csrf-token": "guess"}
        for headers in ({}, blind):
            refused = httpx.post(f"{api_url(running.port)}/flow_runs/filter", json={}, headers=headers)
            assert refused.status_code in (401, 403)
        # What a worker of another machine does first, with the password and without.
        prepare = [sys.executable, "-P", "-m", "tasks.prepare_server", "3"]
        own = environment_of(tmp_path) | {"PREFECT_API_URL": api_url(running.port)}
        stranger = subprocess.run(prepare, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert stranger.returncode == 1 and "refused (401)" in stranger.stderr and "Traceback" not in stranger.stderr
        own |= {"PREFECT_API_AUTH_STRING": f"admin:{SECRET}"}
        subprocess.run(prepare, cwd=tmp_path, env=own, check=True)
        pool = httpx.get(f"{api_url(running.port)}/work_pools/{POOL}", auth=("admin", SECRET)).json()
        assert pool["concurrency_limit"] == 3
        running.deploy_run("tiny/default", "name=let-in", PREFECT_API_AUTH_STRING=f"admin:{SECRET}")
        wait_for((tmp_path / "let-in").exists, 180)
        running.wait_for_line("flow tiny/default: completed")
        command_lines = " ".join(word for process in running.family() for word in words(process))
    finally:
        running.stop()
    logs = "".join(path.read_text(errors="replace") for path in (tmp_path / ".prefect" / "logs").iterdir())
    for seen in (command_lines, "".join(running.said), logs):
        assert seen and SECRET not in seen
