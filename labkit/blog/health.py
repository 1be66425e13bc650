"""Whether the blog is well: a plain answer, and the monitoring that a good team would have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, FastAPI

from labkit import settings
from labkit.monitoring import checks, logs
from labkit.monitoring.setup import monitor

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/")
async def health() -> dict[str, str]:
    """Answer at once, without asking any other part."""
    return {"status": "healthy"}


def watch(app: FastAPI) -> None:
    """Monitor the blog: its requests, statements, cache and health."""
    redis = checks.cache(app.state.cache)

    def probe() -> Any:
        return redis.probe() if app.state.redis_url or settings.redis_url() else {"redis": "none given"}

    # A blog that was given no Redis is not ill; one that is degraded for ever is soon looked at by nobody.
    monitor(app, engine=lambda: app.state.engine, checks=[replace(redis, probe=probe)])

    def observe(event: Any) -> None:
        app.state.metrics.on_cache(event)
        logs.cache_observer(event)

    app.state.cache_observer = observe
