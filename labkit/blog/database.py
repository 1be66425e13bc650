"""What an endpoint and a teacher ask of the blog's database: a session, and data to be there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import Request
from sqlalchemy import URL, Engine
from sqlalchemy.orm import Session

from labkit._text import say
from labkit.blog.engines import usable_url
from labkit.blog.loading import Progress, load_postgresql, load_sqlite
from labkit.errors import AppError


async def get_db(request: Request) -> AsyncIterator[Session]:
    """One session for one request, closed when the request ends.

    An asynchronous generator although nothing is awaited: FastAPI runs a plain one in a thread, which costs
    a request five times as much.

    Raises:
        AppError: if the application's lifespan is not running, which opens the database.
    """
    if request.app.state.session_factory is None:
        raise AppError(say("blog.not_started"))
    with request.app.state.session_factory() as session:
        yield session


def prepare(database: Engine | URL | str, scale: int = 1, progress: Progress | None = None) -> None:
    """Write the generated data, unless it is there already from the same generator and of the same scale.

    An interrupted call leaves nothing half done, and of two at once one writes while the other waits.

    Args:
        database: a SQLite file or a PostgreSQL database; it may be absent or empty, or hold a blog.
        scale: times 300 users, 6,000 posts and 10,000 comments.
        progress: called with the rows written so far and the rows in all.

    Raises:
        AppError: if the database cannot be reached or written, or holds tables that are not the blog's.
        LabkitError: if ``scale`` is not a whole number from 1 to 100.
    """
    url = usable_url(database.url if isinstance(database, Engine) else database)
    report = progress or (lambda done, total: None)
    if url.get_backend_name() == "postgresql":
        load_postgresql(url, scale, report)
    else:
        load_sqlite(Path(str(url.database)), scale, report)
        if isinstance(database, Engine):
            database.dispose()  # its connections may still see the file that was replaced
