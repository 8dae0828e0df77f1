"""The guard in front of FiftyOne, here a stand-in for it: tests/tasks/test_app_browser.py has the real one."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from tasks.app_guard import Guard

PAGE = b"<!DOCTYPE html><html><head><title>App</title></head></html>"
BROWSER = {"Accept": "text/html,*/*"}


async def fiftyone(scope, receive, send) -> None:
    """Its page for every GET; "done" for the rest."""
    body = PAGE if scope["method"] == "GET" else b"done"
    fields = [(b"content-type", b"text/html"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def queue_of(dataset: str, sample: str) -> str | None:
    return {"of-anna": "anna", "of-ben": "ben"}.get(sample)


def run(conversation, reviewer: str | None = None) -> None:
    async def whole() -> None:
        transport = httpx.ASGITransport(Guard(fiftyone, reviewer, queue_of))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            await conversation(client)

    asyncio.run(whole())


async def opened(client: httpx.AsyncClient, path: str = "/datasets/cells?view=queue") -> dict[str, str]:
    """Open the page as a browser does; the header by which it names itself."""
    page = await client.get(path, headers=BROWSER)
    assert page.status_code == 200 and len(page.content) == int(page.headers["content-length"])
    return {"X-App-Page": re.search(r'const page = "(\w+)"', page.text)[1]}


@pytest.mark.parametrize("path", ["/dataset/d/sample/s", "/dataset/d/sample/s/predictions.detections/1"])
def test_only_the_page_opened_last_writes(path):
    async def conversation(client):
        first = await opened(client)
        assert (await client.patch(path, headers=first)).text == "done"
        second = await opened(client)
        assert first != second
        refused = await client.patch(path, headers=first)
        assert refused.status_code == 409 and refused.headers["X-App-Page"] == "replaced"
        assert "another tab or browser" in refused.json()["message"]
        for where in ("/tag", "/operators/execute", "/operators/execute/generator"):
            assert (await client.post(where, headers=first)).status_code == 409
        assert (await client.get("/page", headers=first)).headers["X-App-Page"] == "replaced"
        assert (await client.post("/graphql", headers=first)).text == "done", "looking is free"
        assert (await client.patch(path, headers=second)).text == "done"
        assert (await client.get("/page", headers=second)).headers["X-App-Page"] == ""
        assert (await opened(client, "/")) not in (first, second)

    run(conversation)


def test_a_probe_takes_no_pages_place_and_a_script_may_write():
    async def conversation(client):
        page = await opened(client)
        assert (await client.get("/", headers={"Accept": "*/*"})).content == PAGE
        assert (await client.patch("/dataset/d/sample/s")).text == "done"
        assert (await client.patch("/dataset/d/sample/s", headers=page)).text == "done"

    run(conversation)


def test_a_reviewer_writes_on_no_image_of_another():
    async def conversation(client):
        page = await opened(client)
        for sample in ("of-anna", "of-nobody"):
            assert (await client.patch(f"/dataset/d/sample/{sample}", headers=page)).text == "done"
        for path in ("/dataset/d/sample/of-ben", "/dataset/d/sample/of-ben/predictions.detections/1"):
            refused = await client.patch(path, headers=page)
            assert refused.status_code == 409 and refused.headers["X-App-Page"] == "refused"
            assert "ben's queue, and anna sits here" in refused.json()["message"]
        tagged = await client.post("/tag", headers=page)
        assert tagged.status_code == 409 and "Accept selected" in tagged.json()["message"]

    run(conversation, "anna")
