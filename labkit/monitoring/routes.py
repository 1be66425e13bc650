"""The endpoints of the health checks and of the metrics.

Liveness asks nobody: whoever restarts a service because its database is away makes matters worse. Readiness asks the
checks, and says 503 when traffic had better go elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labkit.monitoring.ids import request_id

if TYPE_CHECKING:
    from labkit.monitoring.health import Health

_log = logging.getLogger("labkit.health")


class Renders(Protocol):
    """Metrics: the text and its content type."""

    def render(self) -> tuple[bytes, str]: ...


def make_router(health: Health, metrics: Renders | None = None) -> APIRouter:
    """Plain Starlette routes: for FastAPI's ``include_router``, and for any application's ``routes.extend``.

    Each answers GET and HEAD, and ``/health`` itself, where a redirect would pass for an answer.
    """

    async def live(_: Request) -> Response:
        return _answer({"status": "healthy", "timestamp": time.time()})

    async def ready(_: Request) -> Response:
        report = await health.run()
        if report.status != "healthy" and report.request_id != request_id.get():
            _log.warning("%s, as found under request %s", report.status, report.request_id or "-")
        return _answer(report.body, 503 if report.status == "unhealthy" else 200)

    async def exposition(_: Request) -> Response:
        content, kind = await text.get()
        return Response(content, headers={"content-type": kind})

    paths = {"/health/": live, "/health": live, "/health/live": live, "/health/ready": ready, "/health/detailed": ready}
    if metrics is not None:
        text = _Exposition(metrics)
        paths |= {"/metrics": exposition, "/health/metrics": exposition}
    return APIRouter(routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in paths.items()])


class _Exposition:
    """Renders metrics in a thread of its own, one at a time; who asks meanwhile shares the answer.

    With 200 routes that takes 55 ms, for which the event loop would stand still at each scrape. The pools of threads,
    asyncio's and anyio's, may be exhausted in the very moment in which somebody wants to know why.
    """

    def __init__(self, metrics: Renders) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._current: Future[tuple[bytes, str]] | None = None

    async def get(self) -> tuple[bytes, str]:
        """The text and its content type."""
        with self._lock:
            current = self._current
            if start := current is None:
                current = self._current = Future()
                current.set_running_or_notify_cancel()  # so that nobody who waits can cancel it for the others
        if start:
            try:
                threading.Thread(target=self._work, args=(current,), name="labkit metrics", daemon=True).start()
            except RuntimeError:  # there is no thread to be had
                self._work(current)
        return await asyncio.wrap_future(current)

    def _work(self, current: Future[tuple[bytes, str]]) -> None:
        try:
            rendered = self._metrics.render()
        except BaseException as error:
            self._current = None
            current.set_exception(error)
        else:
            self._current = None
            current.set_result(rendered)


def _answer(body: dict[str, Any], status: int = 200) -> Response:
    # As ASCII: what cannot be encoded otherwise must not make a 500 of it.
    return Response(json.dumps(body), status, {"cache-control": "no-store"}, "application/json")
