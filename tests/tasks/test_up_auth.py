"""`de up` with a password on Prefect's server."""

from __future__ import annotations

import httpx
import pytest
from up_workspace import lay_out, start, wait_for, words

from tasks.server import api_url

SECRET = "grosses-geheimnis"


@pytest.mark.slow
def test_who_has_not_the_auth_string_is_refused_and_flows_run(tmp_path):
    lay_out(tmp_path)
    running = start(tmp_path, "--no-app", PREFECT_SERVER_API_AUTH_STRING=f"admin:{SECRET}")
    try:
        for auth in (None, ("admin", "guess")):
            for path in ("/flow_runs/filter", "/events/filter"):
                assert httpx.post(f"{api_url(running.port)}{path}", json={}, auth=auth).status_code == 401
            assert httpx.get(f"{api_url(running.port)}/flows/count", auth=auth).status_code == 401
        running.deploy_run("tiny/default", "name=let-in", PREFECT_API_AUTH_STRING=f"admin:{SECRET}")
        wait_for((tmp_path / "let-in").exists, 180)
        running.wait_for_line("flow tiny/default: completed")
        command_lines = " ".join(word for process in running.family() for word in words(process))
    finally:
        running.stop()
    logs = "".join(path.read_text(errors="replace") for path in (tmp_path / ".prefect" / "logs").iterdir())
    for seen in (command_lines, "".join(running.said), logs):
        assert seen and SECRET not in seen
