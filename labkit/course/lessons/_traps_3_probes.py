"""Traps of Exercise 3 that lie in what others ask of an application: its name, its health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine, QueuePool, create_engine

from labkit import asgi
from labkit.course.checks import Context
from labkit.course.trapcard import Found, judged

PROBES = 5
REQUESTS = 10
PATIENCE = 0.1  # seconds that the pool waits; 30 unless it is told otherwise


def t49(ctx: Context, trap: Any, cure: Any) -> Found:
    """``Info`` adds a word: how many series have the name that was meant."""

    def named(expose: Callable[[], Any]) -> list[str]:
        text = ctx.call(expose)
        lines = (text.decode() if isinstance(text, bytes) else str(text)).splitlines()
        return [line.partition("{")[0].partition(" ")[0] for line in lines if line.startswith("app_info")]

    found, cured = named(trap), named(cure)
    numbers = found.count("app_info"), cured.count("app_info")
    return judged(*numbers, bad=lambda n: n == 0, name=", ".join(sorted(set(found))) or "–")


def t55(ctx: Context, trap: Any, cure: Any) -> Found:
    """A redirect passes for health: probes that are content although the database is down."""

    async def database() -> None:
        raise ConnectionError("the database is down")

    def statuses(path: str, routes: Callable[..., Any]) -> list[int]:
        app = FastAPI()
        app.include_router(ctx.call(routes, database))

        async def probe() -> list[int]:
            return [(await asgi.call(app, "GET", path)).status for _ in range(PROBES)]

        return ctx.run(probe)

    found, cured = statuses(*trap), statuses(*cure)
    numbers = (sum(200 <= status < 400 for status in each) for each in (found, cured))
    return judged(*numbers, bad=lambda n: n > 0, status=found[0], cure_status=cured[0], probes=PROBES)


def t58(ctx: Context, trap: Any, cure: Any) -> Found:
    """A probe that waits for the pool: how many call the database unwell while it only has no connection to spare."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'pool.sqlite3'}"
        engine = create_engine(
            url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=PATIENCE, connect_args={"timeout": 1}
        )
        try:
            with closing(engine.connect()):  # a slow request has the only connection
                (wrong, blocked), (cured, free) = (_probed(ctx, engine, make) for make in (trap, cure))
        finally:
            engine.dispose()
    return judged(wrong, cured, bad=lambda n: n > 0, probes=PROBES, requests=REQUESTS, answered=blocked, free=free)


def _probed(ctx: Context, engine: Engine, make: Callable[..., Any]) -> tuple[int, int]:
    app = FastAPI()

    @app.get("/")
    async def other() -> str:
        return "here"

    async def probes() -> tuple[int, int]:
        requests = [asyncio.ensure_future(asgi.call(app, "GET", "/")) for _ in range(REQUESTS)]
        wrong = await _is_wrong(probe)
        answered = sum(request.done() for request in requests)
        await asyncio.gather(*requests)
        return wrong + sum([await _is_wrong(probe) for _ in range(PROBES - 1)]), answered

    probe = ctx.call(make, engine)
    return ctx.run(probes)


async def _is_wrong(probe: Callable[[], Awaitable[Any]]) -> bool:
    try:
        return bool(await probe() != "healthy")
    except Exception:
        return True
