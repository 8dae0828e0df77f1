"""The temporary server of `de demo`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
from up_workspace import words

from tasks.server import HOST, use_temporary_server

ROOT = Path(__file__).parents[2]
DIRECT = """
import sys
from pathlib import Path
from tasks.server import use_temporary_server
use_temporary_server(Path("home"))
from prefect import flow, task
from prefect.client.orchestration import get_client

@task
def double(x):
    return 2 * x

@flow
def direct():
    return double(21)

assert direct() == 42
import time
with get_client(sync_client=True) as client:
    for _ in range(100):  # task runs arrive as events
        if (runs := client.read_task_runs()) and runs[0].state_name == "Completed":
            break
        time.sleep(0.1)
    print(client.read_flow_runs()[0].state_name, runs[0].state_name, client.api_url.host)
"""


def test_a_temporary_server_is_private_complete_and_ends_with_its_process(tmp_path):
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:1/api"\n')  # a workspace's: not for us
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "user")}
    done = subprocess.run(
        [sys.executable, "-c", DIRECT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Completed Completed {HOST}\n", "")
    assert (tmp_path / "home" / ".gitignore").read_text() == "*\n" and (tmp_path / "home" / "prefect.db").exists()
    assert not (tmp_path / "user").exists()
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(words(p))]


def test_a_server_that_the_user_named_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://server.example/api")
    before = dict(os.environ)
    use_temporary_server(tmp_path / "home")
    assert os.environ == before and not (tmp_path / "home").exists()


def test_what_sets_prefects_settings_does_not_import_it_before():
    """Prefect reads them once, when it is imported: with the port of another server `de up` would talk to nobody."""
    code = "import sys, tasks.server, tasks.up, flows.up_command; print([m for m in sys.modules if m == 'prefect'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
