"""Puts the blog together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from fastapi import APIRouter, FastAPI
from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from labkit import settings
from labkit.blog import database, health, performance, views
from labkit.blog.cached import make_router
from labkit.blog.engines import make_engine, sqlite_url, usable_url
from labkit.blog.generator import check_scale
from labkit.blog.loading import Progress
from labkit.cache import CacheClient, Event
from labkit.cache.client import Unavailable


def create_app(
    *,
    scale: int = 1,
    database_url: str | None = None,
    redis_url: str | None = None,
    data_folder: Path | None = None,
    monitored: bool = True,
) -> FastAPI:
    """The blog as a FastAPI application; ``uvicorn --factory labkit.blog:create_app`` serves it.

    ``app.state`` carries what it runs on: ``database_url`` and ``redis_url`` may be set until it starts,
    ``prepare(progress)`` writes the data beforehand (starting does it otherwise), and from then to its end
    ``engine`` and ``session_factory`` are the open ones. ``cache`` is the client of the endpoints under ``/cached``;
    ``cache_observer``, if set, is told what becomes of their calls and of Redis. ``disk_usage`` looks at the disk.

    Args:
        scale: times 300 users, 6,000 posts and 10,000 comments, up to 100.
        database_url: a SQLite file or PostgreSQL; else ``DATABASE_URL``, else a file in ``data_folder``.
        redis_url: for the endpoints that cache; else ``REDIS_URL``, else they answer without a cache.
        data_folder: where the generated SQLite file lies, the learner's folder by default.
        monitored: count, time and log everything and answer under ``/health`` and ``/metrics``, see `health.watch`;
            else there is a plain ``/health/`` alone.

    Raises:
        LabkitError: if ``scale`` is not a whole number from 1 to 100.
        AppError: if ``database_url`` is not the address of a SQLite file or of a PostgreSQL database.
    """
    check_scale(scale)
    if database_url is not None:
        usable_url(database_url)

    def url() -> URL | str:
        return (
            app.state.database_url
            or settings.database_url()
            or sqlite_url(data_folder or settings.work_folder(), scale)
        )

    def prepare(progress: Progress | None = None) -> None:
        database.prepare(url(), scale, progress)

    def redis() -> str:
        if address := app.state.redis_url or settings.redis_url():
            return str(address)
        raise Unavailable("no Redis was given")

    app = FastAPI(title="Blog", lifespan=_lifespan)
    app.state.factory = "labkit.blog:create_app"
    app.state.database_url = database_url
    app.state.redis_url = redis_url
    app.state.make_url = url
    app.state.prepare = prepare
    app.state.engine = app.state.session_factory = None
    app.state.disk_usage = psutil.disk_usage
    app.state.cache_observer = None

    def observe(event: Event) -> None:
        if app.state.cache_observer is not None:
            app.state.cache_observer(event)

    app.state.cache = CacheClient(redis, observer=observe)
    for router in (performance.router, views.router):
        app.include_router(_own(router))
    app.include_router(make_router(app.state.cache, observe))
    if monitored:
        health.watch(app)
    else:
        app.include_router(_own(health.router))
    return app


def _own(router: APIRouter) -> APIRouter:
    """A copy: routers are live, so an endpoint replaced in one application must not be gone from the next."""
    own = APIRouter()
    own.routes.extend(router.routes)
    return own


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    await asyncio.to_thread(app.state.prepare)
    engine = make_engine(app.state.make_url())
    app.state.engine, app.state.session_factory = engine, sessionmaker(engine)
    try:
        yield
    finally:
        await app.state.cache.close()
        app.state.engine = app.state.session_factory = None
        engine.dispose()
