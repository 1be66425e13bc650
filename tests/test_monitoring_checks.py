"""The checks that come with labkit, where nothing is broken: whom they ask, and what they say."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import redis as redis_py
from sqlalchemy import Engine, NullPool, QueuePool, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from labkit.cache import CacheClient
from labkit.monitoring import _turns, checks
from labkit.monitoring.health import Check, Health, Result
from labkit.monitoring.logs import Journal
from labkit.services import redis
from labkit.services.redis import RedisServer

PATIENT = 30.0  # seconds


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis.start() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (id INTEGER)")
    connection.close()
    return path


@pytest.fixture(autouse=True)
def _a_busy_machine_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_turns, "MOST", PATIENT)


def found(check: Check) -> Result:
    check = replace(check, limit=PATIENT)
    (result,) = asyncio.run(Health([check]).run()).results
    return result


# --- databases ---------------------------------------------------------------------------------------------------


def test_it_connects_as_the_engine_does_but_on_its_own(file: Path) -> None:
    connected: list[Any] = []

    def creator() -> sqlite3.Connection:
        connected.append(sqlite3.connect(file, check_same_thread=False))
        return connected[-1]

    engine = create_engine("sqlite://", creator=creator, poolclass=QueuePool)
    with engine.connect() as own:
        own.execute(text("SELECT 1"))
        assert found(checks.database(engine)).status == "healthy"
        assert len(connected) == 2
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connected[1].execute("SELECT 1")
        assert engine.pool.checkedout() == 1 and engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    engine.dispose()


def test_statements_of_the_application_are_not_counted_with_it(file: Path) -> None:
    engine, counted = create_engine(f"sqlite:///{file}"), []
    for target in (engine, Engine):
        event.listen(target, "before_cursor_execute", note := lambda *_: counted.append(1))
    assert found(checks.database(engine)).status == "healthy"
    event.remove(Engine, "before_cursor_execute", note)
    assert counted == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///{file}", "sqlite:///file:{file}?uri=true"])
@pytest.mark.parametrize("pool", [None, NullPool, StaticPool])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_any_sqlite_engine_will_do(file: Path, url: str, pool: Any, kind: str) -> None:
    url = url.format(file=file)
    options = {"poolclass": pool} if pool else {}
    if kind == "sync":
        engine: Engine | AsyncEngine = create_engine(url, **options)
    else:
        engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"), **options)
    for check in (checks.database(engine), checks.database(lambda: engine)):
        assert (found(check).status, found(check).details) == ("healthy", {})
    asyncio.run(engine.dispose()) if isinstance(engine, AsyncEngine) else engine.dispose()


def test_what_is_not_there_yet_is_unavailable() -> None:
    state = SimpleNamespace(engine=None)
    with Journal() as journal:
        for check in (
            checks.database(lambda: state.engine),
            checks.cache(lambda: state.engine),
            checks.pool(lambda: state.engine),
        ):
            result = found(check)
            assert (result.status, result.error) == ("unhealthy", "unavailable")
    assert all("has not started" in error for error in journal.df["error"])


def test_it_makes_no_file_where_there_is_none(tmp_path: Path) -> None:
    """SQLite would make an empty one and be well."""
    missing = tmp_path / "missing.sqlite3"
    assert found(checks.database(create_engine(f"sqlite:///{missing}"))).error == "unavailable"
    assert not missing.exists()


# --- pools -------------------------------------------------------------------------------------------------------


def test_a_pool_is_degraded_when_its_last_connection_is_taken(file: Path) -> None:
    engine = create_engine(f"sqlite:///{file}", pool_size=1, max_overflow=1)
    check = checks.pool(engine)
    assert check.critical is False
    taken: list[Any] = []
    for in_use, status in ((0, "healthy"), (1, "healthy"), (2, "degraded")):
        result = found(check)
        assert (result.details, result.status) == ({"in_use": in_use, "limit": 2}, status)
        if in_use < 2:
            taken.append(engine.connect())
    for connection in taken:
        connection.close()
    assert found(checks.pool(lambda: engine)).status == "healthy"
    engine.dispose()


def test_an_asynchronous_pool_too(file: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", pool_size=1, max_overflow=0)

    async def main() -> None:
        async with engine.connect():
            (result,) = (await Health([checks.pool(engine)]).run()).results
            assert (result.details, result.status) == ({"in_use": 1, "limit": 1}, "degraded")
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("options", [{"poolclass": NullPool}, {"poolclass": StaticPool}, {"max_overflow": -1}])
def test_a_pool_without_bounds_is_never_full(file: Path, options: dict[str, Any]) -> None:
    engine = create_engine(f"sqlite:///{file}", **options)
    with engine.connect():
        assert (found(checks.pool(engine)).status, found(checks.pool(engine)).details) == ("healthy", {})
    engine.dispose()


# --- caches ------------------------------------------------------------------------------------------------------


def clients(server: RedisServer) -> dict[str, Any]:
    return {
        "url": server.url,
        "socket": server.socket_url,
        "sync": redis_py.Redis.from_url(server.url),
        "sync, RESP 2": redis_py.Redis(port=server.port, protocol=2, decode_responses=True),
        "sync, socket": redis_py.Redis.from_url(server.socket_url),
        "async": redis_py.asyncio.Redis.from_url(server.url),
        "ours": CacheClient(server.url),
        "ours, late": CacheClient(lambda: server.url),
        "callable": lambda: server.url,
    }


@pytest.mark.parametrize(
    "kind", ["url", "socket", "sync", "sync, RESP 2", "sync, socket", "async", "ours", "ours, late", "callable"]
)
def test_any_client_of_redis_will_do(server: RedisServer, kind: str) -> None:
    check = checks.cache(clients(server)[kind])
    assert (check.name, check.critical) == ("cache", False)
    result = found(check)
    assert (result.status, result.error) == ("healthy", "")


def test_it_asks_by_a_connection_of_its_own(server: RedisServer) -> None:
    client = redis_py.Redis.from_url(server.url, max_connections=1)
    taken = client.connection_pool.get_connection()  # the application has no other
    assert found(checks.cache(client)).status == "healthy"
    client.connection_pool.release(taken)
    before = client.client_list()
    assert found(checks.cache(client)).status == "healthy"
    assert len(client.client_list()) == len(before)  # and leaves none behind
    client.close()


def test_what_only_has_a_ping_is_pinged() -> None:
    asked: list[str] = []

    class Async:
        async def ping(self) -> None:
            asked.append("async")

    assert found(checks.cache(SimpleNamespace(ping=lambda: asked.append("sync")))).status == "healthy"
    assert found(checks.cache(Async())).status == "healthy"
    assert asked == ["sync", "async"]
    assert found(checks.cache(SimpleNamespace())).error == "unavailable"


@pytest.mark.parametrize("url", ["", "nonsense", "http://localhost", "redis://h:notaport/0"])
def test_an_address_that_is_none_is_unavailable(url: str) -> None:
    assert found(checks.cache(url)).error == "unavailable"


# --- the machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "status"), [(0.0, "healthy"), (90.0, "healthy"), (90.1, "degraded"), (97.0, "degraded")]
)
def test_disk_and_memory_degrade_above_ninety(percent: float, status: str) -> None:
    asked: list[str] = []

    def usage(*path: str) -> Any:
        asked.extend(path)
        return SimpleNamespace(percent=percent)

    disk, memory = checks.disk("/data", usage), checks.memory(usage)
    assert (disk.critical, memory.critical) == (False, False)
    assert (found(disk).status, found(disk).details) == (status, {"disk_usage": f"{percent:.1f}%"})
    assert (found(memory).status, found(memory).details) == (status, {"memory_usage": f"{percent:.1f}%"})
    assert set(asked) == {"/data"}


def test_this_machine_has_a_disk_memory_and_a_processor() -> None:
    health = Health([checks.disk(), checks.memory(), checks.cpu()])
    body = asyncio.run(health.run()).body
    assert [*body["checks"]["system"]] == ["disk_usage", "memory_usage", "cpu_usage"]
    for share in body["checks"]["system"].values():
        assert 0.0 <= float(share.removesuffix("%")) <= 100.0


def test_the_processor_s_share_is_the_one_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(psutil.cpu_times())
    names = kind._fields
    moments = [
        kind(*(values.get(name, 0.0) for name in names))
        for values in ({}, {"user": 3.0, "idle": 1.0}, {"user": 3.0, "idle": 5.0})
    ]
    check = checks.cpu(lambda: moments.pop(0))
    assert found(check).details == {"cpu_usage": "75.0%"}
    assert found(check).details == {"cpu_usage": "0.0%"}
    still = checks.cpu(lambda: kind(*(1.0 for _ in names)))
    assert found(still).details == {"cpu_usage": "0.0%"}  # two looks within one tick


@pytest.mark.parametrize(("worst", "status"), [(0.0, "healthy"), (0.25, "healthy"), (0.3, "degraded")])
def test_a_loop_that_was_late_degrades(worst: float, status: str) -> None:
    watch = SimpleNamespace(worst=worst)
    for check in (checks.event_loop(watch), checks.event_loop(lambda: watch)):
        assert check.critical is False
        assert (found(check).status, found(check).details) == (status, {"lag": f"{worst:.4f}s"})
    assert found(checks.event_loop(watch, late=1.0)).status == "healthy"


@pytest.mark.parametrize("make", [checks.database, checks.cache])
def test_what_it_asks_is_written_without_the_password(make: Any) -> None:
    """Also for log handlers that mask nothing."""
    url = "{}://shop:hunter2@db.example/orders"
    check = make(create_engine(url.format("postgresql+psycopg")) if make is checks.database else url.format("redis"))
    assert check.target is not None
    assert "shop:***@db.example/orders" in str(check.target())


def test_every_check_takes_a_name_and_a_limit() -> None:
    made = [
        checks.database(None, name="a", critical=False, limit=0.1),
        checks.cache("", name="a", critical=True, limit=0.1),
        checks.disk(name="a", limit=0.1),
        checks.memory(name="a", limit=0.1),
        checks.cpu(name="a", limit=0.1),
        checks.event_loop(None, name="a", limit=0.1),
        checks.pool(None, name="a", limit=0.1),
    ]
    assert {(check.name, check.limit) for check in made} == {("a", 0.1)}
    assert [check.critical for check in made] == [False, True, False, False, False, False, False]
