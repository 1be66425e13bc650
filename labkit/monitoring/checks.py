"""Checks of what most services depend on. Each opens a connection of its own, past the application's pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
from redis import Redis, RedisCluster
from redis import connection as redis_connection
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry
from sqlalchemy import Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.util import greenlet_spawn

from labkit.monitoring._entry import mask
from labkit.monitoring._turns import Check

FULL = 90.0  # percent of memory or disk, from the course
LATE = 0.25  # seconds that an event loop may be late
_PATIENCE = 0.8  # of a check's limit, for the client below it: then the log has its own words
_LIBPQ = ("psycopg", "psycopg2")
_patience = ContextVar("labkit_patience", default=0.0)  # of the check that is under way
_SHORTEST = 2  # seconds, libpq's least; without it a connection that nobody answers is waited for 130 s


def database(engine: Any, *, name: str = "database", critical: bool = True, limit: float = 0.5) -> Check:
    """Opens a connection as the engine does, asks for nothing in particular and closes it.

    Args:
        engine: of SQLAlchemy, synchronous or not; or a function that gives it once the application has started.
    """

    def probe() -> Any:
        found = _given(engine)
        sync: Engine = getattr(found, "sync_engine", found)
        if sync.dialect.driver == "aiosqlite":  # its thread may outlive the loop that it reports to
            sync = create_engine(sync.url.set(drivername="sqlite"), poolclass=NullPool)
        if sync.dialect.is_async:
            return greenlet_spawn(_ask, sync, limit * _PATIENCE)
        return _ask(sync, limit * _PATIENCE)

    def target() -> str:
        return str(_given(engine).url.render_as_string(hide_password=True))

    return Check(name, probe, critical, limit, target)


def _ask(engine: Engine, patience: float) -> None:
    """Raises if the database does not answer. In a greenlet if the driver is asynchronous."""
    sqlite = engine.dialect.name == "sqlite"
    file = engine.url.database
    if sqlite and file and file != ":memory:" and not file.startswith("file:") and not Path(file).exists():
        raise FileNotFoundError(f"no such database: {file}")  # SQLite would make an empty one
    if not event.contains(engine, "do_connect", _hurry):
        event.listen(engine, "do_connect", _hurry)
    _patience.set(patience)
    pool = engine.pool.recreate()  # the same way to connect, but none of its connections
    try:
        connection = pool.connect()
        try:
            if sqlite:  # a bare SELECT 1 does not look at the file
                cursor = connection.cursor()
                cursor.execute("PRAGMA schema_version")
                cursor.fetchone()
            else:
                engine.dialect.do_ping(connection)
        finally:
            connection.close()
    finally:
        pool.dispose()


def cache(client: Any, *, name: str = "cache", critical: bool = False, limit: float = 0.5) -> Check:
    """Sends a PING by a connection of its own.

    Args:
        client: an address; a client of redis-py, synchronous or not; labkit's ``CacheClient``; anything else that
            has ``ping()``, which is then called; or a function that gives one of these.
    """

    def probe() -> Any:
        found = _given(client)
        own = _own(found, limit * _PATIENCE)
        if own is None:
            return _pinged(found)
        with closing(own):
            own.ping()
        return None

    def target() -> str:
        found = _given(client)
        return mask(str(found.address() if hasattr(found, "address") else found))

    return Check(name, probe, critical, limit, target)


async def _pinged(client: Any) -> None:
    answer = client.ping()
    if hasattr(answer, "__await__"):
        await answer


def _own(client: Any, patience: float) -> Redis | RedisCluster | None:
    """A client with one connection to the same server."""
    options: dict[str, Any] = {
        "socket_timeout": patience,
        "socket_connect_timeout": patience,
        "retry": Retry(NoBackoff(), 0),
    }
    url = client if isinstance(client, str) else client.address() if hasattr(client, "address") else None
    if url is not None and "+cluster" in url:
        return RedisCluster.from_url(url.replace("+cluster", ""), **options)
    if url is not None:
        return Redis.from_url(url, driver_info=None, **options)
    pool = getattr(client, "connection_pool", None)
    kind = getattr(redis_connection, getattr(getattr(pool, "connection_class", None), "__name__", ""), None)
    if kind is None:
        return None
    given: dict[str, Any] = getattr(pool, "connection_kwargs", {})
    known = {key: value for key, value in given.items() if key in _ADDRESS or key.startswith("ssl_")}
    return Redis.from_pool(ConnectionPool(kind, **known, **options))


_ADDRESS = ("host", "port", "path", "db", "username", "password", "credential_provider", "protocol")


def disk(
    path: str = "/", usage: Callable[[str], Any] = psutil.disk_usage, *, name: str = "disk", limit: float = 0.5
) -> Check:
    """Degraded above 90 %.

    Args:
        path: any on that disk.
        usage: gives an object with ``percent``; a test or a fault passes its own.
    """
    return Check(name, lambda: _share("disk_usage", usage(path).percent), False, limit)


def memory(usage: Callable[[], Any] = psutil.virtual_memory, *, name: str = "memory", limit: float = 0.5) -> Check:
    """Degraded above 90 %. ``usage`` gives an object with ``percent``."""
    return Check(name, lambda: _share("memory_usage", usage().percent), False, limit)


def _share(name: str, percent: float) -> Mapping[str, str]:
    return {name: f"{percent:.1f}%", "status": "degraded" if percent > FULL else "healthy"}


def cpu(times: Callable[[], Any] = psutil.cpu_times, *, name: str = "cpu", limit: float = 0.5) -> Check:
    """The share since the last look, or since it was made; never degraded, and never waits for a second to pass."""
    last = times()

    def probe() -> Mapping[str, str]:
        nonlocal last
        before, last = last, times()
        passed = sum(last) - sum(before)
        idle = last.idle - before.idle + getattr(last, "iowait", 0.0) - getattr(before, "iowait", 0.0)
        return {"cpu_usage": f"{100 * max(0.0, 1 - idle / passed) if passed > 0 else 0.0:.1f}%"}

    return Check(name, probe, False, limit)


def event_loop(watch: Any, *, late: float = LATE, name: str = "event_loop", limit: float = 0.5) -> Check:
    """Degraded if the loop was late by more than ``late`` seconds within the last ones.

    Args:
        watch: has ``worst``, in seconds, as `labkit.monitoring.lag.LoopWatch`; or a function that gives it.
    """

    def probe() -> Mapping[str, str]:
        worst = float(_given(watch).worst)
        return {"lag": f"{worst:.4f}s", "status": "degraded" if worst > late else "healthy"}

    return Check(name, probe, False, limit)


def pool(engine: Any, *, name: str = "pool", limit: float = 0.5) -> Check:
    """Degraded if every connection of the engine's pool is taken: the next request waits.

    Args:
        engine: of SQLAlchemy, synchronous or not; or a function that gives it.
    """

    def probe() -> Mapping[str, Any]:
        own = _given(engine).pool
        if not isinstance(own, QueuePool) or own._max_overflow < 0:
            return {}  # it has no bounds
        used, most = own.checkedout(), own.size() + own._max_overflow
        return {"in_use": used, "limit": most, "status": "degraded" if used >= most else "healthy"}

    return Check(name, probe, False, limit)


def _given(thing: Any) -> Any:
    """The thing itself, or what the function gives. Raises if that is nothing yet."""
    found = thing() if callable(thing) else thing
    if found is None:
        raise LookupError("there is none yet: the application has not started")
    return found


def _hurry(dialect: Any, _record: Any, _positional: Any, named: dict[str, Any]) -> None:
    """A connection of ours is given up soon; those of the application are opened as ever."""
    if not (patience := _patience.get()):
        return
    if dialect.name == "sqlite":
        named["timeout"] = patience  # for a lock; else its thread would wait on after it was cancelled
    elif dialect.driver in _LIBPQ and not dialect.is_async:  # what is asynchronous is cancelled
        named["connect_timeout"] = _SHORTEST
