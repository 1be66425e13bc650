"""Whether the blog is well: a plain answer, and the monitoring that a good team would have."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/")
async def health() -> dict[str, str]:
    """Answer at once, without asking any other part."""
    return {"status": "healthy"}


def watch(app: FastAPI) -> None:
    """Monitor the blog: its requests, statements, cache and health."""
    from labkit.monitoring.setup import monitor

    monitor(app, engine=lambda: app.state.engine, cache=app.state.cache)
