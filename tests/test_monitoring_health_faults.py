"""Health while something is broken for real: the status, an answer within a second, and nothing in it of addresses.

Every answer in this file is asked for by ``Site.ask``, which looks at all three, and at the log: there the whole error
stands under the request's id, without its password.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import anyio.to_thread
import psycopg
import pytest
import redis as redis_py
from fastapi import FastAPI
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from labkit import asgi
from labkit.asgi import Reply
from labkit.cache import CacheClient
from labkit.monitoring import Metrics, MetricsMiddleware, _turns, checks
from labkit.monitoring.health import Check, Health
from labkit.monitoring.logs import Journal
from labkit.services import postgres, redis
from labkit.services.postgres import PostgresServer
from labkit.services.redis import RedisServer

AT_MOST = 1.0  # seconds for an answer, which the issue promises
NEVER = (
    "Traceback",
    'File "',
    "psycopg",
    "sqlalchemy",
    "redis",
    "sqlite",
    "exception",
    "error",
    "127.0.0.1",
    "localhost",
)
PASSWORD = "p@ss/w:ö rd%"  # as hostile as an address allows


@pytest.fixture(scope="module")
def pg() -> Iterator[PostgresServer]:
    with postgres.start() as server:
        yield server


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    with redis.start() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    limit = time.monotonic() + 10.0
    while threads() and time.monotonic() < limit:
        time.sleep(0.005)
    assert not threads()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("labkit health")]


class Site:
    """An application with these checks, and the addresses that must never be read in its answers."""

    def __init__(self, *checks: Check, secrets: Iterable[str] = (), keep: float = 0.0) -> None:
        self.app = FastAPI()
        self.health = Health(checks, keep=keep)
        self.app.include_router(self.health.router())
        self.app.add_middleware(MetricsMiddleware, metrics=Metrics())
        self.secrets = {part for address in secrets for part in parts(address)}
        self.targets = {check.name: str(check.target()) if check.target else "" for check in checks}
        self.passwords = {word for address in secrets if (word := make_url(address).password)}

    async def asked(self, path: str = "/health/detailed") -> Reply:
        begun = time.monotonic()
        with Journal() as journal:
            reply = await asgi.call(self.app, "GET", path)
        took = time.monotonic() - begun
        assert took <= AT_MOST, f"{path} took {took:.3f} s"
        own = {name: value for name, value in reply.headers.items() if name not in ("x-request-id", "x-response-time")}
        said = re.sub(r'"timestamp": [\d.]+', "", f"{own} {reply.text}").replace('"error"', "")
        for part in (*NEVER, *self.secrets):
            assert part.lower() not in said.lower(), f"the answer says {part!r}: {said}"
        logged = {
            one.fields["check"]: one
            for one in journal.entries
            if one.request_id == reply.headers["x-request-id"] and "check" in one.fields
        }
        for name, found in reply.json.get("checks", {}).items():
            if found.get("error"):
                assert logged[name].error or "File" in str(logged[name].fields["stack"])
                assert self.targets[name] in logged[name].message
        for password in self.passwords:
            for form in (password, quote(password, safe="")):
                assert form not in str(journal.entries)
        return reply

    def ask(self, path: str = "/health/detailed") -> Reply:
        return asyncio.run(self.asked(path))

    async def found(self, expected: Mapping[str, str]) -> Reply:
        """Ask, and expect these errors and no others. On a busy machine what is well may be late: ask again then."""
        for attempt in reversed(range(5)):
            reply = await self.asked()
            errors = {name: one["error"] for name, one in reply.json["checks"].items() if "error" in one}
            odd = {errors.get(name) for name in {**errors, **expected} if errors.get(name) != expected.get(name)}
            if odd != {"timeout"} or not attempt:
                break
        assert errors == expected
        return reply

    def finds(self, expected: Mapping[str, str]) -> Reply:
        return asyncio.run(self.found(expected))


def parts(address: str) -> Iterator[str]:
    """Whatever of an address must not be told: the whole, and host, port, user, password, database or path."""
    url = make_url(address)
    password = str(url.password or "")
    file = Path(url.database or "")
    for part in (
        address,
        url.host,
        url.port,
        url.username,
        password,
        quote(password, safe=""),
        url.database,
        file.name,
    ):
        if len(str(part or "")) > 1:
            yield str(part)


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes every connection and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def sync_and_async(url: Any, asynchronous: Any = None) -> list[Check]:
    engines = create_engine(url), create_async_engine(asynchronous or url)
    return [checks.database(engine, name=name) for name, engine in zip(("sync", "async"), engines, strict=True)]


# --- PostgreSQL --------------------------------------------------------------------------------------------------


def test_postgresql_frozen_killed_and_back(pg: PostgresServer) -> None:
    """Asked by the driver's both faces at once; the first answer after each fault is the right one."""
    site = Site(*sync_and_async(pg.url), secrets=[pg.url, pg.dsn])
    assert site.finds({}).status == 200
    pg.freeze()
    try:
        for _ in range(2):  # the first one hangs still
            reply = site.ask()
            assert (reply.status, reply.json["status"]) == (503, "unhealthy")
            assert {one["error"] for one in reply.json["checks"].values()} == {"timeout"}
            assert len(threads()) <= 2
        assert site.ask("/health/").status == site.ask("/health").status == 200
        assert site.ask("/health/ready").status == 503
    finally:
        pg.thaw()
    site.finds({})
    pg.kill()
    site.finds({"sync": "unavailable", "async": "unavailable"})
    pg.restart()
    assert site.finds({}).status == 200


