"""Tells a webhook how a night went. Whatever goes wrong is a warning, and names no URL: it may hold a token."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping

log = logging.getLogger(__name__)
VARIABLE = "DE_WEBHOOK"
_SECONDS = 10.0


def webhook_url(setting: str) -> str:
    """`scale_up.webhook`, else DE_WEBHOOK of the environment; empty for none."""
    return setting or os.environ.get(VARIABLE, "")


def notify(url: str, content: Mapping, seconds: float = _SECONDS) -> bool:
    """POST `content` as json. Returns whether it was taken; nothing is raised."""
    if not url:
        return False
    try:
        if not url.startswith(("https://", "http://")):  # files are no webhooks
            raise ValueError
        body = json.dumps(content).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:
        log.warning(
            "The webhook refused the message (HTTP %d). Nothing is lost: the night's folder says it.", error.code
        )
    except Exception as error:  # whatever a resolver, a proxy or a URL can raise; its text may hold the URL
        kind = type(error).__name__
        log.warning("The webhook could not be told (%s). Nothing is lost: the night's folder says it.", kind)
    return False
