"""The endpoints of the health checks and of the metrics.

Liveness asks nobody: whoever restarts a service because its database is away makes matters worse. Readiness asks the
checks, and says 503 when traffic had better go elsewhere.
"""

from __future__ import annotations

import json
import logging
import time
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
        content, kind = metrics.render() if metrics else (b"", "")
        return Response(content, headers={"content-type": kind})

    paths = {"/health/": live, "/health": live, "/health/live": live, "/health/ready": ready, "/health/detailed": ready}
    if metrics is not None:
        paths |= {"/metrics": exposition, "/health/metrics": exposition}
    return APIRouter(routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in paths.items()])


def _answer(body: dict[str, Any], status: int = 200) -> Response:
    # As ASCII: what cannot be encoded otherwise must not make a 500 of it.
    return Response(json.dumps(body), status, {"cache-control": "no-store"}, "application/json")
