"""The simulated round trip, and SQL held to a request's time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from labkit import faults
from labkit.errors import MeasurementError, RequestTimeout, ServiceError
from labkit.lab import Lab
from labkit.services import postgres

FOREVER = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
ENDLESS_ROWS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n WHERE i > 1")
LIMIT = 0.5


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    yield engine
    engine.dispose()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The round trips that were waited for, in seconds."""
    taken: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", taken.append)
    return taken


def app_of(engine: Engine, statement: Any = text("SELECT 1")) -> FastAPI:
    app = FastAPI()

    def ask(times: int = 1) -> int:
        with engine.connect() as connection:
            for _ in range(times):
                connection.execute(statement).all()
        return times

    app.get("/sync")(ask)

    @app.get("/async")
    async def asynchronous() -> int:
        return ask()

    @app.get("/stubborn")
    def stubborn() -> str:
        for _ in range(1_000):
            try:
                ask()
            except OperationalError:
                continue
        return "done"

    @app.get("/ok")
    def fine() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT 42")).scalar_one())

    return app


# Latency


def test_each_statement_pays_one_round_trip(engine: Engine, naps: list[float]) -> None:
    with Lab(app_of(engine)) as lab:
        assert lab.latency_ms == 0  # no database has been asked yet
        assert lab.get("/sync", params={"times": 7}).queries == 7
        assert naps == [0.0005] * 7 and lab.latency_ms == 0.5
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))  # not a request of the Lab's
        assert len(naps) == 7


def test_it_can_be_set_for_good_or_for_a_while(engine: Engine, naps: list[float]) -> None:
    with Lab(app_of(engine), latency=3) as lab:
        lab.get("/ok")
        with lab.latency(20) as nothing:
            assert nothing is None and lab.latency_ms == 20
            lab.get("/ok")
            with lab.latency(0):
                lab.get("/ok")
        lab.get("/ok")
        assert "12,5 ms" in repr(lab.latency(12.5)) and lab.latency_ms == 12.5
        lab.latency(None)
        lab.get("/ok")
    assert naps == [0.003, 0.020, 0.003, 0.0005]


def test_two_labs_keep_their_own(engine: Engine, naps: list[float]) -> None:
    app = app_of(engine)
    with Lab(app, latency=1) as one, Lab(app_of(engine), latency=2) as two:
        one.get("/ok")
        two.get("/ok")
    assert naps == [0.001, 0.002]


def test_other_databases_pay_nothing_by_default() -> None:
    trip = faults.RoundTrip()
    assert (trip.added("sqlite"), trip.added("postgresql"), trip.ms) == (0.5, 0, 0)
    trip.seen |= {"postgresql"}
    assert trip.ms == 0
    trip.seen |= {"sqlite"}
    assert trip.ms == 0.5


@pytest.mark.parametrize("ms", [-1, float("nan"), float("inf"), "5"])
def test_an_unusable_latency_is_refused(ms: Any) -> None:
    trip = faults.RoundTrip(3)
    with pytest.raises(MeasurementError, match="milisegundos"):
        faults.latency(trip, ms)
    assert trip.ms == 3


def async_app(engine: AsyncEngine) -> FastAPI:
    app = FastAPI()

    @app.get("/ask")
    async def ask(times: int = 1) -> int:
        async with engine.connect() as connection:
            for _ in range(times):
                await connection.execute(text("SELECT 1"))
        return times

    @app.get("/forever")
    async def forever() -> int:
        async with engine.connect() as connection:
            return int((await connection.execute(FOREVER)).scalar_one())

    return app


def test_an_async_engine_pays_without_blocking_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    async def pause(seconds: float) -> None:
        naps.append(seconds)

    monkeypatch.setattr(faults, "_pause", pause)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.sqlite3'}")
    with Lab(async_app(engine)) as lab:
        assert lab.get("/ask?times=3").queries == 3
        assert naps == [0.0005] * 3
        lab.run(lambda client: engine.dispose())


# The deadline


@pytest.mark.parametrize("path", ["/sync", "/async", "/stubborn"])
@pytest.mark.parametrize("statement", [FOREVER, ENDLESS_ROWS], ids=["computing", "fetching"])
def test_a_statement_of_sqlite_is_interrupted(engine: Engine, path: str, statement: Any) -> None:
    with Lab(app_of(engine, statement), time_limit=LIMIT) as lab:
        assert lab.get("/ok").json == 42
        home = lab._loop._home
        with pytest.raises(RequestTimeout, match=f"GET {path} no terminó en 500 ms"):
            lab.get(path)
        assert lab.get("/ok").json == 42
        assert lab._loop._home is home and not lab.tainted  # the loop was kept


