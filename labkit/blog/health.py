"""Whether the blog is well: a plain answer, and the monitoring that a good team would have."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI

from labkit.monitoring import logs
from labkit.monitoring.setup import monitor

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/")
async def health() -> dict[str, str]:
    """Answer at once, without asking any other part."""
    return {"status": "healthy"}


def watch(app: FastAPI) -> None:
    """Monitor the blog: its requests, statements, cache and health."""
    monitor(app, engine=lambda: app.state.engine, cache=app.state.cache)

    def observe(event: Any) -> None:
        app.state.metrics.on_cache(event)
        logs.cache_observer(event)

    app.state.cache_observer = observe
