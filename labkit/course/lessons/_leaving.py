"""A client that leaves before the end of an answer, as a server presents it to an application."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any


async def leave(app: Any, path: str, *, after: float = inf, seconds: float = inf, state: Any = ()) -> None:
    """Ask with GET, and hang up.

    Args:
        app: an ASGI application.
        path: of the request.
        after: pieces of the answer's body that are read before.
        seconds: that are waited before.
        state: what the application's lifespan has yielded.
    """
    asked, left, read = False, asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal read
        if left.is_set():
            raise OSError("the client has left")
        if message["type"] == "http.response.body":
            read += 1
            if read > after:
                left.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 50_001),
        "server": ("127.0.0.1", 80),
        "state": dict(state),
    }
    if seconds < inf:
        asyncio.get_running_loop().call_later(seconds, left.set)
    with suppress(Exception):  # whatever comes of it reaches the server's log, and no client
        await app(scope, receive, send)