@pytest.fixture
def _no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name server says of names that do not exist; some take seconds to say it."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **named: Any) -> Any:
        if str(host).endswith("invalid"):
            raise socket.gaierror(-2, "Name or service not known")
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("_no_such_host")
def test_postgresql_behind_wrong_words(pg: PostgresServer) -> None:
    """Wrong password, user, database and port, and an unknown host."""
    right = make_url(pg.url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        shut = taken.getsockname()[1]
    wrong = {
        "password": right.set(password=PASSWORD),
        "user": right.set(username="mallory", password=PASSWORD),
        "db": right.set(database="orders_2026"),
        "port": right.set(port=shut),
        "host": right.set(host="db.invalid"),
    }
    made = [
        checks.database(make(url), name=f"{name} {make.__name__}")
        for name, url in wrong.items()
        for make in (create_engine, create_async_engine)
    ]
    site = Site(*made, secrets=[url.render_as_string(hide_password=False) for url in wrong.values()])
    reply = site.ask()
    assert reply.status == 503
    assert {one.get("error") for one in reply.json["checks"].values()} == {"unavailable"}


def test_postgresql_with_a_password_that_has_to_be_encoded(pg: PostgresServer) -> None:
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        literal = psycopg.sql.Literal(PASSWORD)
        connection.execute(psycopg.sql.SQL("CREATE ROLE shop_reader LOGIN PASSWORD {}").format(literal))
    url = make_url(pg.url).set(username="shop_reader", password=PASSWORD)
    address = url.render_as_string(hide_password=False)
    assert quote(PASSWORD, safe="") != PASSWORD and PASSWORD not in address
    site = Site(*sync_and_async(address), secrets=[address])
    site.finds({})
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute("DROP ROLE shop_reader")
    site.finds({"sync": "unavailable", "async": "unavailable"})


def test_names_that_nobody_looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server is away: each question to it hangs, in the driver's thread or in ours."""
    answers = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        answers.wait()
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url, other = "postgresql+psycopg://shop@db.example/orders", "redis://cache.example:6379/0"
    site = Site(*sync_and_async(url), *caches(other), secrets=[url, other])
    for _ in range(2):
        site.finds(dict.fromkeys(("sync", "async", *CACHES), "timeout"))
        assert len(threads()) == 6
    answers.set()
    while threads():
        time.sleep(0.005)
    site.finds(dict.fromkeys(("sync", "async", *CACHES), "unavailable"))


def test_a_database_that_takes_the_call_and_never_speaks() -> None:
    """The driver's patience is 130 s: a thread of ours must be free again long before."""
    with black_hole() as port:
        url = f"postgresql+psycopg://shop:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/orders"
        site = Site(*sync_and_async(url), secrets=[url])
        begun = time.monotonic()
        for _ in range(2):
            site.finds({"sync": "timeout", "async": "timeout"})
            assert len(threads()) <= 2
        while threads():
            time.sleep(0.01)
        assert time.monotonic() - begun < 6.0


def test_the_application_s_own_patience_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only connections of the check give up early."""
    engine = create_engine("postgresql+psycopg://shop@127.0.0.1/orders", connect_args={"connect_timeout": 7})
    given: list[int] = []

    def connect(*positional: Any, **named: Any) -> Any:
        given.append(named["connect_timeout"])
        raise OSError("enough")

    monkeypatch.setattr(engine.dialect, "connect", connect)
    site = Site(checks.database(engine, name="db"))
    for _ in range(2):
        site.finds({"db": "unavailable"})
        with pytest.raises(OSError, match="enough"):
            engine.connect()
    assert given == [2, 7, 2, 7]


def test_the_application_holds_every_connection(pg: PostgresServer) -> None:
    """T58: whoever asks the application's pool waits 30 s; and it is told that the pool is empty."""
    engine = create_engine(pg.url, pool_size=2, max_overflow=0, pool_timeout=30)
    later = create_async_engine(pg.url, pool_size=1, max_overflow=0, pool_timeout=30)

    async def main() -> None:
        made = [checks.database(engine), checks.database(later, name="async")]
        made += [checks.pool(engine), checks.pool(later, name="pools")]
        site = Site(*made, secrets=[pg.url])
        held = [engine.connect() for _ in range(2)]
        async with later.connect():
            reply = await site.found({})
            assert (reply.status, reply.json["status"]) == (200, "degraded")
            found = reply.json["checks"]
            assert found["database"]["status"] == found["async"]["status"] == "healthy"
            assert (found["pool"]["status"], found["pool"]["in_use"]) == ("degraded", 2)
            assert (found["pools"]["status"], found["pools"]["limit"]) == ("degraded", 1)
        for connection in held:
            connection.close()
        assert (await site.found({})).json["status"] == "healthy"
        await later.dispose()

    asyncio.run(main())
    engine.dispose()


def test_it_leaves_no_connection_behind(pg: PostgresServer) -> None:
    site = Site(*sync_and_async(pg.url))
    for _ in range(5):
        site.finds({})
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        limit = time.monotonic() + 5.0
        count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        while (row := connection.execute(count).fetchone()) != (1,):  # a backend takes a moment to end
            assert time.monotonic() < limit, row


# --- SQLite ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "orders_2026.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (id INTEGER)")
    connection.close()
    return path


def files(path: Path) -> Site:
    made = sync_and_async(f"sqlite:///{path}", f"sqlite+aiosqlite:///{path}")
    return Site(*made, secrets=[f"sqlite:///{path}", f"sqlite:///{path.parent}"])


def test_sqlite_locked_and_free_again(file: Path) -> None:
    site = files(file)
    site.finds({})
    lock = sqlite3.connect(file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for _ in range(2):
        site.finds({"sync": "unavailable", "async": "unavailable"})
    assert threads() == []  # SQLite waits 5 s if nobody says otherwise
    lock.execute("ROLLBACK")
    lock.close()
    site.finds({})


@pytest.mark.parametrize("harm", ["missing", "a folder", "garbage"])
def test_sqlite_unreadable(file: Path, harm: str) -> None:
    site = files(file)
    file.unlink()
    if harm == "a folder":
        file.mkdir()
    elif harm == "garbage":
        file.write_bytes(b"not a database at all" * 1_000)
    site.finds({"sync": "unavailable", "async": "unavailable"})
    assert file.exists() == (harm != "missing")


# --- Redis -------------------------------------------------------------------------------------------------------


def caches(url: str) -> list[Check]:
    made = url, redis_py.Redis.from_url(url), redis_py.asyncio.Redis.from_url(url), CacheClient(url)
    return [checks.cache(client, name=name) for name, client in zip(CACHES, made, strict=True)]


CACHES = ("url", "plain", "coroutines", "ours")


def test_redis_frozen_killed_and_back(valkey: RedisServer) -> None:
    site = Site(*caches(valkey.url), secrets=[valkey.url])
    assert site.finds({}).status == 200
    valkey.freeze()
    try:
        for _ in range(2):
            reply = site.ask()
            assert (reply.status, reply.json["status"]) == (200, "degraded")
            assert {one["error"] for one in reply.json["checks"].values()} == {"timeout"}
    finally:
        valkey.thaw()
    site.finds({})
    valkey.kill()
    site.finds(dict.fromkeys(CACHES, "unavailable"))
    valkey.restart()
    site.finds({})


@pytest.mark.usefixtures("_no_such_host")
def test_redis_behind_wrong_words(valkey: RedisServer) -> None:
    """A wrong password and a right one that has to be encoded; an unknown host; a port that never speaks."""
    secret = quote(PASSWORD, safe="")
    admin = redis_py.Redis.from_url(valkey.url)
    admin.acl_setuser("shop", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"], keys="*")
    right = valkey.url.replace("redis://", f"redis://shop:{secret}@")
    with black_hole() as port:
        wrong = {
            "password": right.replace(secret, "hunter22"),
            "user": right.replace("shop", "mallory"),
            "host": right.replace("127.0.0.1", "cache.invalid"),
            "port": right.replace(str(valkey.port), str(port)),
        }
        site = Site(
            *caches(right),
            *(checks.cache(url, name=name) for name, url in wrong.items()),
            secrets=[right, *wrong.values()],
        )
        site.finds(dict.fromkeys(("password", "user", "host"), "unavailable") | {"port": "timeout"})
    admin.acl_deluser("shop")
    admin.close()


# --- the machine and the process ---------------------------------------------------------------------------------


def test_disk_and_memory_nearly_full() -> None:
    full = SimpleNamespace(percent=97.0)
    nearly = SimpleNamespace(percent=95.0)
    site = Site(
        checks.disk("/var/lib/orders", lambda path: full),
        checks.memory(lambda: nearly),
        secrets=["x:///var/lib/orders"],
    )
    reply = site.ask()
    assert (reply.status, reply.json["status"]) == (200, "degraded")
    assert reply.json["checks"]["system"] == {"disk_usage": "97.0%", "memory_usage": "95.0%"}
    full.percent = nearly.percent = 50.0
    assert site.ask().json["status"] == "healthy"


def test_a_disk_that_never_answers() -> None:
    """As a network drive whose server has gone."""
    gone = threading.Event()
    site = Site(checks.disk("/mnt/nas", lambda path: gone.wait()), secrets=["x://y/mnt/nas"])
    for _ in range(2):
        site.finds({"disk": "timeout"})
        assert threads() == ["labkit health disk"]
    gone.set()


def test_every_thread_of_the_process_is_taken(pg: PostgresServer, valkey: RedisServer) -> None:
    """anyio's 40, where plain endpoints run, and those of asyncio's executor."""

    async def main() -> None:
        made = [*sync_and_async(pg.url), *caches(valkey.url), checks.disk(), checks.memory(), checks.cpu()]
        site = Site(*made)
        release, loop = threading.Event(), asyncio.get_running_loop()
        tokens = anyio.to_thread.current_default_thread_limiter()
        with ThreadPoolExecutor(2) as pool:
            loop.set_default_executor(pool)
            taken = [
                asyncio.ensure_future(anyio.to_thread.run_sync(release.wait)) for _ in range(int(tokens.total_tokens))
            ]
            taken += [asyncio.ensure_future(asyncio.to_thread(release.wait)) for _ in range(3)]
            while tokens.borrowed_tokens < tokens.total_tokens:
                await asyncio.sleep(0.005)
            try:
                reply = await site.found({})
            finally:
                release.set()
            await asyncio.gather(*taken)
        assert {one.get("status") for one in reply.json["checks"].values()} == {"healthy", None}

    asyncio.run(main())


def test_two_hundred_probes_ask_the_database_once(pg: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_turns, "MOST", 30.0)  # seconds: the machine may be busy
    engine, connected = create_engine(pg.url), []
    event.listen(engine, "do_connect", lambda *_: connected.append(1))
    site = Site(checks.database(engine, limit=30.0), keep=60.0)

    async def main() -> None:
        replies = await asyncio.gather(*(asgi.call(site.app, "GET", "/health/detailed") for _ in range(200)))
        assert {reply.status for reply in replies} == {200}

    asyncio.run(main())
    assert connected == [1]


def test_it_answers_with_its_errors_while_all_is_broken_at_once(pg: PostgresServer, valkey: RedisServer) -> None:
    """Side by side: the time of one, not of all."""
    pg.freeze()
    valkey.freeze()
    try:
        site = Site(
            *sync_and_async(pg.url), *caches(valkey.url), checks.disk("/", lambda path: SimpleNamespace(percent=97.0))
        )
        reply = site.ask()
        assert reply.status == 503
        assert sum("error" in one for one in reply.json["checks"].values()) == 6
    finally:
        pg.thaw()
        valkey.thaw()
    site.finds({})
