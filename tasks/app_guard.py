"""What FiftyOne's App leaves open, closed between the browser and its server: a page that a newer one took the place
of, or a reviewer in another's queue, changes nothing.

FiftyOne lets two pages on one image undo each other: each saves what it holds. So the page that was opened last is the
one that may write, and the others say so. A request that names no page is a script's, and passes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files

Message = MutableMapping
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADER = b"x-app-page"
REPLACED, REFUSED = b"replaced", b"refused"
_ASK = "/page"  # where a page asks whether it is still the one
_SAMPLE = re.compile(r"^/dataset/(?P<dataset>[^/]+)/sample/(?P<sample>[^/]+)(/|$)")
_WRITES = re.compile(r"^/(dataset/.+|tag|operators/execute.*)$")


class Guard:
    """An ASGI application in front of FiftyOne's.

    Args:
        app: FiftyOne's server.
        reviewer: who sits at the browser, where a dataset is shared out; None for one App for all.
        queue_of: (dataset, sample) -> the reviewer in whose queue it is, or None.
    """

    def __init__(self, app: App, reviewer: str | None, queue_of: Callable[[str, str], Awaitable[str | None]]):
        self.app, self.reviewer, self.queue_of = app, reviewer, queue_of
        self.page = b""  # the one that was opened last

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _is_page(scope):
            await self._open(scope, receive, send)
        elif scope["path"] == _ASK:
            await _answer(send, 200, "", self._mark(scope))
        else:
            refusal = await self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await _answer(send, 409, refusal, self._mark(scope) or REFUSED)

    def _mark(self, scope: Message) -> bytes:
        given = dict(scope["headers"]).get(HEADER)
        return b"" if given is None or given == self.page else REPLACED

    async def _refusal(self, scope: Message) -> str | None:
        """Why a request that changes something is refused; None where it is not."""
        path, method = scope["path"], scope["method"]
        if method not in ("POST", "PATCH", "PUT", "DELETE") or not _WRITES.match(path):
            return None
        if self._mark(scope):
            return "The App was opened in another tab or browser: this page saves nothing any more. Reload it to go on."
        if self.reviewer is None:
            return None
        if path == "/tag":
            return (
                "This dataset is shared out between reviewers, and a tag does not know whose image it is on. Decide "
                "with the buttons Accept selected and Reject selected."
            )
        sample = _SAMPLE.match(path)
        owner = None if sample is None else await self.queue_of(sample["dataset"], sample["sample"])
        if owner in (None, self.reviewer):
            return None
        return f"This image is in {owner}'s queue, and {self.reviewer} sits here: nothing is saved."

    async def _open(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve the page with our script in it; from now on it is the one that writes."""
        started: Message = {}
        parts: list[bytes] = []

        async def held_back(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                parts.append(message.get("body", b""))

        headers = [
            pair for pair in scope["headers"] if pair[0] not in (b"if-none-match", b"if-modified-since", b"range")
        ]
        await self.app({**scope, "headers": headers, "extensions": {}}, receive, held_back)
        body, fields = b"".join(parts), list(started["headers"])
        if started["status"] == 200 and b"<head>" in body:
            page = secrets.token_hex(8)
            script = files("tasks").joinpath("app_page.js").read_text(encoding="utf-8").replace("__PAGE__", page)
            body = body.replace(b"<head>", f"<head><script>{script}</script>".encode(), 1)
            fields = [pair for pair in fields if pair[0].lower() != b"content-length"]
            fields.append((b"content-length", str(len(body)).encode()))
            self.page = page.encode()
        await send({**started, "headers": fields})
        await send({"type": "http.response.body", "body": body})


def _is_page(scope: Message) -> bool:
    """Whether a browser asks for the App's page, and not a probe for a sign of life."""
    wants = dict(scope["headers"]).get(b"accept", b"")
    return (
        scope["method"] == "GET"
        and b"text/html" in wants
        and re.match(r"^/(datasets/[^/]+)?$", scope["path"]) is not None
    )


async def _answer(send: Send, status: int, why: str, mark: bytes) -> None:
    body = json.dumps({"error": why, "message": why, "detail": why}).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (HEADER, mark)]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
