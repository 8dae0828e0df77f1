"""The webhook: what is sent, and that no failure is an error or shows the URL."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from engine.config import as_dict, load_settings
from engine.errors import ConfigError
from engine.sections import Settings
from tasks.webhook import notify, webhook_url

SECRET = "t0ken"


@pytest.fixture
def server():
    """A web server on this machine; answers `status`, remembers what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_json_is_posted(server):
    url = f"http://127.0.0.1:{server.server_port}/{SECRET}"
    assert notify(url, {"text": "Night 3 is promoted", "night": 3})
    assert server.got == [(f"/{SECRET}", "application/json", {"text": "Night 3 is promoted", "night": 3})]


def test_failures_are_warnings_without_the_url(server, caplog):
    server.status = 500
    assert not notify(f"http://127.0.0.1:{server.server_port}/{SECRET}", {})
    assert "HTTP 500" in caplog.text
    port = server.server_port
    for url in (f"http://127.0.0.1:{port}/{SECRET} \n", f"https://127.0.0.1:{port}/{SECRET}", f"file:///{SECRET}"):
        assert not notify(url, {}, seconds=5)
    assert not notify(f"http://no-such-host.invalid/{SECRET}", {}, seconds=5)
    assert len(caplog.records) == 5 and all(record.levelname == "WARNING" for record in caplog.records)
    assert SECRET not in caplog.text
    assert not notify("", {}) and len(caplog.records) == 5


def test_the_setting_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("DE_WEBHOOK", "https://example.org/a")
    assert webhook_url("") == "https://example.org/a" and webhook_url("https://example.org/b").endswith("/b")
    monkeypatch.delenv("DE_WEBHOOK")
    assert webhook_url("") == ""


def test_the_url_is_in_no_file_and_no_message():
    settings = load_settings(None, [f"scale_up.webhook=https://example.org/{SECRET}"])
    assert settings.scale_up.webhook.endswith(SECRET)
    assert as_dict(settings) == as_dict(Settings()) and SECRET not in repr(settings)
    assert as_dict(settings.scale_up)["webhook"] == ""
    with pytest.raises(ConfigError, match="scale_up.webhook must be a URL") as refused:
        load_settings(None, [f"scale_up.webhook=ftp://{SECRET}"])
    assert SECRET not in str(refused.value)
