"""A review in a real browser: `de app`, decide, correct a box, collect, and see it in what training reads.

With DE_PICTURE=docs/app.png it writes the README's picture too:
    DE_PICTURE=docs/app.png uv run pytest -m slow tests/tasks/test_app_browser.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from review_world import CATEGORIES, Folders, _numbered, folders, provenance  # noqa: F401

from engine.curation.queues import share_out
from engine.curation.training_labels import training_labels
from engine.data.dataset import ImageRecord, read_dataset, write_dataset
from engine.data.world import render_scene
from engine.sections import ReviewSettings, Settings
from tasks.mongod import free_port
from tasks.review import review

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dependency group dev)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
ROOT = Path(__file__).parents[2]
IMAGES = 24
PATIENCE = 90_000.0  # ms: machines are shared
# The only names that resolve are of this machine: the App must work without a network.
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture
def generated(folders, monkeypatch, tmp_path):  # noqa: F811
    """Scenes with their true boxes; the scores put some below the gates' threshold and some near it."""
    monkeypatch.setenv("DE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    folders.generated = tmp_path / "world" / "generated"  # the App shows these two words
    images, rows = [], []
    (folders.generated / "images").mkdir(parents=True)
    for number in range(1, IMAGES + 1):
        scene, name = render_scene(100 + number), f"{number:06d}.png"
        scene.image.save(folders.generated / "images" / name)
        images.append(ImageRecord(number, name, *scene.image.size, {"de": provenance(number, (number - 1) % 4 + 1)}))
        for place, thing in enumerate(scene.objects):
            rows.append((number, thing.class_name, thing.box_xywh, {"score": 0.3 + (7 * number + 3 * place) % 13 / 20}))
    write_dataset(folders.generated, "annotations", images, _numbered(rows), CATEGORIES)
    review(folders.generated, folders.real, Settings(review=ReviewSettings(min_mean_score=0.5)), fiftyone="off")
    return folders


def de(*words: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,
    )


@contextmanager
def app(folders: Folders, *words: str):  # noqa: F811
    """`de app` as a person starts it: the address that it prints."""
    port = str(free_port())
    process = de("app", str(folders.generated), "--real", str(folders.real), "--port", port, *words)
    try:
        yield next(line.split()[-1] for line in process.stdout if "http://" in line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 0


@contextmanager
def browser_pages(number: int = 1):
    """Pages that share nothing, as in as many browsers."""
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        pages = [browser.new_page(viewport={"width": 1440, "height": 900}) for _ in range(number)]
        for page in pages:
            page.set_default_timeout(PATIENCE)
            # The advertisement that covers the grid on a first visit.
            page.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
        try:
            yield pages
        finally:
            browser.close()


class Reviewer:
    """What a person does on the page."""

    def __init__(self, page):
        self.page, self.tiles = page, page.locator("[data-cy=fo-grid] [data-cy=looker]")

    def waits_for(self, images: int) -> None:
        self.page.get_by_text(re.compile(rf"^{images} groups? with slice")).wait_for()
        playwright.expect(self.tiles).to_have_count(images, timeout=PATIENCE)

    def selects_first(self) -> None:
        self.tiles.first.hover()
        self.tiles.first.click(position={"x": 18, "y": 18})  # its tick box, which is drawn when the mouse is there
        self.page.locator("[data-cy=action-manage-selected]").wait_for()

    def accepts(self) -> None:
        self.page.get_by_role("button", name="Accept selected").click()
        self.page.get_by_text("1 image accepted.").wait_for()

    def rejects(self, reason: str) -> None:
        self.selects_first()
        self.page.get_by_role("button", name="Reject selected").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("combobox").click()
        self.page.get_by_role("option", name=reason).click()
        dialog.get_by_role("button", name="Execute").click()
        self.page.get_by_text(f"1 image rejected: {reason}.").wait_for()

    def opens_first(self) -> None:
        self.tiles.first.click()
        self.page.locator("[data-cy=modal]").wait_for()

    def closes(self) -> None:
        modal = self.page.locator("[data-cy=modal]")
        modal.wait_for()
        for _ in range(60):  # a page that still loads does not hear the mouse
            if not modal.is_visible():
                return
            self.page.mouse.click(8, 500)  # beside it
            self.page.wait_for_timeout(500)
        raise AssertionError("the image does not close")

    def widens_a_box(self, width: float) -> int:
        """The HTTP status of the answer to it."""
        self.page.locator("[data-cy=annotate]").click()
        self.page.locator("[data-cy^=annotate-label-]").first.click()
        field = self.page.locator("[data-cy=root_dimensions_width_container] input")
        with self.page.expect_response(
            lambda answer: answer.request.method == "PATCH" and "/sample" in answer.url
        ) as saved:
            field.fill(str(width))
            field.press("Tab")
        return saved.value.status


def test_a_review_in_the_browser_reaches_training(generated):
    dataset = read_dataset(generated.generated, "annotations")
    queue = [
        i for i, who in share_out([image.id for image in dataset.images], ("anna", "ben")).items() if who == "anna"
    ]
    scores = {image_id: [a.extra["score"] for a in dataset.annotations_of(image_id)] for image_id in queue}
    order = sorted(queue, key=lambda image_id: sum(scores[image_id]) / len(scores[image_id]))
    outside, errors = set(), []
    with app(generated, "--reviewer", "anna", "--reviewers", "anna,ben") as url, browser_pages() as (page,):
        page.on(
            "request", lambda r: None if re.match(r"http://127\.0\.0\.1|data:|blob:", r.url) else outside.add(r.url)
        )
        page.on("response", lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        assert url.endswith("?view=queue-anna")
        page.goto(url)
        anna = Reviewer(page)
        anna.waits_for(len(queue))
        anna.selects_first()
        if os.environ.get("DE_PICTURE"):
            page.screenshot(path=os.environ["DE_PICTURE"])
        anna.accepts()
        anna.waits_for(len(queue) - 1)
        anna.rejects("wrong boxes")
        anna.waits_for(len(queue) - 2)
        anna.opens_first()
        assert anna.widens_a_box(0.125) == 200
        assert not page.locator(".MuiAlert-colorError, [class*=Error]").count(), page.content()[:2000]
        collecting = de("review", str(generated.generated), "--real", str(generated.real), "--collect")
        assert (
            "Boxes of 1 images were corrected" in collecting.communicate(timeout=300)[0] and not collecting.returncode
        )
        assert not errors and {re.sub(r"^https?://|/.*", "", address) for address in outside} <= {
            "fonts.googleapis.com"
        }

    accepted, rejected, corrected = order[:3]
    decisions = json.loads((generated.generated / "decisions.json").read_text())
    assert accepted in decisions["accepted"] and "wrong boxes" not in json.dumps(decisions["accepted"])
    assert decisions["reviewer"] == {str(accepted): "accepted", str(rejected): "rejected"}
    assert decisions["decided_by"] == {str(accepted): "anna", str(rejected): "anna"}
    (line,) = (generated.generated / "decisions.jsonl").read_text().splitlines()
    assert json.loads(line)["image_id"] == corrected and json.loads(line)["reviewer"] == "anna"
    trained = training_labels(generated.generated, dataset)
    assert accepted in {image.id for image in trained.images} and rejected not in {image.id for image in trained.images}
    (box,) = json.loads(line)["changed"]
    assert box["bbox"][2] == pytest.approx(0.125 * 64, abs=0.01)


def test_only_the_page_opened_last_writes_and_only_to_its_reviewers_images(generated):
    dataset = read_dataset(generated.generated, "annotations")
    owner = share_out([image.id for image in dataset.images], ("anna", "ben"))
    images = list(owner.values()).count("anna")
    with app(generated, "--reviewer", "anna", "--reviewers", "anna,ben") as url, browser_pages(2) as (first, second):
        first.goto(url)
        old, new = Reviewer(first), Reviewer(second)
        old.waits_for(images)
        old.opens_first()
        second.goto(url)
        new.waits_for(images)
        assert ask(first, "PATCH", "/dataset/some/sample/one") == 409
        cover = first.locator("[data-cy=replaced]")
        cover.wait_for()
        if os.environ.get("DE_LOOK"):
            first.screenshot(path=f"{os.environ['DE_LOOK']}-replaced.png")
        second.locator("[data-cy=modal]").wait_for()  # FiftyOne opens the image there too
        assert new.widens_a_box(0.125) == 200
        cover.get_by_role("button").click()  # go on here instead
        cover.wait_for(state="detached")
        old.closes()  # it came back on the image that was open
        old.waits_for(images)
        old.selects_first()
        old.accepts()
        second.locator("[data-cy=replaced]").wait_for()

        first.goto(url.replace("queue-anna", "queue-ben"))
        old.waits_for(len(owner) - images)
        old.opens_first()
        assert old.widens_a_box(0.3) == 409
        first.get_by_text("This image is in ben's queue, and anna sits here: nothing is saved.").wait_for()
        if os.environ.get("DE_LOOK"):
            first.screenshot(path=f"{os.environ['DE_LOOK']}-foreign.png")
        assert ask(first, "POST", "/tag") == 409
        collecting = de("review", str(generated.generated), "--real", str(generated.real), "--collect")
        assert "Boxes of 1 images were corrected" in collecting.communicate(timeout=300)[0]
    (line,) = (generated.generated / "decisions.jsonl").read_text().splitlines()
    assert owner[json.loads(line)["image_id"]] == "anna"
    (box,) = json.loads(line)["changed"]
    assert box["bbox"][2] == pytest.approx(0.125 * 64, abs=0.01)


def ask(page, method: str, path: str) -> int:
    """The HTTP status of a request that the page makes."""
    return page.evaluate("async ([method, path]) => (await fetch(path, {method, body: '{}'})).status", [method, path])
