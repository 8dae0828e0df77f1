"""The FiftyOne App on a generated dataset, served on 127.0.0.1 only.

The App has no password and serves any file that its process can read, so no other address is offered. Reach it from
another machine through an ssh tunnel.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.curation.decisions import Decisions, load_decisions
from engine.curation.edits import read_edits
from engine.curation.gates_file import load_gates
from engine.curation.reviewer import recall_verdicts
from engine.data.dataset import read_dataset
from engine.errors import RunFailed
from tasks import fiftyone_dataset
from tasks.app_plugins import plugin_environment
from tasks.app_queues import REVIEWER, arrange, dataset_to_itself, opened
from tasks.fiftyone_connection import connected_fiftyone, fiftyone_environment
from tasks.fiftyone_views import queue_view
from tasks.home import home_folder
from tasks.ports import HOST, check_free
from tasks.review import read_splits

log = logging.getLogger(__name__)

PORT = 5151
_START_SECONDS = 300.0  # a busy machine takes minutes to import FiftyOne; a dead server is noticed at once
_STOP_SECONDS = 10.0


def launch_app(
    generated: Path,
    port: int = PORT,
    open_browser: bool = False,
    real: Path | None = None,
    announce: Callable[[str], None] = log.info,
    reviewer: str | None = None,
    reviewers: Sequence[str] = (),
) -> None:
    """Serve the App on a generated dataset until Ctrl-C (or SIGTERM), then stop everything that was started.

    Args:
        generated: folder with annotations.json; loaded into FiftyOne unless it is there already.
        port: of the App, on 127.0.0.1.
        open_browser: open the dataset's page in the user's browser.
        real: the dataset that it was generated from, to show source images when it has to be loaded.
        announce: called once with the page's address.
        reviewer: who decides here, on a queue of their own; None for one App for all.
        reviewers: all who share the dataset out; none named are those of the last time, or the one alone.

    Raises:
        DatasetError, ConfigError: the folder cannot be used, the port is taken, or the dataset is open elsewhere.
        RunFailed: FiftyOne, its database or the App does not start, or the App dies.
    """
    try:
        with _sigterm_as_interrupt(), running_app(generated, port, real, reviewer, reviewers) as (url, process):
            announce(url)
            if open_browser:
                webbrowser.open(url, new=2)
            code = process.wait()
            raise RunFailed(f"The FiftyOne App ended by itself (exit code {code}). See {_log_file(port)}.")
    except KeyboardInterrupt:
        log.info("The App is stopped.")


@contextmanager
def running_app(
    generated: Path,
    port: int,
    real: Path | None = None,
    reviewer: str | None = None,
    reviewers: Sequence[str] = (),
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The App's server, answering, with the dataset loaded: (address of the reviewer's queue, server process).

    Raises:
        as launch_app.
    """
    check_free(port, "--port")
    with connected_fiftyone() as fiftyone:
        name = ensure_loaded(fiftyone, Path(generated), real)
        arrange(fiftyone, name, reviewer, reviewers)
        dataset = fiftyone.load_dataset(name)
        view = fiftyone.core.utils.to_slug(queue_view(reviewer))
        with opened(name, reviewer) as locks:
            process = _start(port, app_environment(fiftyone, reviewer), locks)
            try:
                _wait_until_up(process, port)
                yield f"http://{HOST}:{port}/datasets/{dataset.slug}?view={view}", process
            finally:
                _stop(process)


def ensure_loaded(fiftyone, generated: Path, real: Path | None = None) -> str:
    """Load a generated dataset from its files unless FiftyOne holds it as it is now. Returns its name in FiftyOne.

    Raises:
        DatasetError: the folder, its decisions, its edits, its gates.json or the real dataset cannot be used.
        ConfigError: it would have to be loaded anew, and is open in the App.
    """
    name = fiftyone_dataset.dataset_name(generated)
    shown = fiftyone_dataset.find(fiftyone, name)
    if shown is not None and fiftyone_dataset.shows(shown, generated):
        return name
    dataset = read_dataset(generated, "annotations")
    decisions = load_decisions(generated, dataset)
    if decisions is None:
        log.warning("%s has not been reviewed: every image counts as accepted until it is.", generated)
        decisions = Decisions(frozenset(image.id for image in dataset.images), {})
    splits = read_splits(Path(real)) if real is not None else None
    if splits is None:
        log.info("Source images are not shown: give the real dataset's folder to see them.")
    judged = load_gates(generated, dataset)
    verdicts = recall_verdicts(decisions, dataset) if judged is None else judged.verdicts
    with dataset_to_itself(name):
        return fiftyone_dataset.load(fiftyone, dataset, splits, verdicts, decisions, read_edits(generated))


def app_command(port: int) -> list[str]:
    """The App's server; no dataset's words are in it."""
    return [sys.executable, "-m", "tasks.app_server", str(port)]


def app_environment(fiftyone, reviewer: str | None = None) -> dict[str, str]:
    """What the App's server is started with, on the database that FiftyOne is connected to."""
    config = fiftyone.config
    return {
        **os.environ,
        **fiftyone_environment(config.database_uri),
        **plugin_environment(config.plugins_dir),
        REVIEWER: reviewer or "",
    }


def _start(port: int, environment: Mapping[str, str], locks: Sequence[int]) -> subprocess.Popen:
    # Its own session: Ctrl-C reaches us, and we stop it in order.
    with _log_file(port).open("wb") as output:
        return subprocess.Popen(
            app_command(port),
            env=environment,
            pass_fds=locks,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_up(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    code = process.poll()
    what = "did not answer in time" if code is None else f"ended with exit code {code}"
    words = _log_file(port).read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    raise RunFailed(f"The FiftyOne App {what}. See {_log_file(port)}; its last words:\n" + "\n".join(words))


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _log_file(port: int) -> Path:
    home = home_folder()
    home.mkdir(parents=True, exist_ok=True)
    return home / f"app-{port}.log"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Stop on SIGTERM as on Ctrl-C; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
