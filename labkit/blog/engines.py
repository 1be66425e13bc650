"""Engines as the blog uses them, on a SQLite file or on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from labkit._text import say
from labkit.errors import AppError

CONNECT_TIMEOUT = 5
"""Seconds to wait for a PostgreSQL server that does not answer."""
POOL: dict[str, Any] = {"pool_size": 20, "max_overflow": 30, "pool_timeout": 5}
"""A connection for each of the 40 threads that FastAPI has, and some more: who waits for one in an ``async def`` stops
the event loop, and with it those who would give theirs back. PostgreSQL grants 100."""


def sqlite_url(folder: Path, scale: int = 1) -> URL:
    """Where the generated data lies when no other database was asked for."""
    return URL.create("sqlite", database=str(folder / f"blog-{scale}x.sqlite3"))


def usable_url(url: URL | str) -> URL:
    """The URL as the blog can use it; ``postgresql://`` gets the driver that is installed.

    Raises:
        AppError: if it is not the address of a SQLite file or of a PostgreSQL database.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise AppError(say("blog.url", url=url)) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    is_file = parsed.drivername in ("sqlite", "sqlite+pysqlite") and parsed.database not in (
        None,
        "",
        ":memory:",
    )
    if not is_file and parsed.drivername != "postgresql+psycopg":
        raise AppError(say("blog.url", url=parsed.render_as_string()))
    return parsed


def make_engine(url: URL | str) -> Engine:
    """An engine whose foreign keys are enforced (SQLite) and which notices lost connections (PostgreSQL).

    SQLite keeps its rollback journal: unlike the write-ahead log it also works in a read-only folder and on
    a network drive, and it leaves one file that can be replaced. Requests seldom write; one that does waits
    for those that read.

    Raises:
        AppError: if ``url`` is not the address of a SQLite file or of a PostgreSQL database.
    """
    url = usable_url(url)
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True, **POOL, connect_args={"connect_timeout": CONNECT_TIMEOUT})
    engine = create_engine(url, **POOL)
    event.listen(engine, "connect", _enforce_foreign_keys)
    return engine


def _enforce_foreign_keys(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