def test_it_is_said_that_it_was_a_statement(engine: Engine) -> None:
    says = pytest.raises(RequestTimeout, match=r"consulta SQL.* en .*test_faults.py:\d+")
    with Lab(app_of(engine, FOREVER), time_limit=LIMIT) as lab, says:
        lab.get("/sync")


def test_a_statement_of_aiosqlite_is_interrupted(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.sqlite3'}")
    with Lab(async_app(engine), time_limit=2) as lab:  # aiosqlite's thread must have begun on a busy machine as well
        with pytest.raises(RequestTimeout, match="consulta SQL"):
            lab.get("/forever")
        assert lab.get("/ask").json == 1
        lab.run(lambda client: engine.dispose())


def test_no_statement_begins_past_the_deadline(engine: Engine) -> None:
    begun: list[str] = []
    app = FastAPI()

    @app.get("/many")
    def many() -> int:
        with engine.connect() as connection:
            while True:
                begun.append("statement")
                connection.execute(text("SELECT 1"))

    with Lab(app, time_limit=LIMIT, latency=20) as lab:
        with pytest.raises(RequestTimeout, match="GET /many"):
            lab.get("/many")
        count = len(begun)
        time.sleep(0.1)
        assert len(begun) == count


def test_a_connection_that_went_on_to_another_request_is_left_alone(tmp_path: Path) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    trip = faults.RoundTrip(0)
    first, second = (faults.Request(name, 9, None, None, trip) for name in ("GET /1", "GET /2"))
    faults.listen()
    for flight in (first, second):
        token = faults.current.set(flight)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        faults.current.reset(token)
    interrupted: list[Any] = []
    original, faults._interrupt = faults._interrupt, interrupted.append
    try:
        first.interrupt()
        assert not interrupted
        second.interrupt()
        assert len(interrupted) == 1
    finally:
        faults._interrupt = original
        engine.dispose()
    assert (first.statements(), second.statements()) == (1, 1)


def test_the_listeners_stand_once(engine: Engine) -> None:
    for _ in range(3):
        faults.listen()
    assert event.contains(Engine, "before_cursor_execute", faults._before)
    with Lab(app_of(engine)) as lab:
        assert lab.get("/ok").queries == 1


# PostgreSQL


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.PostgresServer]:
    try:
        server = postgres.start()
    except ServiceError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.mark.parametrize("path", ["/sync", "/async"])
def test_a_statement_of_postgresql_is_cancelled(server: postgres.PostgresServer, path: str) -> None:
    engine = create_engine(server.url)
    with Lab(app_of(engine, text("SELECT pg_sleep(60)")), time_limit=LIMIT) as lab:
        assert lab.get("/ok").json == 42 and lab.latency_ms == 0
        with pytest.raises(RequestTimeout, match="consulta SQL"):
            lab.get(path)
        assert lab.get("/ok").json == 42 and not lab.tainted
        running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
        with engine.connect() as connection:
            assert connection.execute(text(running)).scalar_one() == 0
    engine.dispose()


def test_an_async_driver_of_postgresql_is_cancelled(server: postgres.PostgresServer) -> None:
    engine = create_async_engine(server.url)
    app = FastAPI()

    @app.get("/sleep")
    async def sleep(seconds: float = 60) -> int:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
        return 1

    with Lab(app, time_limit=LIMIT) as lab:
        with pytest.raises(RequestTimeout):
            lab.get("/sleep")
        assert lab.get("/sleep?seconds=0").json == 1
        lab.run(lambda client: engine.dispose())


def test_a_frozen_postgresql_hangs_nothing(server: postgres.PostgresServer) -> None:
    engine = create_engine(server.url)
    with Lab(app_of(engine), time_limit=LIMIT) as lab:
        assert lab.get("/ok").json == 42
        server.freeze()
        try:
            for path in ("/ok", "/async"):
                with pytest.raises(RequestTimeout):
                    lab.get(path)
        finally:
            server.thaw()
        assert lab.get("/ok").json == 42
    engine.dispose()
