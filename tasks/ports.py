"""Ports of 127.0.0.1."""

from __future__ import annotations

import socket

from engine.errors import ConfigError

HOST = "127.0.0.1"


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Could one listen there?"""
    return _obstacle(port) is None


def check_free(port: int, option: str) -> None:
    """Refuse a port that cannot be listened on.

    Args:
        option: what gives another one.

    Raises:
        ConfigError: it is taken, or no port.
    """
    if reason := _obstacle(port):
        raise ConfigError(f"Port {port} of {HOST} cannot be used ({reason}). Is `de up` running? Else give {option}.")


def _obstacle(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            return None
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)


def listens(port: int) -> bool:
    """Does somebody answer there?"""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0
