"""Applications that the tests of the Lab share."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request


def plain() -> FastAPI:
    app = FastAPI(title="Tienda")

    @app.api_route("/method", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def method(request: Request) -> str:
        return request.method

    @app.get("/async")
    async def asynchronous(n: int = 1) -> int:
        return n

    @app.get("/sync")
    def sync() -> str:
        return threading.current_thread().name

    @app.get("/raises")
    def raises() -> float:
        return 1 / 0

    @app.get("/hangs")
    async def hangs() -> None:
        await asyncio.sleep(60)

    return app


def with_lifespan(before: Callable[[], Any], after: Callable[[], Any] = lambda: None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        before()
        yield {"n": 5}
        after()

    app = FastAPI(lifespan=lifespan)

    @app.get("/n")
    async def n(request: Request) -> int:
        return int(request.state.n)

    return app


def asking(**state: Any) -> FastAPI:
    app = FastAPI()
    for name, value in state.items():
        setattr(app.state, name, value)
    app.get("/state")(lambda: [app.state.redis_url, app.state.database_url])
    return app


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
