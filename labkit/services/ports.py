"""A loopback port for a server of ours."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

from labkit._text import say
from labkit.errors import ServiceError

HOST = "127.0.0.1"
# Below the ports that systems lend to outgoing connections (from 32,768 or 49,152 up): a server that is
# restarted on its address must not find it lent to some client.
_FIRST, _COUNT = 20_000, 12_000


def free() -> int:
    """A port of 127.0.0.1 on which nobody listens now.

    Somebody may take it before its use: who starts a server on it retries with another.

    Raises:
        ServiceError: if none was found in a hundred tries.
    """
    for _ in range(100):
        port = _FIRST + secrets.randbelow(_COUNT)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServiceError(say("services.no_port", first=str(_FIRST), last=str(_FIRST + _COUNT)))


def claim(start: Callable[[int], None], raced: Callable[[], bool], tries: int = 5) -> int:
    """Call ``start`` with a free port, and with another if somebody was quicker; the port that served.

    Args:
        start: starts a server on the port given, or raises ``ServiceError``.
        raced: whether ``start`` failed because the port was taken.
        tries: how many ports to try.

    Raises:
        ServiceError: of the last ``start``.
    """
    while True:
        tries -= 1
        port = free()
        try:
            start(port)
        except ServiceError:
            if not tries or not raced():
                raise
        else:
            return port
